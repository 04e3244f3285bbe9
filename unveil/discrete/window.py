"""Where a step may commit: the masks of a row are cut into windows that are uncovered left to right, each in its share of the steps.

Semi-autoregressive windows count masks; those of a block model stand where its blocks do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from unveil.errors import UserError

Array = np.ndarray[Any, Any]


def quota(masks: int, steps: int) -> list[int]:
    """Tokens to commit at each of ``steps``: masks // steps, and one more in the first masks % steps. Sums to ``masks``."""
    each, more = divmod(masks, steps)
    return [each + (step < more) for step in range(steps)]


@dataclass(frozen=True)
class Windows:
    """The plan of a row; it never changes.

    ``window_T`` is the window of each position that was covered at the start, -1 where a token was given.
    """

    window_T: Array
    masks: tuple[int, ...]
    """Of each window."""
    steps: tuple[int, ...]
    """Each window's share of the steps."""
    first: tuple[int, ...]
    """Its first mask."""
    end: tuple[int, ...]
    """One beyond the last position it needs: its last mask, or the end of its block."""

    def __len__(self) -> int:
        return len(self.masks)


def windows(hidden_T: Array, size: int, steps: int, block: int = 0) -> Windows:
    """Cut the hidden positions into windows and share ``steps`` out over them.

    Args:
        hidden_T: bool; which positions are to be uncovered.
        size: masks in a window, 0 for one window over all. For a block model: tokens, a divisor of the block; 0 for the block.
        steps: in all; 0 means one per mask.
        block: of the network's layout; 0 where every token sees every other.

    Raises:
        UserError: fewer steps than windows.
    """
    at = np.flatnonzero(hidden_T)
    place_M = at // (size or block) if block else np.arange(len(at)) // (size or max(len(at), 1))
    _, index_M, masks = np.unique(place_M, return_inverse=True, return_counts=True)
    if steps and steps < len(masks):
        remedy = "a window" if not block else "a block model with a block"
        raise UserError(
            "sampler.steps",
            f"got {steps} steps for {len(masks)} windows of {size or block} tokens",
            f"take at least {len(masks)} steps or {remedy} of at least {-(-len(at) // steps)}",
        )
    window_T = np.full(len(hidden_T), -1)
    window_T[at] = index_M
    shares = quota(steps, len(masks)) if steps else masks.tolist()
    firsts = [int(at[index_M == w][0]) for w in range(len(masks))]
    ends = [int(at[index_M == w][-1]) + 1 for w in range(len(masks))]
    if block:  # the network sees whole blocks
        ends = [min(-(-end // block) * block, len(hidden_T)) for end in ends]
    return Windows(window_T, tuple(masks.tolist()), tuple(shares), tuple(firsts), tuple(ends))
