"""Runge-Kutta against EDM's own code, call by call, and its churn."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from unveil.gaussian.exact import Mixture
from unveil.gaussian.grid import Grid, iddpm, karras, uniform
from unveil.gaussian.level import Path
from unveil.gaussian.path import EDM, VP
from unveil.gaussian.sampler import Sampler
from unveil.gaussian.solvers import SOLVERS


@dataclass(frozen=True)
class RootTime(Path):
    """VE as EDM's ablation has it: n = sqrt(t), alpha = 1."""

    t_min: float = 0.02**2
    t_max: float = 100.0**2

    def _n(self, t: Tensor) -> Tensor:
        return t.sqrt()

    def _time(self, n: Tensor) -> Tensor:
        return n.square()

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return t.sqrt()

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return 0.5 / t.sqrt()


def root_time(steps):
    """EDM's VE levels: n^2 geometric from 100^2 to 0.02^2."""
    path = RootTime()
    ratio = (path.t_min / path.t_max) ** (1 / (steps - 1))
    return Grid(path, tuple(min(max(path.t_max * ratio**i, path.t_min), path.t_max) for i in range(steps)))


def vp_between(low, high, start=1e-3):
    """The VP path with n(start) = low and n(1) = high, as EDM's ablation fits it to a grid of its own."""
    rise = 2.0 * (math.log1p(low**2) / start - math.log1p(high**2)) / (start - 1.0)
    beta_min = math.log1p(high**2) - 0.5 * rise
    return VP(beta_min=beta_min, beta_max=beta_min + rise)


CHURN = {"churn": 40.0, "churn_min": 0.05, "churn_max": 50.0, "churn_noise": 1.003}
vp = VP(t_min=1e-3)
RUNS = {
    "edm_heun_N18": ("heun", karras(EDM(), 18), {}),
    "edm_heun_N40": ("heun", karras(EDM(), 40), {}),
    "edm_churn": ("heun", karras(EDM(), 18), CHURN),
    "abl_alpha": ("midpoint", karras(EDM(), 18), {}),
    "abl_edm_linear_none_heun": ("second-order", karras(EDM(), 18), {"place": 1.0}),
    "abl_iddpm_linear_none_heun": ("heun", iddpm(EDM(t_max=81.0), 18), {}),
    "abl_ve_ve_none_euler": ("euler", root_time(18), {"clock": "time"}),
    "abl_ve_ve_none_heun": ("heun", root_time(18), {"clock": "time"}),
    "abl_vp_vp_vp_euler": ("euler", uniform(vp, 18), {"clock": "time"}),
    "abl_vp_vp_vp_heun": ("heun", uniform(vp, 18), {"clock": "time"}),
    "abl_vp_churn": ("heun", uniform(vp, 18), {"clock": "time", **CHURN}),
    "abl_edm_vp_vp_heun": ("heun", karras(vp_between(0.002, 80.0), 18, n_min=0.002, n_max=80.0), {"clock": "time"}),
}


@pytest.mark.parametrize("run", RUNS)
def test_golden_calls_of_the_network(golden, recorded, run):
    """Every (x / alpha, n) at which EDM's samplers ask the network, in order; and the result.

    The ablation sampler ends on its path's own clock with an Euler step to t = 0, which is not D there; ours returns D on every path.
    """
    arrays, _ = golden("edm_samplers")
    mixture = Mixture(arrays["inputs.mixture_weights"], arrays["inputs.mixture_means"][..., None, None], arrays["inputs.mixture_std"] ** 2)
    name, grid, options = RUNS[run]
    calls = []

    def denoise(x, level):
        calls.append((x / level.alpha, level.n, mixture.denoise(x, level)))
        return calls[-1][-1]

    sampler = Sampler(denoise, grid, SOLVERS[name], dtype=torch.float64, **options)
    latents = arrays["inputs.latents"]
    state = sampler.begin(x=latents * grid.instants[0].sigma)
    if "churn" in options:
        churned = [CHURN["churn_min"] <= at.n <= CHURN["churn_max"] for at in grid.instants[:-1]]
        state.noise = recorded(z for z, wanted in zip(arrays["inputs.churn_noise"], churned, strict=False) if wanted)
    end = sampler.finish(state)
    levels = torch.tensor([n for _, n, _ in calls], dtype=torch.float64)
    torch.testing.assert_close(levels, arrays[f"outputs.{run}.net_sigma"], rtol=1e-10, atol=0)
    torch.testing.assert_close(torch.stack([y for y, _, _ in calls]), arrays[f"outputs.{run}.net_x"], rtol=1e-9, atol=1e-9)
    final = arrays[f"outputs.{run}.final"]
    torch.testing.assert_close(end, calls[-1][-1], rtol=0, atol=0)
    if "vp_vp" not in run and "vp_churn" not in run and "ve_ve" not in run:
        torch.testing.assert_close(end, final, rtol=0, atol=1e-9)


def test_churn_asks_the_network_at_the_raised_level():
    """diffusers adds the noise after the network was asked (algorithm 2 of the paper has it before)."""
    levels = []
    mixture = Mixture([1.0], [[0.0]], 1.0)

    def denoise(x, level):
        levels.append(level.n)
        return mixture.denoise(x, level)

    grid = karras(EDM(), 4)
    SOLVERS["euler"](denoise, grid, (2, 1), range(2), dtype=torch.float64, churn=4.0)
    raised = [at.n * 2.0**0.5 for at in grid.instants[:-1]]  # gamma is capped
    assert levels == pytest.approx(raised)


def test_heun_asks_twice_a_step_and_once_in_the_last():
    for steps in (18, 40):
        tapes = SOLVERS["heun"].tapes(karras(EDM(), steps))
        assert sum(len(tape.instructions) for tape in tapes) == 2 * steps - 1
