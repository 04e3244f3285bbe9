from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unveil.config import SourceConfig
from unveil.data.corpus import documents, fingerprint, skipped_files
from unveil.errors import UserError


def read(source: SourceConfig, limit: int = 0) -> list[tuple[str, bytes]]:
    return [(d.name, d.data) for d in documents(source, limit)]


def test_the_embedded_corpus_is_megabytes_of_topics_and_sources_without_tests() -> None:
    found = read(SourceConfig())
    names = [name for name, _ in found]
    assert len(set(names)) == len(names) > 300
    assert sum(len(data) for _, data in found) > 4_000_000
    assert {"pydoc_data/topics/assert", "json/decoder.py", "argparse.py"} <= set(names)
    parts = {part for name in names for part in name.split("/")[:-1]}
    assert not parts & {"test", "tests", "idlelib", "lib2to3", "site-packages"}
    assert not any(b"decoding_table" in data for _, data in found)
    assert names == [name for name, _ in read(SourceConfig())]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b.txt").write_bytes(b"one\ntwo\n\n \nthree \xff\r\n")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "z.txt.gz").write_bytes(gzip.compress(b"zipped"))
    (tmp_path / "a" / "empty.txt").write_bytes(b"")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / ".hidden").write_bytes(b"hidden")
    return tmp_path


def test_text_documents_are_files_paragraphs_or_lines_with_their_bytes_kept(folder: Path) -> None:
    path = str(folder)
    assert read(SourceConfig(kind="text", path=path)) == [("a/z.txt.gz", b"zipped"), ("b.txt", b"one\ntwo\n\n \nthree \xff\r\n")]
    assert skipped_files(SourceConfig(kind="text", path=path)) == [str(folder / "image.png")]
    assert read(SourceConfig(kind="text", path=f"{path}/b.txt", documents="paragraph")) == [
        ("b.txt:1", b"one\ntwo"),
        ("b.txt:5", b"three \xff"),
    ]
    assert [d for _, d in read(SourceConfig(kind="text", path=f"{path}/b.txt", documents="line"))] == [b"one", b"two", b"three \xff"]


def test_limit_cuts_the_last_document_at_a_characters_border(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("abc\nañb\nlast", encoding="utf-8")
    source = SourceConfig(kind="text", path=str(tmp_path), documents="line")
    assert [(d.data, d.ends) for d in documents(source, 5)] == [(b"abc", True), (b"a", False)]
    assert sum(len(d.data) for d in documents(source, 6)) == 6


def test_jsonl_takes_text_and_lists_of_lines_and_keeps_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(
        b'{"text": "caf\xe9", "n": 1}\n\n' + json.dumps({"text": ["中", "b"]}).encode() + b'\n{"text": null}\n{"text": "\\ud83d"}\n'
    )
    source = SourceConfig(kind="jsonl", path=str(path))
    assert read(source) == [("x.jsonl:1", b"caf\xe9"), ("x.jsonl:3", "中\nb".encode()), ("x.jsonl:5", b"\xed\xa0\xbd")]
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert [d for _, d in read(SourceConfig(kind="jsonl", path=str(tmp_path / "x.jsonl.gz")))] == [d for _, d in read(source)]


def test_parquet_reads_its_column_in_row_order(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["a", "b", None, "d"], "n": [1, 2, 3, 4]}), tmp_path / "t.parquet", row_group_size=2)
    source = SourceConfig(kind="parquet", path=str(tmp_path), column="body")
    assert read(source) == [("t.parquet:1", b"a"), ("t.parquet:2", b"b"), ("t.parquet:4", b"d")]


def test_hub_ids_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*arguments: object, **options: object) -> list[dict[str, str]]:
        asked.append((arguments, options))
        return [{"text": "first"}, {"text": "second"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert read(SourceConfig(kind="hub", path="me/set:small")) == [("me/set:small:0", b"first"), ("me/set:small:1", b"second")]
    assert asked == [(("me/set", "small"), {"split": "train", "streaming": True})]


def test_the_hub_without_a_connection_or_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*arguments: object, **options: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(UserError, match=r"'me/set' cannot be read \(no route\)"):
        read(SourceConfig(kind="hub", path="me/set"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install"):
        read(SourceConfig(kind="hub", path="me/set"))


def test_a_changed_file_changes_the_fingerprint(folder: Path) -> None:
    source = SourceConfig(kind="text", path=str(folder))
    before = fingerprint(source)
    assert fingerprint(source) == before
    (folder / "b.txt").write_bytes(b"other")
    assert fingerprint(source) != before


BAD = {
    "missing path": ("text", "nowhere", "data.sources.path: '.*nowhere' does not exist"),
    "no path": ("text", None, "data.sources.path: kind 'text' needs one"),
    "folder without the files": ("parquet", "", "holds no .parquet"),
    "broken gzip": ("text", "broken.gz", "cannot be read"),
    "no json": ("jsonl", "bad.jsonl", r"bad.jsonl:2: is no JSON"),
    "no object": ("jsonl", "list.jsonl", "is no JSON object"),
    "column missing": ("jsonl", "column.jsonl", "there is no 'text' in .*column.jsonl:1; did you mean 'texts'"),
    "column of numbers": ("jsonl", "number.jsonl", "holds int, wanted text"),
    "no parquet": ("parquet", "bad.parquet", "cannot be read as Parquet"),
    "parquet column": ("parquet", "column.parquet", "there is no 'text'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sources_name_what_is_wrong(tmp_path: Path, case: str) -> None:
    kind, name, message = BAD[case]
    (tmp_path / "broken.gz").write_bytes(gzip.compress(b"text" * 99)[:-12])
    (tmp_path / "bad.jsonl").write_bytes(b'{"text": "a"}\n{"text": \n')
    (tmp_path / "list.jsonl").write_bytes(b"[1]\n")
    (tmp_path / "column.jsonl").write_bytes(b'{"texts": "a"}\n')
    (tmp_path / "number.jsonl").write_bytes(b'{"text": 3}\n')
    path = "" if name is None else str(tmp_path / name)
    if case == "folder without the files":
        path = str(tmp_path)
    else:
        (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more PAR1")
        pq.write_table(pa.table({"n": [1]}), tmp_path / "column.parquet")
    with pytest.raises(UserError, match=message) as caught:
        read(SourceConfig(kind=kind, path=path))
    assert "\n" not in str(caught.value)
