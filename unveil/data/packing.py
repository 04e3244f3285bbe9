"""Packing: whole pieces into packs of a fixed length, and the cutting of documents that are too long for one piece.

Best-fit keeps a few packs open and lays every piece into the fullest one that still has room (Johnson 1974). With a single open
pack the same rule is next-fit. Nothing here knows of tokens: only of lengths.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

Item = TypeVar("Item")

OPEN = {"best-fit": 32, "next-fit": 1}
"""Open packs per ``data.packing``. 32 already leaves under 1 % empty; more would only delay documents."""

PATIENCE = 8
"""A pack is finished, however empty, once this many times as many packs as may be open were opened after it: no piece waits longer."""

SMALLEST = 2
"""No piece is shorter (a start token and one more), so a pack with less room is finished."""


@dataclass
class Bin(Generic[Item]):
    """An open pack: the room that is left, and what lies in it."""

    room: int
    order: int
    """When it was opened: ties between equal rooms go to the oldest."""
    items: list[Item] = field(default_factory=list)


class Packer(Generic[Item]):
    """Online best-fit over ``open_bins`` packs of ``capacity`` tokens.

    ``bins`` (sorted by room, then age) and ``opened`` are the whole state.
    """

    def __init__(self, capacity: int, open_bins: int) -> None:
        self.capacity, self.open_bins = capacity, open_bins
        self.bins: list[Bin[Item]] = []
        self.opened = 0

    def add(self, length: int, item: Item) -> list[list[Item]]:
        """Lay one piece down; returns the packs that this finishes (none, one or two), in order.

        A piece that fits nowhere opens a pack. Before that, an open one that is past ``PATIENCE`` is finished, or else, where all
        are open already, the fullest. So a stream of pieces always yields packs. Raises ValueError where a piece is longer than a pack.
        """
        if not SMALLEST <= length <= self.capacity:
            raise ValueError(f"a piece of {length} tokens does not go into packs of {self.capacity}: it wants {SMALLEST}..{self.capacity}")
        finished: list[list[Item]] = []
        index = bisect_left(self.bins, length, key=lambda b: b.room)
        if index < len(self.bins):
            chosen = self.bins.pop(index)
        else:
            oldest = min(range(len(self.bins)), key=lambda i: self.bins[i].order, default=None)
            if oldest is not None and self.opened - self.bins[oldest].order >= PATIENCE * self.open_bins:
                finished.append(self.bins.pop(oldest).items)
            elif len(self.bins) == self.open_bins:
                finished.append(self.bins.pop(0).items)
            chosen = Bin(self.capacity, self.opened)
            self.opened += 1
        chosen.items.append(item)
        chosen.room -= length
        if chosen.room < SMALLEST:
            finished.append(chosen.items)
        else:
            insort(self.bins, chosen, key=lambda b: (b.room, b.order))
        return finished

    def restore(self, bins: Sequence[tuple[int, Sequence[tuple[int, Item]]]], opened: int) -> None:
        """Back to a state: for each open pack, when it was opened and its pieces with their lengths; and how many were opened."""
        filled = [Bin(self.capacity - sum(n for n, _ in pieces), order, [i for _, i in pieces]) for order, pieces in bins]
        self.bins, self.opened = sorted(filled, key=lambda b: (b.room, b.order)), opened

    def flush(self) -> list[list[Item]]:
        """Finish every open pack, fullest first."""
        finished = [b.items for b in self.bins]
        self.bins = []
        return finished


def pack(lengths: Sequence[int], capacity: int, kind: str = "best-fit") -> list[list[int]]:
    """Indices of ``lengths`` by pack, in the order in which packs are finished; ``kind`` is a key of ``OPEN``."""
    packer: Packer[int] = Packer(capacity, OPEN[kind])
    packs = [done for index, length in enumerate(lengths) for done in packer.add(int(length), index)]
    return packs + packer.flush()


def efficiency(packs: Sequence[Sequence[int]], lengths: Sequence[int], capacity: int) -> float:
    """Share of the packs' room that holds tokens, in [0, 1]."""
    return sum(int(lengths[i]) for p in packs for i in p) / (capacity * len(packs)) if packs else 0.0


def count_pieces(lengths: Any, ends: Any, phases: Any, context: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """How many pieces each document is cut into: integers or arrays that broadcast. See ``piece``."""
    room, total = context - 1, np.asarray(lengths, dtype=np.int64) + ends
    first = np.where(np.asarray(phases) > 0, phases, room)
    return np.where(total <= room, 1, 1 - (first - total) // room).astype(np.int64)


def piece(length: int, ends: bool, phase: int, context: int, index: int) -> tuple[int, int]:
    """Bounds ``[start, stop)`` of piece ``index`` of a document, in the document's own tokens.

    A piece goes behind a start token, and the last one before an end token where the document ends there; so a piece and what is
    laid around it never exceed ``context`` (at least 4). A document that fits is whole. Of a longer one the first piece has
    ``phase`` tokens (0 <= phase < context - 1; 0 means a full one) and the others are full. The end token never stands alone:
    where it would, the last cut moves back by one token.
    """
    room = context - 1
    if length + ends <= room:
        return 0, length
    first = phase or room
    start = min(first + (index - 1) * room, length - 1) if index else 0
    stop = first + index * room
    return start, length if stop >= length + ends else min(stop, length - 1)
