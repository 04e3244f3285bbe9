"""Documents on disk: memory-mapped Arrow files with a format version, a key and a checksum.

The same file holds a corpus as it was read (its tokens are bytes) and as a tokenizer encoded it.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from unveil.errors import UserError

SHARD_FORMAT = 2
_REMEDY = "delete it and run `unveil data prepare` again"

Array = np.ndarray[Any, Any]


class Entry(NamedTuple):
    """A document (or its held-out or training part): its name, its ids without special tokens, how many bytes of the source they
    stand for, and whether the document really ends here, so that an end token follows."""

    name: str
    tokens: Array
    source_bytes: int
    ends: bool


class Shard(NamedTuple):
    """The columns of one file: views into the mapped memory."""

    names: Any
    tokens: Array
    offsets: Array
    source_bytes: Array
    ends: Array


def write_shard(path: Path, entries: Sequence[Entry], dtype: type[np.unsignedinteger[Any]], key: str) -> None:
    """Write one file, aside first and then renamed: under its name it is always whole. ``key`` says what shaped it."""
    offsets = np.concatenate([[0], np.cumsum([len(e.tokens) for e in entries])]).astype(np.int64)
    tokens = np.concatenate([np.zeros(0, dtype), *(e.tokens for e in entries)]).astype(dtype)
    source_bytes = np.array([e.source_bytes for e in entries], dtype=np.int64)
    ends = np.array([e.ends for e in entries], dtype=np.uint8)
    names = pa.array([e.name for e in entries], pa.large_string())
    shard = Shard(names, tokens, offsets, source_bytes, ends)
    arrays = [names, pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(tokens)), pa.array(source_bytes), pa.array(ends)]
    metadata = {"unveil.format": str(SHARD_FORMAT), "unveil.key": key, "unveil.crc32": str(_checksum(shard))}
    table = pa.record_batch(arrays, names=["name", "tokens", "source_bytes", "ends"])
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, table.schema.with_metadata(metadata)) as writer:
            writer.write_batch(table.replace_schema_metadata(metadata))
        aside.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()


def read_shard(path: Path, key: str) -> Shard:
    """Map one file and check it. Raises UserError where it is missing, truncated, corrupted or of another format or key."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
        metadata = {k.decode(): v.decode() for k, v in (reader.schema.metadata or {}).items()}
        if metadata.get("unveil.format") != str(SHARD_FORMAT):
            found = metadata.get("unveil.format", "none")
            raise UserError(str(path), f"has shard format {found}, this unveil reads {SHARD_FORMAT}", _REMEDY)
        if metadata.get("unveil.key") != key:
            raise UserError(str(path), "was made from other data or settings than its folder says", _REMEDY)
        batch = reader.get_batch(0)
        batch.validate(full=True)
        lists, ends = batch.column("tokens"), batch.column("ends")
        shard = Shard(
            batch.column("name"),
            lists.values.to_numpy(zero_copy_only=True),
            lists.offsets.to_numpy(zero_copy_only=True),
            batch.column("source_bytes").to_numpy(zero_copy_only=True),
            ends.to_numpy(zero_copy_only=True),
        )
    except (pa.ArrowException, OSError, KeyError, IndexError, ValueError) as error:
        raise UserError(str(path), f"is truncated or damaged ({(str(error) or 'empty').splitlines()[0]})", _REMEDY) from error
    if str(_checksum(shard)) != metadata.get("unveil.crc32"):
        raise UserError(str(path), "is corrupted: its checksum does not match", _REMEDY)
    return shard


def _checksum(shard: Shard) -> int:
    value = zlib.crc32("\0".join(shard.names.to_pylist()).encode("utf-8", "surrogatepass"))
    for column in shard[1:]:
        value = zlib.crc32(np.ascontiguousarray(column).data, value)
    return value


class TokenStore:
    """The documents of one source and split, over any number of shards.

    Per document ``[D]``: ``lengths`` in tokens (int64, special tokens not counted), ``source_bytes`` (int64) and ``ends`` (bool).
    Only these are in memory; tokens are read from the mapped files. Raises UserError as ``read_shard`` does.
    """

    def __init__(self, paths: Sequence[Path], key: str) -> None:
        self._origin = (tuple(paths), key)
        self._shards = [read_shard(path, key) for path in paths]
        counts = [len(s.names) for s in self._shards]
        self._first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.lengths = self._column([np.diff(s.offsets) for s in self._shards], np.int64)
        self.source_bytes = self._column([s.source_bytes for s in self._shards], np.int64)
        self.ends = self._column([s.ends for s in self._shards], np.bool_)

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore, self._origin

    def __len__(self) -> int:
        return int(self._first[-1])

    def tokens(self, index: int) -> Array:
        """Ids of a document: a read-only view, uint8, uint16 or uint32."""
        shard, row = self._find(index)
        return shard.tokens[shard.offsets[row] : shard.offsets[row + 1]]

    def name(self, index: int) -> str:
        shard, row = self._find(index)
        return str(shard.names[row])

    def _find(self, index: int) -> tuple[Shard, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        which = int(np.searchsorted(self._first, index, side="right")) - 1
        return self._shards[which], index - int(self._first[which])

    @staticmethod
    def _column(parts: list[Array], dtype: Any) -> Array:
        return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype)
