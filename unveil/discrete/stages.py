"""What changes while training goes on, from autoregression to diffusion: who sees what follows, or how large a block is.

Both are functions of the step alone, so a resumed run, every rank and every micro-batch of a step agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from unveil.data.noise import generator
from unveil.nn.attention import TILE
from unveil.nn.layout import Annealed


def open_share(over: float, step: int, steps: int) -> float:
    """The probability min(1, (step + 1) / n) with which an edge to a later token is open, n being the share ``over`` of the steps, rounded
    up (DiffuLLaMA; Gong et al. 2024, section 3.2)."""
    return min(1.0, (step + 1) / max(1, math.ceil(over * steps)))


def opened(share: float, step: int, seed: int) -> Annealed | None:
    """The layout of a step, its pattern drawn for the run ``seed`` and the step; None once every edge is open."""
    if share >= 1:
        return None
    return Annealed(torch.from_numpy(generator(seed, 0, step, "open edges").random((TILE, TILE)) < share))


def block_at(growth: Sequence[int], block: int, over: float, step: int, steps: int) -> int:
    """Tokens of a block in a step: those of ``growth`` in turn, in equal parts of the share ``over`` of the steps, then ``block``."""
    growing = math.ceil(over * steps)
    return growth[step * len(growth) // growing] if growth and step < growing else block
