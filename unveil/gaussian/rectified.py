"""Rectified flow beyond its training loss: transport by the flow, reflow pairs, distillation to k steps, straightness.

Under alpha = 1 - t, sigma = t the velocity is (x - D) / t: any denoiser gives it, whatever it was trained under. Samples run from noise at
t = 1 to data at t = 0 (the paper has it the other way round).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil.errors import UserError
from unveil.gaussian.bound import Denoise
from unveil.gaussian.coupling import Pairs
from unveil.gaussian.density import UniformLevels
from unveil.gaussian.level import Level
from unveil.gaussian.objective import GaussianObjective
from unveil.gaussian.weighting import flow


class Transported(NamedTuple):
    data: Tensor
    straightness_B: Tensor
    """The integral over t of ||(Z1 - Z0) - v(Z_t, t)||^2 along each sample's trajectory, float64."""


@torch.no_grad()
def transport(
    denoiser: Denoise, noise: Tensor, steps: int = 100, *, n_max: float = math.inf, condition: Mapping[str, Any] | None = None
) -> Transported:
    """Follow the flow from standard normal noise ``[B, ...]`` to data by the midpoint rule, and measure how straight it goes.

    Second order, two evaluations a step, none of them at t = 0, where the velocity is 0 / 0. The displacement of a sample is the mean of
    its midpoint velocities, so its straightness is their variance: 0 exactly where all are equal. Its mean over samples is S of Liu et
    al. (2023), 0 if and only if one Euler step is exact.

    Args:
        n_max: the noise level to begin at, x = t noise with t = n_max / (1 + n_max): that of its training (80 for EDM's) where the
            network cannot be asked at t = 1, from noise alone.

    Raises:
        UserError: fewer than 1 step, n_max not above 0.
    """
    if steps < 1:
        raise UserError("reflow.steps", f"got {steps}", "choose 1 or more")
    if not n_max > 0.0:
        raise UserError("reflow.n_max", f"got {n_max}", "choose a noise level above 0")

    def velocity(x: Tensor, t: float) -> Tensor:
        denoised = denoiser(x.to(noise), Level(1.0 - t, t), **(condition or {}))
        return (x - denoised.double()) / t

    start = 1.0 / (1.0 + 1.0 / n_max)
    x, h = start * noise.double(), start / steps
    mean, scatter = torch.zeros_like(x), torch.zeros_like(x)
    for i in range(steps):
        t = start * (1.0 - i / steps)
        v = velocity(x - 0.5 * h * velocity(x, t), t - 0.5 * h)
        x = x - h * v
        away = v - mean
        mean = mean + away / (i + 1)
        scatter = scatter + away * (v - mean)
    return Transported(x.to(noise), (h * scatter).flatten(1).sum(1))


def reflow_pairs(
    denoiser: Denoise, noise: Tensor, steps: int = 100, *, n_max: float = math.inf, condition: Mapping[str, Any] | None = None
) -> Pairs:
    """Noise and what the flow makes of it (Liu et al. 2023); arguments as of ``transport``.

    To reflow, go on training from the teacher's weights with the flow's objective on such pairs, the noise of a pair taken for eps; to
    reflow again, make pairs with the student. The pairs of a conditional teacher are trained with the conditions they were made under.
    """
    return Pairs(noise, transport(denoiser, noise, steps, n_max=n_max, condition=condition).data)


def distillation(k: int) -> GaussianObjective:
    """The loss that fits a flow to k Euler steps: the velocity's, on reflow pairs, at the k times j/k alone, j = 1 ... k, at which those
    steps ask for it (Liu et al. 2023). k = 1 is the one-step student z - v(z, 1).

    Raises:
        UserError: k below 1.
    """
    if k < 1:
        raise UserError("distillation.steps", f"got {k}", "choose 1 or more")
    return GaussianObjective(flow, UniformLevels((*(j / (k - j) for j in range(1, k)), math.inf)))
