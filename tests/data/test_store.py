from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from unveil.data import store as module
from unveil.data.store import Entry, TokenStore, read_shard, write_shard
from unveil.errors import UserError

ENTRIES = [Entry("é:1", np.arange(700), 900, True), Entry("empty", np.zeros(0), 0, False), Entry("c", np.arange(3), 5, True)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_shard(tmp_path / "s.arrow", ENTRIES, np.uint16, "key")
    return tmp_path / "s.arrow"


def test_documents_come_back_from_several_shards_as_views_of_mapped_memory(path: Path) -> None:
    write_shard(path.with_name("t.arrow"), ENTRIES[:1], np.uint16, "key")
    store = TokenStore([path, path.with_name("t.arrow")], "key")
    for copy in (store, pickle.loads(pickle.dumps(store))):
        assert len(copy) == 4
        assert copy.lengths.tolist() == [700, 0, 3, 700]
        assert copy.source_bytes.tolist() == [900, 0, 5, 900]
        assert copy.ends.tolist() == [True, False, True, True]
        assert [copy.name(i) for i in range(4)] == ["é:1", "empty", "c", "é:1"]
        for i, entry in enumerate([*ENTRIES, ENTRIES[0]]):
            assert np.array_equal(copy.tokens(i), entry.tokens)
    assert store.tokens(0).dtype == np.uint16 and not store.tokens(0).flags.writeable
    with pytest.raises(IndexError):
        store.tokens(4)
    assert len(TokenStore([], "key")) == 0


def test_no_flipped_byte_changes_what_is_read(path: Path) -> None:
    """Every byte of the file: either the flip is refused with one line, or it lies in padding and nothing changes."""
    good, data = read_shard(path, "key"), path.read_bytes()
    bad = path.with_name("bad.arrow")
    refused = 0
    for at in range(0, len(data), 3):
        bad.write_bytes(data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])
        try:
            found = read_shard(bad, "key")
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and str(bad) in str(error)
        else:
            assert found.names == good.names
            assert all(np.array_equal(a, b) for a, b in zip(found[1:], good[1:], strict=True))
    assert refused > 0.7 * len(data) / 3


def test_a_truncated_missing_or_foreign_file_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, cut = path.read_bytes(), path.with_name("cut.arrow")
    for size in (0, 7, 100, len(data) // 2, len(data) - 1):
        cut.write_bytes(data[:size])
        with pytest.raises(UserError, match=r"truncated or damaged.*delete it"):
            read_shard(cut, "key")
    with pytest.raises(UserError, match="truncated or damaged"):
        read_shard(path.with_name("none.arrow"), "key")
    with pytest.raises(UserError, match="other data or settings"):
        read_shard(path, "another key")
    monkeypatch.setattr(module, "SHARD_FORMAT", 4)
    with pytest.raises(UserError, match="has shard format 3, this unveil reads 4"):
        read_shard(path, "key")


def test_a_failed_write_leaves_the_old_file_and_no_other(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_shard(path, ENTRIES[:1], np.uint16, "key")
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["s.arrow"]
