"""How many masks a step commits, and which.

The adaptive rules commit what passes a test of the proposals and, where fewer pass than the steps left ask for, the first in order
beside it: at least one token a step. The blind rules choose before the network is asked: where nothing is chosen it need not be.
M open masks of one row; indices into them, ascending.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from unveil.config import MaskedSamplerConfig
from unveil.discrete.order import Proposals, first, ranked
from unveil.discrete.window import quota

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Clock:
    """Where a row stands in its window."""

    step: int
    """Steps taken in the window."""
    steps: int
    """The window's share."""
    masks: int
    """Masks of the window when nothing was committed."""
    left: int
    """Masks of it now."""

    @property
    def due(self) -> int:
        """Tokens to commit now: what the even quota has left over less what it plans to leave, so that the last step leaves none.

        Ahead of the plan it is one: no step goes by without a commit.
        """
        steps = min(self.steps, self.masks)
        planned = self.masks - sum(quota(self.masks, steps)[: self.step + 1])
        return min(max(self.left - planned, 1), self.left)

    @property
    def last(self) -> bool:
        """Whether no step comes after this one in the window."""
        return self.step + 1 >= self.steps

    @property
    def times(self) -> tuple[float, float]:
        """The step's times t and s < t on an even grid from 1 to 0."""
        return 1.0 - self.step / self.steps, 1.0 - (self.step + 1) / self.steps


def threshold(p: Proposals, config: MaskedSamplerConfig) -> Array:
    """Confidence of at least ``threshold`` (Fast-dLLM; Wu et al. 2025, arXiv 2505.22618)."""
    return np.flatnonzero(p.confidence_M >= config.threshold)


def factor(p: Proposals, config: MaskedSamplerConfig) -> Array:
    """The longest run from the surest on in which the k-th has (k + 1)(1 - confidence) <= ``factor`` (Fast-dLLM, algorithm 1)."""
    order = ranked(p.confidence_M)
    passes = p.confidence_M[order] >= 1.0 - config.factor / (np.arange(len(order)) + 2.0)
    return np.sort(order[np.logical_and.accumulate(passes)])


def entropy_bound(p: Proposals, config: MaskedSamplerConfig) -> Array:
    """The longest run from the lowest entropy on whose sum less its greatest is at most ``entropy_bound``.

    That difference bounds the mutual information which drawing the tokens apart ignores (Ben-Hamu et al. 2025, arXiv 2505.24857, eq. 5).
    """
    order = ranked(-p.entropy_M)
    # sorted, so the greatest is the last: the sum of those before it, which an infinite entropy at the end does not touch
    before = np.concatenate([[0.0], np.cumsum(p.entropy_M[order])[:-1]]) if len(order) else np.zeros(0)
    return np.sort(order[(before <= config.entropy_bound) & np.isfinite(p.entropy_M[order])])


ADAPTIVE: dict[str, Callable[[Proposals, MaskedSamplerConfig], Array]] = {
    "threshold": threshold,
    "factor": factor,
    "entropy-bound": entropy_bound,
}
BLIND = ("first-hitting", "ancestral")
"""Rules that draw where they commit, each mask alike."""
JUMPS = ("tau-leaping", "tweedie")
"""Steps of a score model: what a token turns into is drawn with whether it turns."""


def chosen(score_M: Array, p: Proposals, clock: Clock, config: MaskedSamplerConfig) -> Array:
    """What ``config.commit``, a rule that looks at the proposals, commits; ``score_M`` is the order's."""
    if config.commit == "quota":
        return first(score_M, clock.due)
    passing = ADAPTIVE[config.commit](p, config)
    if len(passing) >= clock.due:
        return passing
    rest = score_M.copy()
    rest[passing] = np.inf
    return first(rest, clock.due)


def revealed(uniforms_M: Array, rate: float) -> Array:
    """Each mask with probability ``rate``: of an ancestral step from t to s, (alpha_s - alpha_t) / (1 - alpha_t) (MDLM, eq. 6)."""
    return np.flatnonzero(uniforms_M < rate)
