"""What is known stays, what is not agrees with it."""

from __future__ import annotations

import math

import pytest
import torch

from unveil.errors import UserError
from unveil.gaussian.denoiser import Denoiser
from unveil.gaussian.exact import Gaussian
from unveil.gaussian.grid import karras, log_uniform, trailing
from unveil.gaussian.inpainting import Inpainter
from unveil.gaussian.path import DDPM, EDM, VP
from unveil.gaussian.solvers import ancestral, ddim, dpmpp_2m, exact_linear, heun, sde_2m
from unveil.gaussian.tape import Let

CORRELATED = Gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]])
MASK = torch.tensor([True, False])


def test_the_known_part_is_exactly_there_and_only_it_is_read():
    known = torch.tensor([[0.7, math.nan]]).expand(5, 2)
    for solver, options in ((ancestral, {}), (ddim, {"eta": 1.0}), (exact_linear, {}), (heun, {"churn": 10.0})):
        x = Inpainter(CORRELATED.denoise, karras(EDM(), 8), solver, resamples=2, **options).sample(known, MASK, range(5))
        assert (x[:, 0] == known[:, 0]).all() and x[:, 1].isfinite().all()


def test_nothing_known_is_plain_sampling():
    grid = karras(VP(), 8, n_min=0.02, n_max=40.0)
    known = torch.zeros(3, 2)
    found = Inpainter(CORRELATED.denoise, grid, ddim, eta=1.0, dtype=torch.float64)
    state = found.begin(known, torch.tensor([False, False]), range(3))
    plain = ddim.sampler(CORRELATED.denoise, grid, eta=1.0, dtype=torch.float64).begin((3, 2), range(3))
    torch.testing.assert_close(state.x, plain.x)
    torch.testing.assert_close(found.step(state).x, ddim.sampler(CORRELATED.denoise, grid, eta=1.0, dtype=torch.float64).step(plain).x)


def statistics(resamples, count=600):
    known = torch.stack([torch.full((count,), 1.5), torch.zeros(count)], 1)
    x = Inpainter(CORRELATED.denoise, karras(EDM(), 30), resamples=resamples, dtype=torch.float64).sample(known, MASK, range(count))
    return x[:, 1].mean().item(), x[:, 1].std().item()


def test_repainting_finds_the_conditional_distribution():
    """Given the one at 1.5, the other is N(1.35, 0.19). Replacement alone falls short of that; going over each step does not."""
    plain, repainted = statistics(1)[0], statistics(8)
    assert abs(repainted[0] - 1.35) < 0.5 * abs(plain - 1.35)
    assert repainted[0] == pytest.approx(1.35, abs=0.1) and repainted[1] == pytest.approx(math.sqrt(0.19), rel=0.2)


def test_a_row_is_the_same_in_any_batch_and_of_a_fused_network():
    denoiser = Denoiser(lambda x, t: torch.tanh(x), "eps", DDPM())
    known = torch.tensor([[0.5, 0.0], [-0.5, 0.0], [0.1, 0.0]])
    for network in (denoiser, lambda x, level: denoiser(x, level)):
        ours = Inpainter(network, trailing(DDPM(), 6), resamples=3, dtype=torch.float64)
        together = ours.sample(known, MASK, [4, 5, 6])
        if network is denoiser:
            fused = together
        for row in range(3):
            torch.testing.assert_close(ours.sample(known[row : row + 1], MASK, [4 + row])[0], together[row], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(fused, together, rtol=1e-8, atol=1e-8)
    state = ours.begin(known[:2], MASK, [4, 5])
    ours.step(state)
    end = ours.finish(state.join(ours.begin(known[2:], MASK, [6])))
    torch.testing.assert_close(end, together, rtol=1e-10, atol=1e-10)


def test_repetitions_cost_what_they_say():
    assert len(Inpainter(CORRELATED.denoise, karras(EDM(), 5), resamples=4).tapes) == 4 * 4 + 1  # the last step is taken once


@pytest.mark.parametrize("path", [EDM(), VP(), DDPM()], ids=lambda p: type(p).__name__)
def test_the_way_back_leads_to_the_marginal(path):
    """x_t from x_s has the path's alpha_t and sigma_t."""
    grid = log_uniform(path, 5, n_min=0.05, n_max=20.0)
    tapes = Inpainter(CORRELATED.denoise, grid, resamples=2).tapes
    for again, t, s in zip(tapes[1::2], grid.instants, grid.instants[1:], strict=False):
        back = dict(next(one for one in again.instructions if isinstance(one, Let)).terms)
        assert back["x"] * s.alpha == pytest.approx(t.alpha)
        assert math.hypot(back["x"] * s.sigma, back["noise back"]) == pytest.approx(t.sigma)


def test_mistakes_are_named():
    grid = karras(EDM(), 5)
    for solver, options in ((heun, {}), (dpmpp_2m, {}), (ddim, {}), (sde_2m, {})):
        with pytest.raises(UserError, match=rf"sampler\.solver: '{solver.name}' cannot inpaint"):
            Inpainter(CORRELATED.denoise, grid, solver, **options)
    with pytest.raises(UserError, match=r"sampler\.resamples: got 0"):
        Inpainter(CORRELATED.denoise, grid, resamples=0)
