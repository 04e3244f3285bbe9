from __future__ import annotations

import math

import pytest
import torch

from unveil.errors import UserError
from unveil.gaussian.density import (
    DENSITIES,
    LogitNormal,
    LogNormal,
    LogUniform,
    UniformLevels,
    UniformTime,
    UShaped,
    level_at,
    uniform,
)
from unveil.gaussian.path import DDPM, EDM, VE, VP, RectifiedFlow, Shifted, SubVP, Trigonometric

PATHS = [VP(), SubVP(), VE(), EDM(), RectifiedFlow(), Trigonometric()]
CONTINUOUS = [
    LogNormal(),
    LogNormal(-0.4, 1.0),
    LogUniform(0.02, 100.0),
    *(kind(path) for path in PATHS for kind in (UniformTime, LogitNormal, UShaped)),
]


@pytest.mark.parametrize("density", CONTINUOUS, ids=repr)
def test_the_pdf_is_the_derivative_of_the_inverse_of_the_quantile_function(density):
    """pdf(log n(u)) d log n / du = 1, by central differences."""
    u = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    h = 1e-6
    slope = (density.log_n(u + h) - density.log_n(u - h)) / (2 * h)
    assert (slope > 0).all()
    torch.testing.assert_close(density.pdf(density.log_n(u)) * slope, torch.ones_like(u), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "density", [LogUniform(0.1, 1.0), *(kind(RectifiedFlow(0.1, 0.5)) for kind in (UniformTime, LogitNormal, UShaped))]
)
def test_nothing_is_drawn_outside_the_range(density):
    outside = torch.tensor([-9.0, 4.0], dtype=torch.float64)
    assert (density.pdf(outside) == 0).all()


def test_logit_normal_times_of_rectified_flow_are_log_normal_noise():
    """logit(t) = log n: SD3's times and EDM's levels are one density."""
    u = torch.linspace(0, 1, 101, dtype=torch.float64)[1:-1]
    flow = LogitNormal(RectifiedFlow(t_min=0.0, t_max=1.0), -1.2, 1.2)
    torch.testing.assert_close(flow.log_n(u), LogNormal(-1.2, 1.2).log_n(u), rtol=0, atol=1e-12)


def test_shifting_time_adds_to_the_mean():
    u = torch.linspace(0.01, 0.99, 33, dtype=torch.float64)
    shifted = LogitNormal(Shifted(RectifiedFlow(t_min=0.0, t_max=1.0), 3.0), 0.2, 0.9)
    torch.testing.assert_close(shifted.log_n(u), LogNormal(0.2 + math.log(3.0), 0.9).log_n(u), rtol=0, atol=1e-12)


def test_u_shaped_is_half_an_exponential_and_half_its_mirror_image():
    a, path = 4.0, RectifiedFlow(t_min=0.0, t_max=1.0)
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    in_time = UShaped(path, a).pdf(path.n(t).log()) / (t * (1 - t))
    mixture = 0.5 * a / math.expm1(a) * (torch.exp(a * t) + torch.exp(a * (1 - t)))
    torch.testing.assert_close(in_time, mixture, rtol=1e-10, atol=0)


def test_ve_in_uniform_time_is_log_uniform():
    u = torch.linspace(0, 1, 17, dtype=torch.float64)
    torch.testing.assert_close(UniformTime(VE(0.02, 100.0)).log_n(u), LogUniform(0.02, 100.0).log_n(u), rtol=0, atol=1e-12)


def test_the_steps_of_a_table_come_equally_often_and_exactly():
    path = DDPM("cosine", steps=8)
    density = uniform(path)
    u = (torch.arange(80, dtype=torch.float64) + 0.5) / 80
    assert torch.bincount(density.index(u)).tolist() == [10] * 8
    torch.testing.assert_close(density.log_n(u).exp(), path.n(torch.arange(8)).repeat_interleave(10), rtol=1e-14, atol=0)
    assert density.index(torch.tensor([0.0, 1.0 - 2.0**-53])).tolist() == [0, 7]
    assert UniformLevels((0.5, math.inf)).log_n(torch.tensor([0.9])).item() == math.inf


@pytest.mark.parametrize("name", DENSITIES)
def test_every_named_density_is_finite_at_both_ends_of_u(name):
    density = DENSITIES[name](VP())
    assert density.log_n(torch.tensor([0.0, 1.0 - 2.0**-53], dtype=torch.float64)).isfinite().all()


def test_levels_preserve_variance_from_no_noise_to_nothing_else():
    log_n = torch.tensor([-math.inf, -30.0, math.log(0.5), 12.0, math.inf], dtype=torch.float64)
    alpha, sigma = level_at(log_n)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=0, atol=1e-15)
    torch.testing.assert_close((sigma / alpha)[1:4], log_n[1:4].exp(), rtol=1e-13, atol=0)
    assert (alpha[-1], sigma[-1], sigma[0]) == (0, 1, 0)


@pytest.mark.parametrize(
    "wrong",
    [lambda: LogNormal(0, 0), lambda: LogUniform(1, 0.5), lambda: LogitNormal(VP(), 0, -1), lambda: UShaped(VP(), 0)],
)
def test_what_cannot_be_a_density_is_refused(wrong):
    with pytest.raises(UserError, match="objective"):
        wrong()
