"""Parabolas and laws: exact where there is no noise, inside the interval where there is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.scaling.made import BASE, bowl, write
from unveil.errors import UserError
from unveil.scaling.isoflop import IsoFlop, Parabola, fit
from unveil.scaling.laws import DEEPSEEK
from unveil.scaling.runs import Point, Sweep, read
from unveil.scaling.sweep import isoflop

BUDGETS = [3e13, 1e14, 3e14, 1e15, 3e15]


def sweep(exponent: float, noise: float, seed: int, sizes: int = 5, shift: float = 0.0) -> Sweep:
    """Points on ``bowl``'s law without directories; ``shift`` moves whole budgets."""
    rng, points = np.random.default_rng(seed), []
    for compute in BUDGETS:
        moved = rng.normal(0.0, shift)
        best = 5e6 * (compute / 1e14) ** exponent
        for m in best * np.geomspace(0.3, 3, sizes):
            loss = 1.1 + 0.8 * (compute / 1e14) ** -0.15 + 0.04 * (np.log(m / best) - moved) ** 2 + rng.normal(0.0, noise)
            points.append(Point("p", float(m), compute / float(m), 1e-3, 1024, float(loss)))
    return Sweep("made", "autoregressive", points, [])


def test_the_minimum_of_a_parabola_exactly() -> None:
    points = [Point("", m, 1.0, 1.0, 1, 2.5 + 0.3 * np.log(m / 7e6) ** 2) for m in (1e6, 4e6, 9e6, 4e7)]
    found = Parabola.of(points)
    assert (found.scale, found.loss, found.bend) == pytest.approx((7e6, 2.5, 0.3))
    low, high = found.band
    assert 2.5 + 0.3 * np.log(high / 7e6) ** 2 == pytest.approx(2.5 * 1.0025) and low * high == pytest.approx(7e6**2)


@pytest.mark.parametrize(
    ("losses", "said"),
    [([1.0, 2.0, 3.5], "smallest network is best"), ([3.5, 2.0, 1.0], "largest"), ([1.0, 2.0, 1.0], "bend down"), ([1.0, 2.0], "2 sizes")],
)
def test_no_minimum_is_said_not_fitted(losses: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Parabola.of([Point("", 10.0**i, 1.0, 1.0, 1, loss) for i, loss in enumerate(losses)])


def test_a_law_without_noise_is_found_exactly() -> None:
    found = fit(sweep(0.6, 0.0, 0))
    assert found.scale_exponent.value == pytest.approx(0.6, abs=1e-9) and found.token_exponent.value == pytest.approx(0.4, abs=1e-9)
    assert found.laws()["scale"](1e14) == pytest.approx(5e6)
    assert found.curve.floor[0] == pytest.approx(1.1, abs=0.02) and found.predicted(1.2e16).value == pytest.approx(
        1.1 + 0.8 * 120**-0.15, abs=2e-3
    )


@pytest.mark.parametrize("shift", [0.0, 0.15])
def test_ninety_percent_intervals_hold_the_truth_that_often(shift: float) -> None:
    """Of 60 sweeps, with 0 to 15 % of scatter that all runs of a budget share; 43 is five percent's lower bound of 80 %."""
    fits = [fit(sweep(0.52, 0.003, seed, 7, shift), 300) for seed in range(60)]
    inside = sum(f.scale_exponent.low <= 0.52 <= f.scale_exponent.high for f in fits)
    assert inside >= 43
    ahead = [f.predicted(1.2e16) for f in fits]
    drawn = np.random.default_rng(7).normal(1.1 + 0.8 * 120**-0.15, 0.003, 60)
    assert sum(p.low <= y <= p.high for p, y in zip(ahead, drawn, strict=True)) >= 43
    assert np.mean([f.scale_exponent.high - f.scale_exponent.low for f in fits]) < 0.25


def test_two_budgets_have_the_noise_of_their_parabolas_alone() -> None:
    """Where no scatter about the law can be seen, the residuals alone must give the width."""
    two = [sweep(0.52, 0.003, seed, 7) for seed in range(60)]
    fits = [fit(Sweep("two", "discrete", [p for p in s.points if p.compute < 2e14], []), 300) for s in two]
    assert sum(f.scale_exponent.low <= 0.52 <= f.scale_exponent.high for f in fits) >= 43


def test_runs_on_disk_give_their_law(tmp_path: Path) -> None:
    choices = isoflop(BASE, BUDGETS, [0.25, 0.5, 1, 2, 4], DEEPSEEK)
    write(choices, tmp_path / "sweep", bowl(0.5, 3))
    found = fit(read(tmp_path / "sweep"))
    assert len(found.parabolas) == 5 and not found.left_out and found.computes == pytest.approx(BUDGETS, rel=0.03)
    assert found.scale_exponent.low < 0.5 < found.scale_exponent.high < 0.6


def test_a_budget_at_its_edge_is_left_out_and_one_alone_is_no_law(tmp_path: Path) -> None:
    def edged(compute: float) -> IsoFlop:
        points = [
            p if p.compute < compute else Point(p.name, p.scale, p.tokens, p.lr, p.batch, np.log(p.scale))
            for p in sweep(0.5, 0.0, 0).points
        ]
        return fit(Sweep("edged", "discrete", points, []), 50)

    assert len(edged(2e15).left_out) == 1 and "C = 3e+15" in edged(2e15).left_out[0]
    with pytest.raises(UserError, match="two budgets with a minimum"):
        edged(5e13)


def test_three_sizes_a_budget_leave_no_interval() -> None:
    found = fit(sweep(0.5, 0.001, 0, 3), 50)
    assert np.isnan(found.scale_exponent.low) and 0.3 < found.scale_exponent.value < 0.7
