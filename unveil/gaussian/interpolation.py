"""Between two latents: between two images lie the images of what is between their latents (Song et al. 2021, DDIM, section 5.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from unveil.gaussian.output import along

PARALLEL = 1e-6
"""sin of the angle below which the straight line is as good, and better conditioned."""


def slerp(start: Tensor, end: Tensor, share: float | Tensor) -> Tensor:
    """Spherical linear interpolation, sample by sample: [sin((1 - share) w) start + sin(share w) end] / sin w, w the angle between them.

    Independent normal latents are almost orthogonal. What lies between them on the sphere keeps their norm, as a sample of the prior
    must; the straight line's middle is shorter by the square root of 2.

    Args:
        start, end: ``[B, ...]``.
        share: in [0, 1], a number or ``[B]``.

    Raises:
        ValueError: different shapes.
    """
    if start.shape != end.shape:
        raise ValueError(f"latents of one shape, got {tuple(start.shape)} and {tuple(end.shape)}")
    a, b = start.double().flatten(1), end.double().flatten(1)
    cosine_B = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    angle_B = torch.acos(cosine_B.clamp(-1.0, 1.0))
    share_B = torch.as_tensor(share, dtype=torch.float64, device=a.device).expand(len(a))
    sine_B = torch.sin(angle_B)
    straight_B = sine_B < PARALLEL
    divisor_B = torch.where(straight_B, 1.0, sine_B)
    first_B = torch.where(straight_B, 1.0 - share_B, torch.sin((1.0 - share_B) * angle_B) / divisor_B)
    second_B = torch.where(straight_B, share_B, torch.sin(share_B * angle_B) / divisor_B)
    return along(first_B, start) * start + along(second_B, end) * end
