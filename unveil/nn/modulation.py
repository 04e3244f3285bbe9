"""What a network of tokens is told beside them: the noise level, by shift, scale and gate (adaLN-Zero, Peebles and Xie 2023)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.nn.affine import Affine
from unveil.nn.timestep import sinusoids

SINUSOIDS = 256
"""Features of the noise level."""


class Told(NamedTuple):
    """Conditions ``[X, C]`` and, where a token's is looked up, which one it has, int64 ``[T]``; else X is 1 or T."""

    condition_XC: Tensor
    index_T: Tensor | None = None


class Level(nn.Module):
    """``silu(mlp(sinusoids(level)))``, the condition of MDLM and SEDD; their level is sigma = -log alpha."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.leave = Affine(SINUSOIDS, width), Affine(width, width)

    def forward(self, level_X: Tensor, dtype: torch.dtype) -> Tensor:
        return F.silu(self.leave(F.silu(self.enter(sinusoids(level_X, SINUSOIDS).to(dtype)))))


class Tell(Affine):
    """A condition to ``parts`` vectors of the network's width for each token, ``[T, D]``, or ``[1, D]`` where all are told the same."""

    def __init__(self, condition: int, width: int, parts: int) -> None:
        super().__init__(condition, parts * width, slices=(width,) * parts)
        self.parts = parts

    def vectors(self, told: Told) -> tuple[Tensor, ...]:
        rows = self(told.condition_XC)
        return (rows if told.index_T is None else rows.index_select(0, told.index_T)).chunk(self.parts, dim=-1)


def modulated(x_TD: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``x (1 + scale) + shift``."""
    return torch.addcmul(shift, x_TD, 1 + scale)
