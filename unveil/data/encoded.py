"""What an encoder makes of prepared images, computed once: latents of the pixels, embeddings of the captions.

Each file of the store has a file of rows, in the store's order, in a folder that is named by the store and by the encoder's digest: an
encoding that was interrupted goes on with the next file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from unveil.data.columns import read_columns, write_columns

ENCODED_FORMAT = 1
BATCH = 32
"""Items encoded at a time."""

Array = np.ndarray[Any, Any]


class Encoder(Protocol):
    """Items to rows of numbers, one item independent of another."""

    @property
    def digest(self) -> str:
        """Of all that its rows depend on."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the arrays that it makes."""

    def encode(self, items: Sequence[Any]) -> Sequence[Array]:
        """For each column float32 ``[N, ...]``, all of one shape."""


class Rows:
    """Float32 arrays of one shape for each item, by column, over any number of files; views into the mapped memory.

    Raises UserError for a file that is missing, truncated, corrupted or of another format.
    """

    def __init__(self, paths: Sequence[Path], key: str, columns: Sequence[str], shape: tuple[int, ...]) -> None:
        self._origin, self.key, self.shape = (tuple(paths), key, tuple(columns), shape), key, shape
        files = [read_columns(path, tuple(columns), ENCODED_FORMAT, key) for path in paths]
        self._arrays = {name: [f[name].values.to_numpy(zero_copy_only=True).reshape(-1, *shape) for f in files] for name in columns}
        self._first = np.cumsum([0, *(len(part) for part in self._arrays[columns[0]])])

    def __reduce__(self) -> tuple[Any, ...]:
        return Rows, self._origin

    def __len__(self) -> int:
        return int(self._first[-1])

    def row(self, column: str, index: int) -> Array:
        file = int(np.searchsorted(self._first, index, side="right")) - 1
        found: Array = self._arrays[column][file][index - int(self._first[file])]
        return found


def encoded(
    folder: Path,
    files: Sequence[tuple[str, int]],
    item: Callable[[int], Any],
    encoder: Encoder,
    shape: tuple[int, ...],
    report: Callable[[int, int], None],
) -> Rows:
    """The encoder's rows of every item, computed now or found in the cache.

    Args:
        folder: of the prepared images; the rows go beside it.
        files: name and number of items of each of the store's files.
        item: what the encoder reads of the item of that number.
        shape: of an item's arrays.
        report: called with how many items are done, and of how many.

    Raises:
        UserError: as the encoder does, and for damaged files.
    """
    key = hashlib.blake2b(f"{ENCODED_FORMAT} {folder.name} {encoder.digest}".encode(), digest_size=12).hexdigest()
    place = folder.with_name(key)
    place.mkdir(parents=True, exist_ok=True)
    done, total = 0, sum(count for _, count in files)
    for name, count in files:
        if not (place / name).exists():
            made: list[Sequence[Array]] = []
            for start in range(done, done + count, BATCH):
                made.append(encoder.encode([item(i) for i in range(start, min(start + BATCH, done + count))]))
                report(min(start + BATCH, done + count), total)
            whole = [np.concatenate(parts).astype(np.float32).reshape(count, -1) for parts in zip(*made, strict=True)]
            lists = [pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1]) for values in whole]
            write_columns(place / name, dict(zip(encoder.columns, lists, strict=True)), ENCODED_FORMAT, key)
        done += count
    return Rows([place / name for name, _ in files], key, encoder.columns, shape)
