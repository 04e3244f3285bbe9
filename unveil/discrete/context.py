"""How the network is asked about a row: what it reads, and what of it comes out of a cache.

B rows, M places asked about in all rows together, D width. A context is kept row for row with the canvases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from unveil.discrete.canvas import Canvas
from unveil.nn.packed import Packed

Array = np.ndarray[Any, Any]


class Reading(NamedTuple):
    """Hidden states of the places asked about, rows end to end, and what each row cost."""

    hidden_MD: Tensor
    computed_B: list[int]
    """Tokens that went through the network."""
    reused_B: list[int]
    """Tokens that were attended to out of a cache."""


class Context(Protocol):
    def read(self, model: Any, rows: Sequence[Canvas], places: Sequence[Array]) -> Reading:
        """Hidden states at ``places`` (ascending positions, one array per row; empty: the row is not read)."""

    def select(self, rows: Sequence[int]) -> Context: ...
    def join(self, other: Any) -> Context: ...


def device(model: Any) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@dataclass(frozen=True)
class Whole:
    """No cache: every row is read anew, all of them in one pack.

    block: of the network's layout; what stands behind the open block cannot be seen and is not read.
    limit: tokens read at once, 0 for all: those up to the end of the open window and what follows it, if there is room.
    level: the noise level of a row of which these tokens are read, for a network that is told it.
    """

    block: int = 0
    limit: int = 0
    level: Callable[[Canvas, Array], float] | None = None

    def read(self, model: Any, rows: Sequence[Canvas], places: Sequence[Array]) -> Reading:
        views = [self.view(row) for row in rows]
        asked = [i for i, at in enumerate(places) if len(at)]
        sequences = [torch.from_numpy(rows[i].tokens[views[i]]) for i in asked]
        starts = np.cumsum([0] + [len(s) for s in sequences])
        index_M = np.concatenate([places[i] - views[i].start + start for i, start in zip(asked, starts, strict=False)])
        batch = Packed.of(sequences).to(device(model))
        told = () if self.level is None else (self._levels([rows[i] for i in asked], sequences).to(batch.tokens_T.device),)
        hidden_MD = model(batch, *told).index_select(0, torch.from_numpy(index_M).to(batch.tokens_T.device))
        computed = [0] * len(rows)
        for i, sequence in zip(asked, sequences, strict=True):
            computed[i] = len(sequence)
        return Reading(hidden_MD, computed, [0] * len(rows))

    def _levels(self, rows: Sequence[Canvas], sequences: Sequence[Tensor]) -> Tensor:
        assert self.level is not None
        return torch.tensor([self.level(row, tokens.numpy()) for row, tokens in zip(rows, sequences, strict=True)])

    def view(self, row: Canvas) -> slice:
        """The tokens that are read."""
        end = row.windows.end[row.window]
        start = max(0, end - self.limit) if self.limit else 0
        if self.block:
            return slice(-(-start // self.block) * self.block, end)
        return slice(start, min(start + self.limit, len(row.tokens)) if self.limit else len(row.tokens))

    def select(self, rows: Sequence[int]) -> Whole:
        return self

    def join(self, other: Whole) -> Whole:
        return self
