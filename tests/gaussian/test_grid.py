"""Where a sampler stops: the papers' levels, and grids that are none."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unveil.errors import UserError
from unveil.gaussian import grid as grids
from unveil.gaussian.grid import GRIDS, Grid
from unveil.gaussian.path import DDPM, EDM, VE, VP, RectifiedFlow, Shifted


@pytest.mark.parametrize("steps", [18, 40])
def test_golden_levels_of_edm(golden, steps):
    arrays, _ = golden("edm_samplers")
    paths = {
        "edm": grids.karras(EDM(), steps),
        "ve": grids.log_uniform(EDM(t_min=0.02, t_max=100.0), steps),
        "vp": grids.uniform(VP(t_min=1e-3), steps),
        "iddpm": grids.iddpm(EDM(t_max=81.0), steps),
    }
    for name, grid in paths.items():
        found = torch.tensor([at.n for at in grid.instants[:-1]], dtype=torch.float64)
        torch.testing.assert_close(found, arrays[f"outputs.sigma_steps.{name}_N{steps}"], rtol=1e-10, atol=0)


@pytest.mark.parametrize("path", [VP(), VE(), RectifiedFlow(), DDPM("cosine"), Shifted(VP(), 3.0)], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("name", ["karras", "log-uniform"])
def test_levels_are_the_same_on_every_path(path, name):
    found, expected = (GRIDS[name](p, 10, n_min=0.05, n_max=20.0) for p in (path, EDM()))
    assert [at.n for at in found.instants] == pytest.approx([at.n for at in expected.instants])


def test_discrete_grids():
    table = DDPM()
    assert grids.trailing(table, 10).times == tuple(float(t) for t in range(999, 0, -100))
    assert grids.leading(table, 10).times == tuple(float(t) for t in range(900, -1, -100))
    assert grids.linspace(table, 4).times == (999.0, 666.0, 333.0, 0.0)
    assert grids.quadratic(table, 5).times == (800.0, 450.0, 200.0, 50.0, 0.0)
    for name in ("trailing", "leading", "linspace"):
        assert GRIDS[name](table, 1000).times == tuple(map(float, range(999, -1, -1)))


@given(st.integers(1, 1000), st.sampled_from(["trailing", "leading", "linspace"]))
def test_discrete_grids_never_repeat_a_step(steps, name):
    found = GRIDS[name](DDPM(), steps)
    assert found.steps == steps == len(set(found.times)) and all(t == int(t) for t in found.times)
    if name == "trailing":
        assert found.times[0] == 999.0


def test_equal_steps_to_the_data():
    assert grids.uniform_to_zero(RectifiedFlow(), 4).times == pytest.approx((1.0, 0.75, 0.5, 0.25))


def test_the_data_end_has_no_noise_on_any_path():
    for path in (EDM(), VP(), VE(), RectifiedFlow(), DDPM()):
        end = GRIDS["uniform"](path, 3).instants[-1]
        assert (end.alpha, end.sigma, end.n, end.log_snr) == (1.0, 0.0, 0.0, math.inf)
        assert end.time == path.data_end
    blind = grids.uniform(RectifiedFlow(), 2).instants[0]
    assert (blind.n, blind.log_snr) == (math.inf, -math.inf)


def test_reversed():
    grid = grids.karras(EDM(), 5)
    back = grid.reversed()
    assert back.inverts and not grid.inverts and not back.clean
    assert back.times == grid.times[::-1] and back.steps == 4


WRONG = [
    (lambda: Grid(EDM(), (1.0, 2.0)), r"sampler\.grid.*not monotone"),
    (lambda: Grid(EDM(), (3.0, 2.0, 2.0)), r"sampler\.grid.*not monotone"),
    (lambda: Grid(EDM(), (1.0, 3.0, 2.0), clean=False), r"sampler\.grid.*not monotone"),
    (lambda: Grid(EDM(), (90.0, 2.0)), r"sampler\.grid: time 90 is outside the path's 0\.002 to 80"),
    (lambda: Grid(EDM(), (2.0, -1.0)), r"sampler\.grid: time -1 is outside"),
    (lambda: Grid(EDM(), (math.nan,)), r"sampler\.grid.*not finite"),
    (lambda: Grid(EDM(), ()), r"sampler\.steps: got 0"),
    (lambda: Grid(EDM(), (1.0,), clean=False), r"sampler\.steps: got 0"),
    (lambda: grids.karras(EDM(), 0), r"sampler\.steps: got 0"),
    (lambda: grids.karras(EDM(), 5, rho=0.0), r"sampler\.rho: got 0"),
    (lambda: grids.karras(EDM(), 5, n_min=2.0, n_max=1.0), r"sampler\.n_min"),
    (lambda: grids.karras(EDM(), 5, n_max=200.0), r"sampler\.grid: time 200 is outside"),
    (lambda: grids.karras(RectifiedFlow(), 5), r"sampler\.n_max: .*infinite n"),
    (lambda: grids.trailing(EDM(), 5), r"sampler\.grid: 'trailing' counts a discrete table's steps"),
    (lambda: grids.trailing(DDPM(), 1001), r"sampler\.steps: got 1001 for a table of 1000"),
    (lambda: grids.quadratic(DDPM(), 100), r"sampler\.grid.*not monotone.*never repeat"),
    (lambda: grids.uniform_to_zero(VE(), 5), r"sampler\.grid.*not finite"),
]


@pytest.mark.parametrize(("make", "message"), WRONG, ids=range(len(WRONG)))
def test_mistakes_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
