"""A row between two steps: everything that its further course depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unveil.discrete.commit import Clock
from unveil.discrete.window import Windows
from unveil.family import Row

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Canvas:
    """One row. Arrays are replaced, never written to."""

    request: int
    seed: int
    tokens: Array
    committed_at: Array
    confidence: Array
    windows: Windows
    fresh: int
    """Where new text begins that a stop string may end; the canvas' length where masks lie between given tokens."""
    negative: Array | None = None
    """What guidance leads away from, in the place of the prompt; None: the prompt masked."""
    step: int = 0
    window: int = 0
    """The window that is open; their number when all are done."""
    inside: int = 0
    """Steps taken in it."""
    returned: Array | None = None
    """Which tokens were covered again, bool: for the second time they stay."""
    evaluations: int = 0
    """Passes of the network over the row."""
    computed: int = 0
    """Tokens in those passes."""
    reused: int = 0
    """Tokens whose keys and values came out of a cache instead."""
    stopped: bool = False

    @property
    def final(self) -> bool:
        return self.stopped or self.window == len(self.windows)

    @property
    def inside_T(self) -> Array:
        """Which positions belong to the open window, bool."""
        return self.windows.window_T == self.window

    @property
    def open_M(self) -> Array:
        """The masks that may be committed now."""
        return np.flatnonzero((self.committed_at < 0) & self.inside_T)

    def clock(self, left: int) -> Clock:
        return Clock(self.inside, self.windows.steps[self.window], self.windows.masks[self.window], left)

    def without_gap(self) -> int:
        """Fresh tokens before the first one that is still covered."""
        covered = self.committed_at[self.fresh :] < 0
        return int(covered.argmax()) if covered.any() else len(covered)

    def row(self) -> Row:
        arrays = self.tokens.copy(), self.committed_at.copy(), self.confidence.copy()
        return Row(self.request, *arrays, self.final, self.evaluations, self.computed, self.reused)


@dataclass
class MaskedState:
    """The live rows and what is cached of them. ``begun`` counts the requests so far: ``join`` numbers the other state's after these."""

    rows: list[Canvas]
    begun: int
    context: Any
    """A ``discrete.context.Context``, row for row."""
    step: int = 0

    @property
    def live(self) -> int:
        return len(self.rows)

    def select(self, rows: Sequence[int]) -> MaskedState:
        return replace(self, rows=[self.rows[row] for row in rows], context=self.context.select(rows))

    def join(self, other: MaskedState) -> MaskedState:
        renumbered = [replace(row, request=row.request + self.begun) for row in other.rows]
        context = self.context.join(other.context)
        return MaskedState(self.rows + renumbered, self.begun + other.begun, context, max(self.step, other.step))
