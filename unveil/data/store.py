"""Documents on disk: memory-mapped Arrow files with a format version, a key and a checksum.

The same file holds a corpus as it was read (its tokens are bytes) and as a tokenizer encoded it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from unveil.data.chats import SPAN
from unveil.data.columns import read_columns, write_columns

SHARD_FORMAT = 3

Array = np.ndarray[Any, Any]


class Entry(NamedTuple):
    """A document (or its held-out or training part): its name, its ids without special tokens, how many bytes of the source they
    stand for, whether the document really ends here, so that an end token follows, and of a conversation its answers, as ``chats.Encoded``
    has them."""

    name: str
    tokens: Array
    source_bytes: int
    ends: bool
    spans: Array = np.zeros((0, SPAN), dtype=np.int64)


class Shard(NamedTuple):
    """The columns of one file: views into the mapped memory."""

    names: Any
    tokens: Array
    offsets: Array
    source_bytes: Array
    ends: Array
    spans: Array
    span_offsets: Array


def write_shard(path: Path, entries: Sequence[Entry], dtype: type[np.unsignedinteger[Any]], key: str) -> None:
    """Write one file, aside first and then renamed: under its name it is always whole. ``key`` says what shaped it."""
    columns = {
        "name": pa.array([e.name for e in entries], pa.large_string()),
        "tokens": _lists([e.tokens for e in entries], dtype),
        "source_bytes": pa.array(np.array([e.source_bytes for e in entries], dtype=np.int64)),
        "ends": pa.array(np.array([e.ends for e in entries], dtype=np.uint8)),
        "spans": _lists([e.spans.reshape(-1) for e in entries], np.int64),
    }
    write_columns(path, columns, SHARD_FORMAT, key)


def _lists(parts: Sequence[Array], dtype: Any) -> pa.LargeListArray:
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype)))


def read_shard(path: Path, key: str) -> Shard:
    """Map one file and check it. Raises UserError where it is missing, truncated, corrupted or of another format or key."""
    columns = read_columns(path, ("name", "tokens", "source_bytes", "ends", "spans"), SHARD_FORMAT, key)
    lists, spans = columns["tokens"], columns["spans"]
    mapped = (lists.values, lists.offsets, columns["source_bytes"], columns["ends"], spans.values, spans.offsets)
    return Shard(columns["name"], *(column.to_numpy(zero_copy_only=True) for column in mapped))


class TokenStore:
    """The documents of one source and split, over any number of shards.

    Per document ``[D]``: ``lengths`` in tokens (int64, special tokens not counted), ``source_bytes`` (int64) and ``ends`` (bool).
    ``whole``: they are conversations, which are never cut. Only these are in memory; tokens are read from the mapped files. Raises
    UserError as ``read_shard`` does.
    """

    def __init__(self, paths: Sequence[Path], key: str) -> None:
        self._origin = (tuple(paths), key)
        self._shards = [read_shard(path, key) for path in paths]
        counts = [len(s.names) for s in self._shards]
        self._first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.lengths = self._column([np.diff(s.offsets) for s in self._shards], np.int64)
        self.source_bytes = self._column([s.source_bytes for s in self._shards], np.int64)
        self.ends = self._column([s.ends for s in self._shards], np.bool_)
        self.whole = any(len(s.spans) for s in self._shards)

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore, self._origin

    def __len__(self) -> int:
        return int(self._first[-1])

    def tokens(self, index: int) -> Array:
        """Ids of a document: a read-only view, uint8, uint16 or uint32."""
        shard, row = self._find(index)
        return shard.tokens[shard.offsets[row] : shard.offsets[row + 1]]

    def spans(self, index: int) -> Array:
        """The answers of a conversation, int64 ``[A, 4]``."""
        shard, row = self._find(index)
        return shard.spans[shard.span_offsets[row] : shard.span_offsets[row + 1]].reshape(-1, SPAN)

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
