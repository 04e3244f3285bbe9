"""The order of training: which piece of which document comes next, over epochs and a mixture of sources.

It depends on the run's seed alone: not on the family, on packing, workers or ranks. So two families see the same pieces in the
same order under the same sample ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from unveil.data.noise import generator
from unveil.data.packing import count_pieces, piece
from unveil.data.store import TokenStore


class Piece(NamedTuple):
    """A sample: tokens ``[start, stop)`` of a document, and whether the document ends there."""

    sample_id: int
    """Counts pieces over the whole run, from 0."""
    source: int
    epoch: int
    document: int
    start: int
    stop: int
    ends: bool

    @property
    def length(self) -> int:
        """With the start token and, where the document ends, the end token."""
        return 1 + self.stop - self.start + self.ends


class Epoch:
    """One pass over a source. Every document too long for one piece is cut at a random phase of its own; all pieces of all
    documents are shuffled together, so that neighbours in a long document do not meet in a step."""

    def __init__(self, store: TokenStore, context: int, seed: int, source: int, epoch: int) -> None:
        # a conversation is one piece, however long its two answers together (data.chats)
        context = int(store.lengths.max()) + 2 if store.whole else context
        self._store, self._context = store, context
        rng = generator(seed, epoch, source, "order")
        self._phases = rng.integers(0, context - 1, len(store))
        self._first = np.concatenate([[0], np.cumsum(count_pieces(store.lengths, store.ends, self._phases, context))])
        self._order = rng.permutation(int(self._first[-1]))

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> tuple[int, int, int, bool]:
        """Document, start, stop and whether it ends there, of the piece that comes ``index``-th."""
        number = int(self._order[index])
        document = int(np.searchsorted(self._first, number, side="right")) - 1
        length, ends = int(self._store.lengths[document]), bool(self._store.ends[document])
        start, stop = piece(length, ends, int(self._phases[document]), self._context, number - int(self._first[document]))
        return document, start, stop, ends and stop == length


class Stream:
    """Pieces without end. The next one comes from the source that is furthest behind its share of the tokens so far (the first of
    equals); a source that is through begins its next epoch.

    Raises ValueError for a source without documents.
    """

    def __init__(self, stores: Sequence[TokenStore], weights: Sequence[float], context: int, seed: int) -> None:
        if not all(len(store) for store in stores):
            raise ValueError("a source has no documents")
        self._stores, self._weights, self._context, self._seed = stores, weights, context, seed
        self.next_id = 0
        self.epochs, self.cursors, self.given = ([0] * len(stores) for _ in range(3))
        self._current: dict[int, tuple[int, Epoch]] = {}

    def __next__(self) -> Piece:
        total = sum(self.given)
        behind = [weight * total - given for weight, given in zip(self._weights, self.given, strict=True)]
        source = max(range(len(behind)), key=behind.__getitem__)
        epoch = self._epoch(source)
        if self.cursors[source] == len(epoch):
            self.epochs[source] += 1
            self.cursors[source] = 0
            epoch = self._epoch(source)
        found = Piece(self.next_id, source, self.epochs[source], *epoch[self.cursors[source]])
        self.cursors[source] += 1
        self.given[source] += found.length
        self.next_id += 1
        return found

    def _epoch(self, source: int) -> Epoch:
        number = self.epochs[source]
        if source not in self._current or self._current[source][0] != number:
            self._current[source] = (number, Epoch(self._stores[source], self._context, self._seed, source, number))
        return self._current[source][1]

    def state(self) -> dict[str, Any]:
        return {"next_id": self.next_id, "epochs": list(self.epochs), "cursors": list(self.cursors), "given": list(self.given)}

    def restore(self, state: dict[str, Any]) -> None:
        self.next_id = int(state["next_id"])
        self.epochs, self.cursors, self.given = (list(map(int, state[k])) for k in ("epochs", "cursors", "given"))
