"""Adams' coefficients, and the multistep solvers step by step beside diffusers' where those are right."""

from __future__ import annotations

import math

import pytest
import torch

from unveil.gaussian.exact import Mixture
from unveil.gaussian.grid import Grid, karras
from unveil.gaussian.path import EDM
from unveil.gaussian.sampler import Sampler
from unveil.gaussian.solvers import SOLVERS
from unveil.gaussian.solvers.multistep import adams

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_adams_integrates_polynomials_exactly(count):
    nodes = [0.3, 1.1, 2.5][:count]
    for power in range(count):
        found = sum(weight * node**power for weight, node in zip(adams(nodes, 0.3, -0.8, lambda u: 1.0), nodes, strict=True))
        assert found == pytest.approx((((-0.8) ** (power + 1)) - 0.3 ** (power + 1)) / (power + 1), rel=1e-13)


def test_adams_has_the_classical_coefficients():
    assert adams([0.0, -1.0], 0.0, 1.0, lambda u: 1.0) == pytest.approx([3 / 2, -1 / 2])
    assert adams([0.0, -1.0, -2.0], 0.0, 1.0, lambda u: 1.0) == pytest.approx([23 / 12, -16 / 12, 5 / 12])
    assert adams([1.0, 0.0, -1.0], 0.0, 1.0, lambda u: 1.0) == pytest.approx([5 / 12, 8 / 12, -1 / 12])  # Moulton's


@pytest.mark.parametrize("h", [1e-3, 0.1, 5.0])
def test_adams_with_an_exponential_weight(h):
    """One node: e^h - 1. Two: the integral of u e^u, (h - 1) e^h + 1, from the slope."""
    (only,) = adams([0.0], 0.0, h, math.exp)
    assert only == pytest.approx(math.expm1(h), rel=1e-13)
    first, second = adams([0.0, -2.0], 0.0, h, math.exp)
    assert first + second == pytest.approx(math.expm1(h), rel=1e-13)
    exact = h**2 * sum(h**k / (math.factorial(k) * (k + 2)) for k in range(60))
    assert -2.0 * second == pytest.approx(exact, rel=1e-12)


MIXTURE = Mixture([0.3, 0.7], [[[[-0.5]], [[0.3]]], [[[0.6]], [[-0.2]]]], 0.1)


VP = {"num_train_timesteps": 1000, "timestep_spacing": "trailing"}
LOWER = {**VP, "final_sigmas_type": "zero", "lower_order_final": True}  # without, theirs are infinite at the data end
SCHEDULERS = [
    ("euler", {}, "EulerDiscreteScheduler", VP),
    ("heun", {}, "HeunDiscreteScheduler", VP),
    ("dpmpp-2m", {}, "DPMSolverMultistepScheduler", {**LOWER, "solver_order": 2}),
    ("unipc", {"order": 1}, "UniPCMultistepScheduler", {**LOWER, "solver_order": 1}),
    ("unipc", {"order": 2}, "UniPCMultistepScheduler", {**LOWER, "solver_order": 2}),
]
"""Orders of 3 are left out: theirs begin with a first-order step. Multistep schedulers carry x = alpha y, the others y."""


@pytest.mark.parametrize(("name", "options", "kind", "settings"), SCHEDULERS, ids=lambda v: v if isinstance(v, str) else "")
def test_step_by_step_beside_diffusers(name, options, kind, settings):
    """Their own noise levels (float32 inside), the same exact network; every state of ours is theirs."""
    theirs, scaled = getattr(diffusers, kind)(**settings), "Multistep" in kind
    theirs.set_timesteps(12)
    sigmas = theirs.sigmas.double().tolist()
    times = [a for a, b in zip(sigmas, [*sigmas[1:], -1.0], strict=True) if a != b and a > 0]  # Heun's list has each level twice
    grid = Grid(EDM(t_min=1e-3, t_max=1e3), tuple(times))
    start = torch.randn(4, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = start if scaled else start * times[0]
    alpha = 1.0 / math.sqrt(1.0 + times[0] ** 2)
    sampler = Sampler(MIXTURE.denoise, grid, SOLVERS[name], dtype=torch.float64, **options)
    state = sampler.begin(x=x / alpha if scaled else x)
    ours = [sampler.step(state).x for _ in times]

    states = []
    for i, t in enumerate(theirs.timesteps):
        n = sigmas[i]
        y = x * math.sqrt(1.0 + n**2) if scaled else x
        eps = (y - MIXTURE.denoise(y, n)) / n
        x = theirs.step(eps, t, x).prev_sample
        after = sigmas[i + 1]
        states.append(x * math.sqrt(1.0 + after**2) if scaled else x)
    if name == "heun":  # they stop after either stage
        states = [*states[1::2], states[-1]]
    assert len(states) == len(ours)
    for one, two in zip(ours, states, strict=True):
        torch.testing.assert_close(one, two.double(), rtol=2e-5, atol=2e-5)


def test_unipc_asks_once_a_step():
    for order, start in ((1, 1), (2, 1), (3, 3)):
        tapes = SOLVERS["unipc"].tapes(karras(EDM(), 10), order=order)
        calls = [sum(type(one).__name__ == "Call" for one in tape.instructions) for tape in tapes]
        assert calls == [start] + [1] * 9
