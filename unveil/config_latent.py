"""What DeepSeek-V2 and V3 add to a transformer: a compressed cache, positions stretched to long contexts, predictions further ahead."""

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
    """Values of a head's value, at most ``plain + rotary``."""


@dataclass(frozen=True, kw_only=True)
class YarnConfig:
    """Rotary positions stretched to a longer context (YaRN, arXiv 2309.00071)."""

    factor: Annotated[float, Range(1)] = 1.0
    """Of the context; 1 stretches nothing."""
    original: Count = 4096
    """The context before."""
    fast: Positive = 32.0
    """Rotations within that context from which on a frequency is left alone."""
    slow: Positive = 1.0
    """Rotations below which it is divided by the factor."""
    mscale: NonNegative = 1.0
    """Rotated values grow by 0.1 mscale ln(factor) + 1, over the same of ``mscale_all``."""
    mscale_all: NonNegative = 0.0
    """With latent attention, scores grow by the square of 0.1 mscale_all ln(factor) + 1."""


@dataclass(frozen=True, kw_only=True)
class MTPConfig:
    """Multi-token prediction (DeepSeek-V3, section 2.2): further blocks that predict the tokens after the next one."""

    depths: Natural = 0
    """Tokens predicted beyond the next one; each depth is a block, of the trunk's kind, and three norms."""
    carry: Literal["normed", "raw"] = "normed"
    """What a depth takes over from the trunk, or from the depth before it: the state behind its final norm, or the one before it. The
    paper leaves it open; released weights are run with ``normed``."""
