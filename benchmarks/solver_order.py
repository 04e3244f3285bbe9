"""Orders of convergence on a flow whose solution is known, ours and those of diffusers' schedulers on the same noise levels.

A 1-D mixture of three normals and its exact denoiser, from n = 10 to 0.05 on Karras' grid, 64 starts, float64 on both sides (their Euler
casts to float32, which its error does not show). An order is
the slope of log error (root mean square over the starts) over log steps for N = 64, 128, 256, 512; ``spread`` is the range of the three
orders between neighbouring N, and ``floor`` is what the theory says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Row
from unveil.gaussian.exact import Mixture
from unveil.gaussian.grid import Grid, karras
from unveil.gaussian.path import EDM
from unveil.gaussian.solvers import SOLVERS, dopri5

STEPS = (64, 128, 256, 512)
LOW, HIGH = 0.05, 10.0
MIXTURE = Mixture([0.3, 0.5, 0.2], [[-1.0], [0.4], [2.0]], 0.25)

Solve = Callable[[Sequence[float], Tensor], Tensor]
"""(noise levels, y at the first) -> y at the last."""


def rows() -> list[Row]:
    """One per solver that diffusers has too."""
    multistep = diffusers.DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler
    cases: list[tuple[str, dict[str, Any], Solve, str]] = [
        ("ddim", {}, scaled(multistep[0], solver_order=1), "DPMSolverMultistepScheduler, order 1"),
        ("euler", {}, euler, "EulerDiscreteScheduler"),
        ("heun", {}, heun, "HeunDiscreteScheduler"),
        ("adams-bashforth", {"order": 2}, lms(2), "LMSDiscreteScheduler, order 2"),
        ("adams-bashforth", {"order": 3}, lms(3), "LMSDiscreteScheduler, order 3"),
        ("dpmpp-2m", {}, scaled(multistep[0], solver_order=2), "DPMSolverMultistepScheduler, order 2"),
        ("dpmpp-3m", {}, scaled(multistep[0], solver_order=3), "DPMSolverMultistepScheduler, order 3"),
        *(
            ("unipc", {"order": order}, scaled(multistep[1], solver_order=order), f"UniPCMultistepScheduler, order {order}")
            for order in (1, 2, 3)
        ),
    ]
    return [row(*case) for case in cases]


def row(name: str, options: dict[str, Any], peer: Solve, peer_name: str, steps: Sequence[int] = STEPS) -> Row:
    """The two orders. ``ratio`` is ours / theirs."""
    start, end = problem()
    traits = SOLVERS[name].traits(**options)

    def ours(levels: Sequence[float], y: Tensor) -> Tensor:
        return SOLVERS[name](MIXTURE.denoise, Grid(EDM(), tuple(levels), clean=False), x=y, dtype=torch.float64, **options)

    order, between = slope(ours, start, end, steps)
    theirs, _ = slope(peer, start, end, steps)
    full = " ".join([name, *(f"{key} {value}" for key, value in options.items())])
    peer_name = f"diffusers {diffusers.__version__} {peer_name}"
    return Row(full, order, theirs, peer_name, order / theirs, "order", max(between) - min(between), float(traits.order))


def problem() -> tuple[Tensor, Tensor]:
    """Starts and ends, ``[64, 1]``, the ends to 1e-12."""
    start = HIGH * torch.randn(64, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = karras(EDM(), 2, n_min=LOW, n_max=HIGH, clean=False)
    return start, dopri5(MIXTURE.denoise, ends, x=start, dtype=torch.float64, rtol=1e-13, atol=1e-13)


def slope(solve: Solve, start: Tensor, end: Tensor, steps: Sequence[int]) -> tuple[float, list[float]]:
    """The order over all numbers of steps, and between neighbouring ones."""
    grids = [karras(EDM(), count + 1, n_min=LOW, n_max=HIGH, clean=False).times for count in steps]
    errors = np.array([(solve(levels, start) - end).square().mean().sqrt().item() for levels in grids])
    order = -np.polyfit(np.log2(np.array(steps)), np.log2(errors), 1)[0]
    return float(order), (np.log2(errors[:-1] / errors[1:]) / np.diff(np.log2(np.array(steps)))).tolist()


def drive(scheduler: Any, sigmas: Sequence[float], y: Tensor, alphas: Sequence[float], **step: Any) -> Tensor:
    """Through a scheduler whose table of noise levels is replaced by ours, in float64: it takes eps, and carries alpha y."""
    count = len(sigmas) - 1
    scheduler.set_timesteps(count)
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
    scheduler.timesteps = torch.arange(count, dtype=torch.float64)
    scheduler.num_inference_steps = count
    x = y * alphas[0]
    for i, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(x, t)  # only what they scale for: the network here takes y
        y = x / alphas[i]
        eps = (y - MIXTURE.denoise(y, sigmas[i])) / sigmas[i]
        x = scheduler.step(eps, t, x, **step).prev_sample
    return x / alphas[-1]


def scaled(kind: Any, **options: Any) -> Solve:
    """A scheduler on the variance-preserving scale. Its lowering of the order in the last steps is for a grid that ends in 0, and off."""

    def solve(levels: Sequence[float], y: Tensor) -> Tensor:
        alphas = [1.0 / math.sqrt(1.0 + n**2) for n in levels]
        return drive(kind(lower_order_final=False, **options), levels, y, alphas)

    return solve


def euler(levels: Sequence[float], y: Tensor) -> Tensor:
    return drive(diffusers.EulerDiscreteScheduler(), levels, y, [1.0] * len(levels))


def heun(levels: Sequence[float], y: Tensor) -> Tensor:
    """Its list has every inner level twice: one for each stage."""
    twice = [levels[0], *(n for n in levels[1:-1] for _ in range(2)), levels[-1]]
    # the last correction is asked at the last level
    return drive(diffusers.HeunDiscreteScheduler(), [*twice, levels[-1]], y, [1.0] * (len(twice) + 1))


def lms(order: int) -> Solve:
    return lambda levels, y: drive(diffusers.LMSDiscreteScheduler(), levels, y, [1.0] * len(levels), order=order)
