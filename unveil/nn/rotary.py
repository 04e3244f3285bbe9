"""Rotary position embedding (Su et al. 2021, eq. 34), the two halves of a head as the pairs, as in Llama's weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """Cosines and signed sines of a pack's positions, ``[T, 1, 2, E/2]``, computed once and used by every layer."""

    cos: Tensor
    sin: Tensor


def rotation(positions_T: Tensor, head_width: int, theta: float, dtype: torch.dtype) -> Rotation:
    """Angles ``position * theta^(-2i/E)``, formed in float32 (float64 for a float64 network) before they are cast to ``dtype``."""
    wide = torch.promote_types(dtype, torch.float32)
    exponents = torch.arange(0, head_width, 2, device=positions_T.device, dtype=torch.float64) / head_width
    angles = positions_T.to(wide)[:, None, None] * (theta**-exponents).to(wide)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return Rotation(torch.stack((cos, cos), dim=-2), torch.stack((-sin, sin), dim=-2))


def rotate(x_TNE: Tensor, by: Rotation) -> Tensor:
    """Turn each pair (i, i + E/2) of every head by its position's angle."""
    # the two halves as a dimension of their own: a compiler reads runs of E/2 this way, where it gathers single values for a roll
    x = x_TNE.unflatten(-1, (2, -1))
    return torch.addcmul(x * by.cos, x.flip(-2), by.sin).flatten(-2)
