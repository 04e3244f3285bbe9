"""Rotary position embedding (Su et al. 2021, eq. 34), the two halves of a head as the pairs, as in Llama's weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """Cosines and signed sines of a pack's positions, ``[T, 1, E]``, computed once and used by every layer."""

    cos: Tensor
    sin: Tensor


def rotation(positions_T: Tensor, head_width: int, theta: float, dtype: torch.dtype) -> Rotation:
    """Angles ``position * theta^(-2i/E)``, formed in float32 (float64 for a float64 network) before they are cast to ``dtype``."""
    wide = torch.promote_types(dtype, torch.float32)
    exponents = torch.arange(0, head_width, 2, device=positions_T.device, dtype=torch.float64) / head_width
    angles = positions_T.to(wide)[:, None, None] * (theta**-exponents).to(wide)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return Rotation(torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1))


def rotate(x_TNE: Tensor, by: Rotation) -> Tensor:
    """Turn each pair (i, i + E/2) of every head by its position's angle."""
    return torch.addcmul(x_TNE * by.cos, x_TNE.roll(x_TNE.shape[-1] // 2, -1), by.sin)
