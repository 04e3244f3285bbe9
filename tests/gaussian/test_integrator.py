from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from unveil.errors import UserError
from unveil.gaussian.integrator import DORMAND_PRINCE, HEUN, RK4, Adaptive, Fixed


def spiral(s, x, rows):
    """dx/ds = (1 + s) A x with trace 0.6: x(1) by the matrix exponential, log-determinant 0.6 * 1.5."""
    pace = (1.0 + s) if isinstance(s, float) else (1.0 + s)[:, None]
    return pace * (x @ GENERATOR.T), (1.0 + s) * 0.6 * torch.ones(len(x), dtype=x.dtype)


GENERATOR = torch.tensor([[0.5, 2.0], [-2.0, 0.1]], dtype=torch.float64)
START = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
END = START @ torch.linalg.matrix_exp(1.5 * GENERATOR).T


@pytest.mark.parametrize("tableau", [HEUN, RK4, DORMAND_PRINCE])
def test_tableaus_are_consistent(tableau):
    assert sum(tableau.weights) == pytest.approx(1.0, abs=1e-15)
    for node, row in zip(tableau.nodes, tableau.stages, strict=True):
        assert sum(row) == pytest.approx(node, abs=1e-14)
    assert sum(tableau.error) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize(("method", "order"), [("heun", 2), ("rk4", 4)])
def test_orders(method, order):
    errors = [(Fixed(steps, method)(spiral, START)[0] - END).norm().item() for steps in (16, 32, 64)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


def test_fixed_steps_count_their_evaluations_and_integrate_the_trace():
    _, log_det, evaluations = Fixed(10, "heun")(spiral, START)
    torch.testing.assert_close(log_det, torch.full((4,), 0.9, dtype=torch.float64))
    assert evaluations.tolist() == [20] * 4


def test_adaptive_meets_its_tolerance_and_tighter_ones_cost_more():
    costs = []
    for tolerance in (1e-4, 1e-7, 1e-10):
        x, log_det, evaluations = Adaptive(tolerance, tolerance)(spiral, START)
        assert (x - END).abs().max() < 30 * tolerance
        torch.testing.assert_close(log_det, torch.full((4,), 0.9, dtype=torch.float64), rtol=0, atol=30 * tolerance)
        costs.append(evaluations.max())
    assert costs[0] < costs[1] < costs[2]


def test_a_sample_is_the_same_alone_and_in_a_batch():
    """Each row has a stiffness of its own, and a step size of its own."""
    rates = torch.tensor([1.0, 30.0, 5.0], dtype=torch.float64)

    def velocity(s, x, rows, rates=rates):
        rate = rates[rows]
        return -rate[:, None] * (x - torch.sin(3 * s)[:, None]), -rate * 2

    x = torch.ones(3, 2, dtype=torch.float64)
    together = Adaptive(1e-6, 1e-6)(velocity, x)
    for i in range(3):
        alone = Adaptive(1e-6, 1e-6)(lambda s, y, rows, i=i: velocity(s, y, rows, rates[i : i + 1]), x[i : i + 1])
        for one, many in zip(alone, together, strict=True):
            assert torch.equal(one[0], many[i])
    assert len(set(together[2].tolist())) == 3


def test_the_error_of_the_log_determinant_is_controlled_too():
    """x stands still, and the trace has a narrow bump."""

    def bump(s, x, rows):
        return torch.zeros_like(x), torch.exp(-(((s - 0.5) / 0.1) ** 2))

    _, log_det, _ = Adaptive(1e-8, 1e-8)(bump, torch.zeros(1, 1, dtype=torch.float64))
    assert log_det.item() == pytest.approx(0.1 * math.sqrt(math.pi), abs=1e-6)


def test_what_cannot_be_solved_is_said():
    with pytest.raises(UserError, match="more than 50 steps"):
        Adaptive(1e-6, 1e-6, max_steps=50)(lambda s, x, rows: (x * math.nan, s), START)
    for wrong in (lambda: Fixed(0), lambda: Fixed(3, "euler"), lambda: Adaptive(0.0)):
        with pytest.raises(UserError, match="likelihood"):
            wrong()
