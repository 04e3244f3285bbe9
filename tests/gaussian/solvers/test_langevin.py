"""Langevin dynamics and correctors: what they leave invariant, and score SDE's own step."""

from __future__ import annotations

import math

import pytest
import torch

from unveil.gaussian.exact import Gaussian
from unveil.gaussian.grid import Grid, Instant, karras, log_uniform
from unveil.gaussian.path import EDM, VE, VP
from unveil.gaussian.solver import Step
from unveil.gaussian.solvers import annealed_langevin, predictor_corrector


def on_tensors(path, t, s, x, denoise, noise):
    """A step whose vectors are tensors."""
    draws = iter(noise)
    return Step(path, t, s, x, (), 1, denoise, lambda: next(draws), lambda low, high: None, lambda x: x, lambda *vectors: None)


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_golden_annealed_langevin(golden, name):
    """x + a S + sqrt(2 a) z, a = 2 alpha (snr sigma)^2, where alpha is 1 - beta_t of VP's table."""
    arrays, config = golden("score_sde")
    path = {"vp": VP(), "ve": VE()}[name]
    for row, t in enumerate(arrays["inputs.t"].tolist()):
        score, x, z = arrays[f"outputs.{name}.score"][row], arrays["inputs.x"][row], arrays["inputs.z"][row]
        at = Instant(t, *map(float, path.level(t)))
        factor = 1.0 - arrays["outputs.vp.discrete_betas"][int(t * (config["N"] - 1))].item() if name == "vp" else 1.0

        def denoise(x, level, score=score):
            return (x + level.sigma**2 * score) / level.alpha

        snr = config["snr"] * math.sqrt(factor)
        for noise, key in ((torch.zeros_like(z), "x_mean"), (z, "x")):
            found = annealed_langevin.function(on_tensors(path, at, at, x, denoise, [noise]), snr, 1)
            torch.testing.assert_close(found, arrays[f"outputs.{name}.ald.{key}"][row], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("delta", [0.1, 0.05, 0.01])
def test_the_corrector_keeps_a_gaussian_to_second_order(variance, delta):
    """From the level's own variance on, correcting changes what the predictor gets by less than delta^2."""
    data, n = 0.25, 0.7
    grid = Grid(EDM(), (n, 0.69), clean=False)
    plain = variance(predictor_corrector, grid, data, data + n**2, delta=0.0)
    assert 0.0 < abs(variance(predictor_corrector, grid, data, data + n**2, delta=delta) / plain - 1.0) < delta**2


def test_annealed_langevin_finds_the_data():
    """400 samples after 20 steps at each of 15 levels: mean and deviation within 4 standard errors and Langevin's own bias."""
    data = Gaussian([1.0, -0.5], [0.04, 0.25])
    x = annealed_langevin(
        data.denoise, log_uniform(EDM(t_max=10.0), 15), (400, 2), range(400), dtype=torch.float64, snr=0.25, corrections=20
    )
    assert (x.mean(0) - torch.tensor([1.0, -0.5])).abs().max() < 4 * 0.5 / 20
    assert x.std(0).tolist() == pytest.approx([0.2, 0.5], rel=0.2)


def test_corrections_forget_a_wrong_start(variance):
    """Of a variance half what it should be, the less is left the more corrections there are."""
    grid, data = log_uniform(EDM(), 30, n_min=1.0, n_max=2.0, clean=False), 0.25

    def left(corrections):
        ends = [
            variance(predictor_corrector, grid, data, start * (data + 4.0), delta=0.05, corrections=corrections) for start in (0.5, 1.0)
        ]
        return abs(ends[0] / ends[1] - 1.0)

    assert left(1) > 4 * left(4)


def test_the_last_step_is_the_image():
    for solver in (annealed_langevin, predictor_corrector):
        x = solver(Gaussian([0.5], 0.0).denoise, karras(EDM(), 3), (2, 1), range(2), dtype=torch.float64)
        torch.testing.assert_close(x, torch.full((2, 1), 0.5, dtype=torch.float64), rtol=0, atol=1e-12)
