"""Which mask comes first: a score per open mask, the highest goes first, ties to the lowest index.

M open masks of one row. Everything is float64: rounding makes ties, and ties change the order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Proposals:
    """What the network proposes for the open masks of a row. Statistics are of the untempered distribution."""

    tokens_M: Array
    probability_M: Array
    """Of the proposed token."""
    confidence_M: Array
    """The same, but minus infinity where the token must wait until nothing else is left."""
    entropy_M: Array
    """Of the whole distribution, nats."""
    margin_M: Array
    """Probability of the most probable token less that of the second."""

    def last(self, waits_M: Array) -> Proposals:
        """The same, those that wait being the least certain there can be."""
        low, high = np.where(waits_M, -np.inf, 0.0), np.where(waits_M, np.inf, 0.0)
        return replace(self, confidence_M=self.confidence_M + low, entropy_M=self.entropy_M + high, margin_M=self.margin_M + low)


ORDERS: dict[str, Callable[[Proposals], Array]] = {
    "confidence": lambda p: p.confidence_M,
    "entropy": lambda p: -p.entropy_M,
    "margin": lambda p: p.margin_M,
    "left-to-right": lambda p: np.where(np.isneginf(p.confidence_M), -np.inf, 0.0),
}
"""``confidence``: LLaDA, Fast-dLLM; ``entropy`` and ``margin`` (Kim et al. 2025, arXiv 2502.06768): Dream. ``random`` needs none."""


def waiting(score_M: Array, proposals: Proposals) -> Array:
    """A score that was made without the proposals, those that wait put last."""
    return np.where(np.isneginf(proposals.confidence_M), -np.inf, score_M)


def ranked(score_M: Array) -> Array:
    """Indices from the highest score to the lowest, ties by the lowest index."""
    return np.argsort(-score_M, kind="stable")


def first(score_M: Array, count: int) -> Array:
    """Indices of the ``count`` highest scores, ascending."""
    return np.sort(ranked(score_M)[:count])
