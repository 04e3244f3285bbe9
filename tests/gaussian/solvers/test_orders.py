"""Every deterministic solver converges as its paper says, on a problem whose solution is known."""

from __future__ import annotations

import pytest
import torch

from unveil.gaussian.path import EDM, VE, VP, RectifiedFlow, SubVP, Trigonometric
from unveil.gaussian.solver import Step, first_order, solver
from unveil.gaussian.solvers import SOLVERS, dpmpp_2s, exponential_ab
from unveil.gaussian.solvers.multistep import known, second_order

CASES = [
    ("ddim", {}),
    ("euler", {}),
    ("heun", {}),
    ("midpoint", {}),
    ("second-order", {}),
    ("dpmpp-2s", {}),
    ("dpmpp-2m", {}),
    ("dpmpp-3m", {}),
    *(("exponential-ab", {"order": order}) for order in (1, 2, 3)),
    *(("adams-bashforth", {"order": order}) for order in (1, 2, 3)),
    *(("unipc", {"order": order}) for order in (1, 2, 3)),
    ("exact-linear", {"eta": 0.0}),
    ("sde-2m", {"eta": 0.0}),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda v: v if isinstance(v, str) else "".join(map(str, v.values())))
def test_orders(problem, name, options):
    order = SOLVERS[name].traits(**options).order
    found = problem.orders(lambda steps: problem.solve(SOLVERS[name], problem.grid(steps), **options))
    assert found == pytest.approx([order] * 3, abs=0.1)


@pytest.mark.parametrize("path", [VP(), SubVP(), VE(), RectifiedFlow(), Trigonometric()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(
    ("name", "options"), [("heun", {"clock": "time"}), ("euler-maruyama", {"eta": 0.0}), ("dpmpp-3m", {}), ("heun", {})]
)
def test_all_paths_end_at_the_same_place(problem, path, name, options):
    """The flows of all paths are one flow in y and n, whichever clock it is solved on."""
    found = problem.orders(lambda steps: problem.solve(SOLVERS[name], problem.grid(steps, path), **options), steps=(128, 256))
    assert found == pytest.approx([SOLVERS[name].traits(**options).order], abs=0.1)


@pytest.mark.parametrize("place", [0.5, 2 / 3, 1.0])
def test_two_stage_methods_of_any_place_are_of_order_2(problem, place):
    found = problem.orders(lambda steps: problem.solve(SOLVERS["second-order"], problem.grid(steps), place=place), steps=(128, 256))
    assert found == pytest.approx([2.0], abs=0.1)


def test_3m_without_the_factor_2_is_of_order_2(problem):
    """What the public codes ship."""

    @solver("3m-halved", order=2, evaluations=1)
    def halved(step: Step):
        if not step.past:
            return dpmpp_2s.function(step)
        denoised = step.denoise(step.x, step.t.level)
        step.keep(denoised)
        if len(step.past) == 1:
            return second_order(step, step.x, denoised)
        (now, _), (before, one), (first, two) = known(step, denoised, 3)
        h = step.s.log_snr - now
        r0, r1 = (now - before) / h, (before - first) / h
        d0, d1 = (denoised - one) / r0, (one - two) / r1
        phi2 = torch.expm1(torch.tensor(-h, dtype=torch.float64)).item() / h + 1.0
        slope, curvature = d0 + (d0 - d1) * (r0 / (r0 + r1)), (d0 - d1) * (1.0 / (r0 + r1))
        return first_order(step.x, step.t, step.s, denoised) + (slope * phi2 - curvature * (phi2 / h - 0.5)) * step.s.alpha

    found = problem.orders(lambda steps: problem.solve(halved, problem.grid(steps)), steps=(256, 512))
    assert found == pytest.approx([2.0], abs=0.2)


def test_a_first_order_start_spoils_order_3(problem):
    @solver("no-start", order=2, evaluations=1)
    def plain(step: Step):
        if not step.past:
            denoised = step.denoise(step.x, step.t.level)
            step.keep(denoised)
            return first_order(step.x, step.t, step.s, denoised)
        return exponential_ab.function(step, 3)

    assert problem.orders(lambda steps: problem.solve(plain, problem.grid(steps)), steps=(256, 512))[0] < 2.6


def test_first_order_solvers_are_one(problem):
    """DDIM = Euler in n = DPM-Solver++(1) = Euler in rectified flow's time, on the same noise levels of any path."""
    expected = problem.solve(SOLVERS["ddim"], problem.grid(20))
    same = [
        problem.solve(SOLVERS["euler"], problem.grid(20)),
        problem.solve(SOLVERS["exponential-ab"], problem.grid(20), order=1),
        problem.solve(SOLVERS["adams-bashforth"], problem.grid(20), order=1),
        problem.solve(SOLVERS["ddim"], problem.grid(20, VP())),
        problem.solve(SOLVERS["euler"], problem.grid(20, RectifiedFlow()), clock="time"),
        problem.solve(SOLVERS["exact-linear"], problem.grid(20, SubVP()), eta=0.0),
    ]
    for found in same:
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    naive = problem.solve(SOLVERS["euler"], problem.grid(20, VP()), clock="time")
    assert (naive - expected).abs().max() > 1e-2


def test_3m_is_the_exponential_adams_bashforth_of_order_3():
    """Coefficient by coefficient, once both have their history."""
    from unveil.gaussian.grid import karras

    grid = karras(EDM(), 12)
    for three, general in list(zip(SOLVERS["dpmpp-3m"].tapes(grid), SOLVERS["exponential-ab"].tapes(grid, order=3), strict=True))[2:]:
        assert dict(three.result) == pytest.approx(dict(general.result), rel=1e-11, abs=1e-12)
