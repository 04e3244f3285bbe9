"""Documents from where a recipe says: Python's own library, text files, JSONL, Parquet or the hub.

Documents are bytes. What is no UTF-8 is kept as it is.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sys
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NamedTuple

from unveil.config import SourceConfig
from unveil.data import chats
from unveil.data.sums import COUNT, sums
from unveil.data.tokenizer import text_bytes
from unveil.errors import UserError, nearest

SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "lib2to3", "distutils", "pydoc_data"}
"""Of the standard library, left out: what is not part of it, its test suites, and packages that newer versions dropped.
``pydoc_data`` comes in as one document per topic."""

SKIPPED_MARKS = (b"decoding_table", b"decoding_map")
"""Files that hold these are generated code pages (``encodings``). Build settings (``_sysconfigdata``) are left out too."""

_JSONL = (".jsonl", ".jsonl.gz", ".ndjson")
_SUFFIXES = {"jsonl": _JSONL, "chat": _JSONL, "parquet": (".parquet",)}


class Document(NamedTuple):
    """A name, unique within its source and the same on every run, and the bytes. ``ends`` is False where ``limit`` cut it."""

    name: str
    data: bytes
    ends: bool = True


def documents(source: SourceConfig, limit: int = 0) -> Iterator[Document]:
    """The source's documents that are not empty, in a fixed order, up to ``limit`` bytes in all (0: no limit).

    The last one is cut, at a character's border, where it passes the limit; a conversation is left out. Raises UserError for a path that
    is missing or cannot be read, for rows without the column, and for a hub id that cannot be reached.
    """
    left = limit
    for document in _READERS[source.kind](source):
        if not document.data:
            continue
        if limit and len(document.data) >= left and chats.conversations(source):
            return
        if limit and len(document.data) >= left:
            if whole := _cut(document.data, left):
                yield Document(document.name, whole, len(whole) == len(document.data))
            return
        left -= len(document.data)
        yield document


def fingerprint(source: SourceConfig) -> list[Any]:
    """What tells whether the source has changed since it was read: sizes and times of its files, or the Python that runs."""
    if source.kind == "hub":
        return [source.path]
    if source.kind == "python":
        return [sys.version, *([str(p), p.stat().st_size] for p in _library())]
    if chats.conversations(source) and not source.path:
        return ["sums", COUNT]
    files = _files(source)[0]
    return [[str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in files]


def skipped_files(source: SourceConfig) -> list[str]:
    """Files of a text folder that are taken for binary (a zero byte in their first 8 KiB), as git does, and left out."""
    return [] if source.kind != "text" else [str(p) for p in _files(source)[1]]


def _cut(data: bytes, size: int) -> bytes:
    while 0 < size < len(data) and data[size] & 0xC0 == 0x80:
        size -= 1
    return data[:size]


# Python's own library ------------------------------------------------------------------------------------------------------------


def _library() -> list[Path]:
    found = []
    for folder, inner, names in os.walk(sysconfig.get_path("stdlib")):
        inner[:] = [name for name in inner if name not in SKIPPED_FOLDERS and not name.startswith("config-")]
        found += [Path(folder, n) for n in names if n.endswith(".py") and not n.startswith("_sysconfigdata")]
    return sorted(path for path in found if not path.is_symlink())


def _python(source: SourceConfig) -> Iterator[Document]:
    """In the order of a hash of the names: what comes first under a ``limit`` is a fair sample of documentation and library."""
    from pydoc_data.topics import topics

    root = Path(sysconfig.get_path("stdlib"))
    library = {path.relative_to(root).as_posix(): path for path in _library()}
    if not library:
        raise UserError("data.sources.kind", f"this Python has no library sources in {root}", "use another Python, or give your own text")
    documentation = {f"pydoc_data/topics/{name}": text for name, text in topics.items()}
    for name in sorted([*documentation, *library], key=lambda name: hashlib.blake2b(f"order/{name}".encode()).digest()):
        if name in documentation:
            yield Document(name, documentation[name].encode())
            continue
        with _readable(library[name]):
            data = library[name].read_bytes()
        if not any(mark in data for mark in SKIPPED_MARKS):
            yield Document(name, data)


# Files ---------------------------------------------------------------------------------------------------------------------------


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(str(path), f"cannot be read ({reason})", "check the file and its permissions") from error


def _open(path: Path) -> BufferedIOBase:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _files(source: SourceConfig) -> tuple[list[Path], list[Path]]:
    """Files to read in order, and those left out as binary. Names that begin with a dot are not looked at."""
    root = Path(source.path).expanduser()
    if not source.path or not root.exists():
        problem = f"'{source.path}' does not exist" if source.path else f"kind '{source.kind}' needs one and it is empty"
        raise UserError("data.sources.path", problem, "give a file or a folder")
    if root.is_file():
        return [root], []
    inside = (p for p in root.rglob("*") if not any(part.startswith(".") for part in p.relative_to(root).parts))
    files = sorted(p for p in inside if p.is_file() and p.name.endswith(_SUFFIXES.get(source.kind, "")))
    if not files:
        wanted = " or ".join(_SUFFIXES.get(source.kind, ("file",)))
        raise UserError("data.sources.path", f"the folder '{source.path}' holds no {wanted}", "give another folder, or another kind")
    if source.kind != "text":
        return files, []
    binary = [p for p in files if _is_binary(p)]
    return [p for p in files if p not in set(binary)], binary


def _is_binary(path: Path) -> bool:
    with _readable(path), _open(path) as stream:
        return b"\0" in stream.read(8192)


def _named(source: SourceConfig) -> Iterator[tuple[str, Path]]:
    root = Path(source.path).expanduser()
    for path in _files(source)[0]:
        name = path.relative_to(root if root.is_dir() else root.parent).as_posix()
        yield text_bytes(name).decode("utf-8", "replace"), path


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered from 1, with their newline."""
    with _readable(path), _open(path) as stream:
        yield from enumerate(stream, 1)


def _text(source: SourceConfig) -> Iterator[Document]:
    for name, path in _named(source):
        if source.documents == "file":
            with _readable(path), _open(path) as stream:
                data = stream.read()
            yield Document(name, data)
        elif source.documents == "line":
            yield from (Document(f"{name}:{n}", line.rstrip(b"\r\n")) for n, line in _lines(path) if line.strip())
        else:
            yield from _paragraphs(name, path)


def _paragraphs(name: str, path: Path) -> Iterator[Document]:
    """Runs of lines that are not blank; named by their first line."""
    lines: list[bytes] = []
    first = 0
    for n, line in _lines(path):
        if line.strip():
            first = first if lines else n
            lines.append(line)
        elif lines:
            yield Document(f"{name}:{first}", b"".join(lines).rstrip(b"\r\n"))
            lines = []
    if lines:
        yield Document(f"{name}:{first}", b"".join(lines).rstrip(b"\r\n"))


def _jsonl(source: SourceConfig) -> Iterator[Document]:
    for name, where, row in _rows(source):
        yield Document(name, _value(row, source.column, where))


def _chat(source: SourceConfig) -> Iterator[Document]:
    rows = _rows(source) if source.path else ((f"sums:{n}", f"sums:{n}", row) for n, row in enumerate(sums()))
    yield from (Document(name, chats.canonical(row, where)) for name, where, row in rows)


def _rows(source: SourceConfig) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, place and content of every row of JSONL."""
    for name, path in _named(source):
        for n, line in _lines(path):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8", "surrogateescape"))
            except ValueError as error:
                raise UserError(f"{path}:{n}", f"is no JSON ({error})", "write one JSON object a line") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}:{n}", "is no JSON object", "write one JSON object a line")
            yield f"{name}:{n}", f"{path}:{n}", row


def _parquet(source: SourceConfig) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, path in _named(source):
        try:
            with pq.ParquetFile(path) as table:
                columns = table.schema_arrow.names
                if source.column not in columns:
                    raise _no_column(source.column, columns, str(path))
                rows = (row for batch in table.iter_batches(batch_size=1024, columns=[source.column]) for row in batch.to_pylist())
                for n, row in enumerate(rows, 1):
                    yield Document(f"{name}:{n}", _value(row, source.column, f"{path} row {n}"))
        except (pa.ArrowException, OSError) as error:
            raise UserError(str(path), f"cannot be read as Parquet ({str(error).splitlines()[0]})", "check the file") from error


def _value(row: dict[str, Any], column: str, where: str) -> bytes:
    """Text or bytes; of a list of texts, its lines; a null is an empty document."""
    if column not in row:
        raise _no_column(column, list(row), where)
    value = row[column]
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        value = "\n".join(value)
    if isinstance(value, str):
        return text_bytes(value)
    if isinstance(value, bytes) or value is None:
        return value or b""
    problem = f"'{column}' of {where} holds {type(value).__name__}, wanted text or a list of texts"
    raise UserError("data.sources.column", problem, "name the column that holds the text")


def _no_column(column: str, known: list[str], where: str) -> UserError:
    return UserError("data.sources.column", f"there is no '{column}' in {where}", nearest(column, known))


# The hub -------------------------------------------------------------------------------------------------------------------------


def _hub(source: SourceConfig) -> Iterator[Document]:
    """Rows of the ``train`` split of ``owner/name`` or ``owner/name:configuration``, streamed."""
    try:
        import datasets
    except ImportError as error:
        raise UserError("data.sources.kind", "'hub' needs the library `datasets`", "pip install 'unveil[hub]'") from error
    name, _, configuration = source.path.partition(":")
    try:
        rows = iter(datasets.load_dataset(name, configuration or None, split="train", streaming=True))
        for n in range(sys.maxsize):
            row = next(rows, None)
            if row is None:
                return
            yield Document(f"{source.path}:{n}", _value(row, source.column, f"{source.path} row {n}"))
    except UserError:
        raise
    except Exception as error:  # every layer below (network, file formats, scripts) raises errors of its own
        offline = " while HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else ""
        problem = (
            f"the hub's '{source.path}' cannot be read{offline} ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        )
        raise UserError("data.sources.path", problem, "check the id and the connection, or give a local file") from error


_READERS: dict[str, Callable[[SourceConfig], Iterator[Document]]] = {
    "python": _python,
    "text": _text,
    "jsonl": _jsonl,
    "parquet": _parquet,
    "hub": _hub,
    "chat": _chat,
}
