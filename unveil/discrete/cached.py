"""Reading a row with what was kept of it: the exact cache of a block model, and two approximate ones for a network in which every token
sees every other (Fast-dLLM; Wu et al. 2025, arXiv 2505.22618, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from unveil.discrete.canvas import Canvas
from unveil.discrete.context import Array, Reading
from unveil.nn.kv_cache import KVCache
from unveil.nn.partial import Span, new_store, read


@dataclass(frozen=True)
class Kept:
    """Of one row: its slot in the store, the window it was refreshed for, and how many of the first tokens are finished for good."""

    slot: int
    window: int = -1
    finished: int = 0


@dataclass
class Cached:
    """Keys and values of each row, kept while its window is open.

    ``prefix`` and ``dual`` read the whole row when a window opens; then what precedes the window, or all around it, is taken as it was.
    ``block`` reads the finished blocks once, the last of them together with the first pass over the next, and they stay as they are:
    nothing that comes later can be seen from them. A step copies nothing, nor does ``select``: a selected context goes on in the store of
    this one, which is spent by it. ``join`` copies.
    """

    kind: Literal["prefix", "dual", "block"]
    block: int
    rows: list[Kept]
    store: KVCache

    @staticmethod
    def of(kind: Literal["prefix", "dual", "block"], block: int, model: Any, lengths: Sequence[int]) -> Cached:
        """For rows of these lengths, none of them read."""
        return Cached(kind, block, [Kept(slot) for slot in range(len(lengths))], new_store(model, len(lengths), max(lengths, default=0)))

    def read(self, model: Any, rows: Sequence[Canvas], places: Sequence[Array]) -> Reading:
        spans, tokens, index, at = [], [], [], 0
        computed, reused = [0] * len(rows), [0] * len(rows)
        for i, (row, asked) in enumerate(zip(rows, places, strict=True)):
            if not len(asked):
                continue
            start, end, seen, finished = self._span(row, self.rows[i])
            spans.append(Span(self.rows[i].slot, start, end - start, seen))
            tokens.append(row.tokens[start:end])
            index.append(asked + (at - start))
            at += end - start
            computed[i], reused[i] = end - start, seen - (end - start)
            self.rows[i] = Kept(self.rows[i].slot, row.window, finished)
        hidden_TD = read(model, spans, torch.from_numpy(np.concatenate(tokens)), self.store)
        index_M = torch.from_numpy(np.concatenate(index)).to(hidden_TD.device)
        return Reading(hidden_TD.index_select(0, index_M), computed, reused)

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
        stores = [each.store.select([kept.slot for kept in each.rows]) for each in (self, other)]
        rows = [replace(kept, slot=slot) for slot, kept in enumerate(self.rows + other.rows)]
        return replace(self, rows=rows, store=stores[0].join(stores[1]))
