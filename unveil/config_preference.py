"""The section of recipes for learning from preferences. Free of torch, as ``unveil.config``."""

from __future__ import annotations

from dataclasses import dataclass

from unveil.ranges import Count, NonNegative


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    """Pairs of answers of which one is preferred: it is to gain likelihood over the other, relative to the model that training begins with
    (DPO; of a model whose likelihood is only bounded, VRPO)."""

    beta: NonNegative = 0.0
    """Reward per nat of that gain; above 0 the sources are pairs (kind ``preference``)."""
    draws: Count = 8
    """Of a bound: how often each answer is masked, every time as much as another time says (LLaDA 1.5). The model and the one it began with
    see the same."""
