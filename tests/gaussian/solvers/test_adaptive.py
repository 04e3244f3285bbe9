"""Steps chosen per sample: accuracy against torchdiffeq, and a course that no neighbour changes."""

from __future__ import annotations

import math

import pytest
import torch

from unveil.errors import UserError
from unveil.gaussian.exact import Gaussian, Mixture
from unveil.gaussian.grid import Grid, karras
from unveil.gaussian.path import EDM, VP, RectifiedFlow
from unveil.gaussian.solvers import bosh3, dopri5
from unveil.gaussian.solvers.adaptive import BOGACKI_SHAMPINE

MIXTURE = Mixture([0.3, 0.5, 0.2], [[-1.0, 0.0], [0.4, 0.5], [2.0, -1.0]], 0.05)


def test_the_tableau_has_its_orders():
    """Order conditions up to 3 of the step, up to 2 of the embedded one."""
    nodes, weights = BOGACKI_SHAMPINE.nodes, BOGACKI_SHAMPINE.weights
    embedded = [w - e for w, e in zip(weights, BOGACKI_SHAMPINE.error, strict=True)]
    rows = [sum(row) for row in BOGACKI_SHAMPINE.stages]
    assert rows == pytest.approx(list(nodes))
    for b, order in ((weights, 3), (embedded, 2)):
        for power in range(order):
            assert sum(w * c**power for w, c in zip(b, nodes, strict=True)) == pytest.approx(1 / (power + 1))
    inner = [sum(a * nodes[j] for j, a in enumerate(row)) for row in BOGACKI_SHAMPINE.stages]
    assert sum(w * i for w, i in zip(weights, inner, strict=True)) == pytest.approx(1 / 6)


@pytest.mark.parametrize("solver", [bosh3, dopri5], ids=lambda s: s.name)
def test_beside_torchdiffeq(solver):
    torchdiffeq = pytest.importorskip("torchdiffeq")
    start = 10.0 * torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grid = karras(EDM(), 2, n_min=0.05, n_max=10.0, clean=False)
    span = torch.tensor([math.log(10.0), math.log(0.05)], dtype=torch.float64)
    exact = torchdiffeq.odeint(lambda u, y: y - MIXTURE.denoise(y, u.exp()), start, span, method="dopri8", rtol=1e-12, atol=1e-12)[1]
    for tolerance in (1e-4, 1e-6, 1e-8):
        found = solver(MIXTURE.denoise, grid, x=start, dtype=torch.float64, rtol=tolerance, atol=tolerance)
        assert (found - exact).abs().max() < 100 * tolerance
    twin = torchdiffeq.odeint(lambda u, y: y - MIXTURE.denoise(y, u.exp()), start, span, method=solver.name, rtol=1e-8, atol=1e-8)[1]
    torch.testing.assert_close(found, twin, rtol=0, atol=1e-5)


def steps_alone(solver, start, **options):
    """(end, attempts) of each sample alone."""
    found = []
    for row in range(len(start)):
        sampler = solver.sampler(MIXTURE.denoise, karras(EDM(), 2, n_min=0.01, n_max=80.0), dtype=torch.float64, **options)
        state = sampler.begin(x=start[row : row + 1])
        while state.live:
            snapshot = sampler.step(state)
        found.append((snapshot.x[0], snapshot.step))
    return found


@pytest.mark.parametrize("solver", [bosh3, dopri5], ids=lambda s: s.name)
def test_a_sample_is_the_same_alone_and_in_a_batch(solver):
    """With the very same steps, which differ from sample to sample."""
    start = torch.cat(
        [80.0 * torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), torch.zeros(1, 2).double()]
    )
    options = {"rtol": 1e-5, "atol": 1e-5}
    alone = steps_alone(solver, start, **options)
    sampler = solver.sampler(MIXTURE.denoise, karras(EDM(), 2, n_min=0.01, n_max=80.0), dtype=torch.float64, **options)
    state, together = sampler.begin(x=start), {}
    while state.live:
        snapshot = sampler.step(state)
        together.update({r: (x, snapshot.step) for r, x, f in zip(snapshot.requests, snapshot.x, snapshot.final, strict=True) if f})
    for row, (x, steps) in enumerate(alone):
        torch.testing.assert_close(together[row][0], x, rtol=1e-11, atol=1e-11)
        assert together[row][1] == steps
    assert len({steps for _, steps in alone}) > 1


def test_rows_join_and_split_on_the_way():
    start = 80.0 * torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    sampler = dopri5.sampler(MIXTURE.denoise, karras(EDM(), 2), dtype=torch.float64)
    straight = sampler.sample(x=start)
    first, second = sampler.begin(x=start[:2]), sampler.begin(x=start[2:])
    for _ in range(3):
        sampler.step(first)
    joined = first.select([1, 0]).join(second)
    end = sampler.finish(joined)
    torch.testing.assert_close(end, straight, rtol=1e-10, atol=1e-10)  # in the order of requests


def test_inversion_is_the_same_solver_backwards():
    data = Gaussian([0.3, -0.2], [0.2, 0.5])
    for path in (EDM(), VP(), RectifiedFlow(t_max=0.99)):
        grid = Grid(path, (path.t_max, path.t_min), clean=False)
        first, last = grid.instants[0].level, grid.instants[1].level
        start = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * first.sigma
        options = {"dtype": torch.float64, "rtol": 1e-9, "atol": 1e-9}
        end = dopri5(data.denoise, grid, x=start, **options)
        torch.testing.assert_close(end, data.flow_map(start, first, last), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(dopri5(data.denoise, grid.reversed(), x=end, **options), start, rtol=1e-5, atol=1e-5)


def test_golden_rectified_flow(golden):
    arrays, _ = golden("rectified_flow")
    data = Gaussian(arrays["inputs.data_mean"][0], arrays["inputs.data_std"][0] ** 2)
    found = dopri5(data.denoise, Grid(RectifiedFlow(t_min=1e-5), (1.0 - 1e-3, 1e-5)), x=arrays["inputs.z0"], dtype=torch.float64)
    torch.testing.assert_close(found, arrays["outputs.exact_map_from_eps"], rtol=0, atol=1e-4)
    torch.testing.assert_close(found, arrays["outputs.ode_rk45.x"].double(), rtol=0, atol=1e-4)


def test_the_last_row_of_a_clean_grid_is_an_image():
    """D at the last level, at no further call: the pair's last slope was taken there."""
    sampler = dopri5.sampler(Gaussian([0.5, 0.5], 0.0).denoise, karras(EDM(), 2), dtype=torch.float64)
    x = sampler.sample((3, 2), range(3))
    torch.testing.assert_close(x, torch.full((3, 2), 0.5, dtype=torch.float64), rtol=0, atol=1e-12)


def test_mistakes_are_named():
    grid = karras(EDM(), 2)
    with pytest.raises(UserError, match=r"sampler\.eta: 'dopri5' has no such option"):
        dopri5(MIXTURE.denoise, grid, (1, 2), eta=1.0)
    with pytest.raises(UserError, match=r"sampler\.rtol: got 0"):
        dopri5(MIXTURE.denoise, grid, (1, 2), rtol=0.0)
    with pytest.raises(UserError, match=r"sampler\.grid.*finite noise levels"):
        dopri5(MIXTURE.denoise, Grid(RectifiedFlow(), (1.0, 0.5)), (1, 2))
    with pytest.raises(UserError, match=r"sampler\.grid.*finite noise levels"):
        dopri5(MIXTURE.denoise, Grid(EDM(), (1.0,)), (1, 2))


def test_a_flow_that_is_not_a_number_ends():
    sampler = dopri5.sampler(lambda x, level: x * math.nan, karras(EDM(), 2))
    sampler.max_steps = 5
    with pytest.raises(UserError, match="more than 5 steps"):
        sampler.sample((2, 2))
