"""Reading a row with what was kept of it: the exact cache of a block model, and two approximate ones for a network in which every token
sees every other (Fast-dLLM; Wu et al. 2025, arXiv 2505.22618, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from unveil.discrete.canvas import Canvas
from unveil.discrete.context import Array, Reading
from unveil.nn.partial import Part, new_store, read


@dataclass(frozen=True)
class Kept:
    """Of one row: its keys and values, the window they were refreshed for, and how many of the first tokens are finished for good."""

    store: Tensor | None = None
    window: int = -1
    finished: int = 0


@dataclass
class Cached:
    """Keys and values of each row, kept while its window is open.

    ``prefix`` and ``dual`` read the whole row when a window opens; then what precedes the window, or all around it, is taken as it was.
    ``block`` reads the finished blocks once, the last of them together with the first pass over the next, and they stay as they are:
    nothing that comes later can be seen from them. A selected context goes on where this one was, which is spent by it.
    """

    kind: Literal["prefix", "dual", "block"]
    block: int = 0
    rows: list[Kept] = field(default_factory=list)

    def read(self, model: Any, rows: Sequence[Canvas], places: Sequence[Array]) -> Reading:
        asked = [i for i, at in enumerate(places) if len(at)]
        parts = []
        for i in asked:
            row, kept = rows[i], self.rows[i]
            store = new_store(model, len(row.tokens)) if kept.store is None else kept.store
            start, end, seen, finished = self._span(row, kept)
            self.rows[i] = Kept(store, row.window, finished)
            parts.append(Part(torch.from_numpy(row.tokens[start:end]), start, seen, store))
        ends = np.cumsum([0] + [len(part.tokens) for part in parts])
        index_M = np.concatenate([places[i] - part.start + at for i, part, at in zip(asked, parts, ends, strict=False)])
        hidden_TD = read(model, parts)
        computed, reused = [0] * len(rows), [0] * len(rows)
        for i, part in zip(asked, parts, strict=True):
            computed[i], reused[i] = len(part.tokens), part.seen - len(part.tokens)
        return Reading(hidden_TD.index_select(0, torch.from_numpy(index_M).to(hidden_TD.device)), computed, reused)

    def _span(self, row: Canvas, kept: Kept) -> tuple[int, int, int, int]:
        """What is read, from where to where, how far it sees, and how much of the row is finished when it is read."""
        n, first, end = len(row.tokens), row.windows.first[row.window], row.windows.end[row.window]
        if self.kind == "block":
            return kept.finished, end, end, first // self.block * self.block
        if kept.window != row.window:
            return 0, n, n, 0
        return first, n if self.kind == "prefix" else end, n, 0

    def select(self, rows: Sequence[int]) -> Cached:
        return replace(self, rows=[self.rows[row] for row in rows])

    def join(self, other: Cached) -> Cached:
        return replace(self, rows=self.rows + other.rows)
