"""Experts in the place of a feed-forward. Free of torch, as ``unveil.config``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unveil.ranges import Count, Natural, NonNegative, Positive


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """Many small feed-forwards, of which every token goes to a few (DeepSeekMoE, arXiv 2401.06066; DeepSeek-V3, section 2.1.2)."""

    routed: Natural = 0
    """Experts to choose from; 0 means a plain feed-forward in every layer."""
    top_k: Count = 2
    """Of them, that a token goes to."""
    shared: Natural = 0
    """Experts beside them that every token goes to."""
    hidden: Count = 128
    """Width of one expert's feed-forward."""
    dense: Natural = 0
    """First layers that keep a plain feed-forward, of ``model.hidden``."""
    gate: Literal["sigmoid", "softmax"] = "sigmoid"
    """Of an expert's score."""
    groups: Count = 1
    """Equal parts of the experts; a group's score is the sum of its two best choices with ``sigmoid``, its best with ``softmax``."""
    kept_groups: Count = 1
    """Best groups, in which a token chooses."""
    normalise: bool = True
    """The weights of the chosen experts add up to ``scale``; else they are their scores times it."""
    scale: Positive = 1.0
    bias: bool = True
    """Add a bias to the scores that choose, and only there, which balances the load without a loss."""
    bias_rate: NonNegative = 1e-3
    """By how much it moves in a step."""
    balance: NonNegative = 1e-4
    """Weight of a loss that balances the load: sum over layers of E sum_i f_i P_i, which is 1 at perfect balance."""
    balance_over: Literal["document", "pack"] = "document"
    """Over each document alone (DeepSeek-V3, eqs. 17 to 20), or over all tokens of a pack (the auxiliary loss of Switch and GShard)."""
