"""Settings of an adapter: a few weights that are trained on a base that is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unveil.ranges import Natural, Positive, Share


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """LoRA (Hu et al. 2021): a matrix W of the blocks becomes W + (alpha / rank) B A; W is ``training.initial``'s and stays as it is."""

    rank: Natural = 0
    """Rows of A and columns of B; 0 trains all weights, without an adapter."""
    alpha: Positive = 16.0
    dropout: Share = 0.0
    """Of what goes into A."""
    targets: tuple[str, ...] = ()
    """Which matrices, as qkv, out, gate_up, down; empty takes all of the blocks."""
    weights: Literal["full", "int8", "nf4"] = "full"
    """How the base's matrices are held while the adapter is trained (QLoRA), and when it is used."""
    base: str = ""
    """The hash of the base's weights; it is written here when training begins."""
