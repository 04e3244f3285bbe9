"""The sections of a recipe that DeepSeek's networks add to the transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from unveil.ranges import Count, Natural, NonNegative, Positive, Range


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """Multi-head latent attention (DeepSeek-V2, section 2.1): keys and values of all heads out of one short vector per token."""

    width: Natural = 0
    """Of the latent that is cached; 0 means grouped-query attention instead."""
    query: Natural = 0
    """Rank of the queries; 0 means full rank."""
    plain: Count = 128
    """Values of a head's query and key that know no position."""
    rotary: Annotated[int, Range(2)] = 64
    """Values that are rotated, the key's shared by all heads; even."""
    value: Count = 128
    """Values of a head's value."""


@dataclass(frozen=True, kw_only=True)
class YarnConfig:
    """Rotary positions stretched to a longer context (YaRN, arXiv 2309.00071)."""

    factor: Annotated[float, Range(1)] = 1.0
    """Of the context; 1 stretches nothing."""
    original: Count = 4096
    """The context in training."""
    fast: Positive = 32.0
    """Rotations within the original context from which on a frequency is left alone."""
    slow: Positive = 1.0
    """Rotations below which it is divided by the factor."""
    mscale: NonNegative = 1.0
    """The rotated values grow by (0.1 mscale ln factor + 1) over the same with mscale_all."""
    mscale_all: NonNegative = 0.0
    """Scores grow by the square of 0.1 mscale_all ln factor + 1; 0 leaves them."""


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """A mixture of experts in the place of the feed-forward (DeepSeekMoE, arXiv 2401.06066; DeepSeek-V3, section 2.1.2)."""

    routed: Natural = 0
    """Experts to choose from; 0 means a dense feed-forward."""
    active: Count = 4
    """Of them, for each token."""
    shared: Natural = 1
    """Experts that every token goes through."""
    hidden: Natural = 0
    """Width of one expert; 0 means the dense width over ``active + shared``, rounded up to a multiple of 32."""
    dense: Natural = 1
    """First blocks that keep the dense feed-forward."""
    gate: Literal["sigmoid", "softmax"] = "sigmoid"
    groups: Count = 1
    """Groups that the experts are divided into."""
    active_groups: Count = 1
    """Groups that a token's experts come from."""
    normalized: bool = True
    """Gates of the chosen experts sum to ``scale``."""
    scale: Positive = 1.0
    bias_rate: NonNegative = 0.001
    """By how much the routing bias of an expert moves after each step, up where it had less than its share (loss-free balancing); 0 has
    no bias."""
    balance: NonNegative = 0.0001
    """Weight of the sequence-wise balance loss."""
