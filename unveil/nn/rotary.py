"""Rotary position embedding (Su et al. 2021, eq. 34), the two halves of a head as the pairs, as in Llama's weights."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.config import YarnConfig


class Rotation(NamedTuple):
    """Cosines and signed sines of a pack's positions, ``[T, 1, 2, E/2]``, computed once and used by every layer."""

    cos: Tensor
    sin: Tensor


def rotation(positions_T: Tensor, head_width: int, theta: float, dtype: torch.dtype, yarn: YarnConfig | None = None) -> Rotation:
    """Angles ``position * frequency``, formed in float32 (float64 for a float64 network) before they are cast to ``dtype``."""
    wide = torch.promote_types(dtype, torch.float32)
    angles = positions_T.to(wide)[:, None, None] * frequencies(head_width, theta, yarn).to(positions_T.device, wide)
    cos, sin = angles.cos(), angles.sin()
    if yarn is not None and yarn.factor > 1:
        grown = magnitude(yarn.factor, yarn.mscale) / magnitude(yarn.factor, yarn.mscale_all)
        cos, sin = cos * grown, sin * grown
    cos, sin = cos.to(dtype), sin.to(dtype)
    return Rotation(torch.stack((cos, cos), dim=-2), torch.stack((-sin, sin), dim=-2))


def frequencies(head_width: int, theta: float, yarn: YarnConfig | None = None) -> Tensor:
    """``theta^(-2i/E)``, float64 ``[E/2]``. YaRN (arXiv 2309.00071, eq. 23) divides by its factor those that turn less than ``slow``
    times within the original context, leaves those alone that turn more than ``fast`` times, and goes over in between."""
    plain = theta ** -(torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    if yarn is None or yarn.factor <= 1:
        return plain

    def turning(rotations: float) -> float:
        return head_width * math.log(yarn.original / (2 * math.pi * rotations)) / (2 * math.log(theta))

    low, high = max(math.floor(turning(yarn.fast)), 0), min(math.ceil(turning(yarn.slow)), head_width - 1)
    share = ((torch.arange(head_width // 2, dtype=torch.float64) - low) / max(high - low, 1e-3)).clamp(0, 1)
    return plain * (1 - share) + plain / yarn.factor * share


def magnitude(factor: float, mscale: float) -> float:
    """``0.1 mscale ln(factor) + 1``: by how much YaRN lets scores grow where a context is stretched (its eq. 22, as DeepSeek writes it)."""
    return 0.1 * mscale * math.log(factor) + 1


def rotate(x_TNE: Tensor, by: Rotation) -> Tensor:
    """Turn each pair (i, i + E/2) of every head by its position's angle; where ``by`` has fewer angles, those of its first part alone."""
    turned = 2 * by.cos.shape[-1]
    if turned < x_TNE.shape[-1]:
        return torch.cat((rotate(x_TNE[..., :turned], by), x_TNE[..., turned:]), dim=-1)
    # the two halves as a dimension of their own: a compiler reads runs of E/2 this way, where it gathers single values for a roll
    x = x_TNE.unflatten(-1, (2, -1))
    return torch.addcmul(x * by.cos, x.flip(-2), by.sin).flatten(-2)
