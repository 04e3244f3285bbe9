"""What a solver costs beyond the network: steps per second with a network that answers at once, on 16 images of 3 x 32 x 32.

A step is one answer of the network and all that is done with it: Heun's two stages are two. Both sides carry a float32 state; ours has
a seed per sample, theirs one generator for the batch. The floor is one pass that reads two such tensors and writes one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import Tensor

from benchmarks.measure import Block, Row, compare, rate
from unveil.environment import device
from unveil.gaussian.denoiser import Denoiser
from unveil.gaussian.family import evaluations
from unveil.gaussian.grid import Grid, trailing, uniform_to_zero
from unveil.gaussian.level import Path
from unveil.gaussian.path import DDPM, RectifiedFlow
from unveil.gaussian.solvers import SOLVERS

SHAPE = (16, 3, 32, 32)
STEPS, RUNS = 50, 8
"""Of a trajectory, and trajectories of a block: some hundredths of a second."""

CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "ddim": ("eps", {}, "DDIMScheduler"),
    "dpmpp-2m": ("eps", {}, "DPMSolverMultistepScheduler"),
    "euler": ("eps", {}, "EulerDiscreteScheduler"),
    "heun": ("eps", {}, "HeunDiscreteScheduler"),
    "ancestral": ("eps", {}, "DDPMScheduler"),
    "flow": ("flow", {"clock": "time"}, "FlowMatchEulerDiscreteScheduler"),
}
"""Row -> what the network predicts, options, their scheduler. "flow" is Euler on rectified flow."""


def rows() -> list[Row]:
    return [row(name) for name in CASES]


def row(name: str, steps: int = STEPS, runs: int = RUNS, pairs: int = 7) -> Row:
    _, _, scheduler = CASES[name]
    return compare(
        f"{name}, float32 state",
        ours(name, steps, runs),
        theirs(scheduler, steps, runs),
        peer_name=f"diffusers {diffusers.__version__} {scheduler}, float32, eager",
        unit="steps/s",
        floor=floor(),
        pairs=pairs,
    )


def constant() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(device())


def ours(name: str, steps: int, runs: int) -> Block:
    predicts, options, _ = CASES[name]
    answer = constant()
    path: Path = RectifiedFlow() if predicts == "flow" else DDPM()
    grid: Grid = uniform_to_zero(path, steps) if predicts == "flow" else trailing(path, steps)
    denoiser = Denoiser(lambda x, t: answer, predicts, path)  # type: ignore[arg-type]
    sampler = SOLVERS["euler" if name == "flow" else name].sampler(denoiser, grid, **options)
    asked = evaluations(sampler)

    def trajectory() -> Callable[[], object]:
        state = sampler.begin(x=answer)

        def go() -> None:
            while state.live:
                sampler.step(state)

        return go

    return lambda: timed(trajectory, asked, runs)


def theirs(name: str, steps: int, runs: int) -> Block:
    answer, scheduler = constant(), getattr(diffusers, name)()
    generator = torch.Generator().manual_seed(0)
    noise: dict[str, Any] = {"generator": generator} if name == "DDPMScheduler" else {}
    scheduler.set_timesteps(steps)
    asked = len(scheduler.timesteps)

    def trajectory() -> Callable[[], object]:
        scheduler.set_timesteps(steps)

        def go() -> None:
            x = answer
            for t in scheduler.timesteps:
                if hasattr(scheduler, "scale_model_input"):
                    scheduler.scale_model_input(x, t)
                x = scheduler.step(answer, t, x, **noise).prev_sample

        return go

    return lambda: timed(trajectory, asked, runs)


@torch.no_grad()
def timed(trajectory: Callable[[], Callable[[], object]], steps: int, runs: int) -> float:
    """Steps per second of so many trajectories, their preparation left out."""
    spent = 0.0
    for _ in range(runs):
        go = trajectory()
        start = time.perf_counter()
        go()
        spent += time.perf_counter() - start
    return steps * runs / spent


def floor() -> float:
    """The highest of several rates of one pass: disturbances only ever slow it down."""
    x, y = constant(), constant()
    return max(rate(lambda: torch.add(x, y, alpha=0.5), 1, 200) for _ in range(5))
