"""The solver benchmarks' form and fairness, at toy sizes and without a look at the clock."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from benchmarks import solver_order, solver_overhead
from benchmarks.measure import Row
from unveil.gaussian.grid import karras
from unveil.gaussian.path import EDM
from unveil.gaussian.solvers import SOLVERS

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")


def check_form(row: Row) -> None:
    assert set(json.loads(json.dumps(asdict(row)))) == {"name", "ours", "peer", "peer_name", "ratio", "unit", "spread", "floor"}
    assert row.ours > 0 and row.peer > 0 and row.ratio > 0 and row.spread >= 0 and row.peer_name.startswith("diffusers")


@pytest.mark.parametrize(
    ("name", "options", "solve"),
    [
        ("euler", {}, solver_order.euler),
        ("heun", {}, solver_order.heun),
        ("adams-bashforth", {"order": 2}, solver_order.lms(2)),
        ("unipc", {"order": 2}, solver_order.scaled(solver_order.diffusers.UniPCMultistepScheduler, solver_order=2)),
    ],
    ids=["euler", "heun", "lms-2", "unipc-2"],
)
def test_both_sides_solve_the_same_problem(name: str, options: dict[str, Any], solve: solver_order.Solve) -> None:
    """Where theirs is right, their end points on our levels are ours."""
    start, _ = solver_order.problem()
    grid = karras(EDM(), 13, n_min=solver_order.LOW, n_max=solver_order.HIGH, clean=False)
    ours = SOLVERS[name](solver_order.MIXTURE.denoise, grid, x=start, dtype=torch.float64, **options)
    tolerance = 1e-5 if name == "euler" else 1e-10  # theirs casts to float32
    torch.testing.assert_close(solve(grid.times, start).double(), ours, rtol=tolerance, atol=tolerance)


def test_the_third_order_row() -> None:
    peer = solver_order.scaled(solver_order.diffusers.DPMSolverMultistepScheduler, solver_order=3)
    row = solver_order.row("dpmpp-3m", {}, peer, "peer", steps=(64, 128))
    check_form(row)
    assert row.ours == pytest.approx(3.0, abs=0.1) and row.peer < 2.3 and row.floor == 3.0


@pytest.mark.parametrize("name", solver_overhead.CASES)
def test_overhead_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver_overhead, "SHAPE", (2, 1, 4, 4))
    counted: list[int] = []
    timed = solver_overhead.timed

    def count(trajectory: Callable[[], Callable[[], object]], steps: int, runs: int) -> float:
        counted.append(steps)
        return timed(trajectory, steps, runs)

    monkeypatch.setattr(solver_overhead, "timed", count)
    row = solver_overhead.row(name, steps=4, runs=1, pairs=5)
    check_form(row)
    assert row.name == f"{name}, float32 state" and row.floor is not None
    assert set(counted) == {7 if name == "heun" else 4}  # both sides count answers of the network
