from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from unveil.text.preference import Estimate, Judged, judge

PAIR = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0])
CHOSEN = torch.tensor([1, 1, 0, 0, 1, 0, 0, 1]).bool()
"""Two versions of each answer of two pairs, mixed up."""


def of(values_N: Tensor) -> Estimate:
    return Estimate(values_N.detach(), lambda slopes_N: (slopes_N * values_N).sum())


def drawn(seed: int, n: int = 8) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3 - 20


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_the_loss_and_its_gradient_are_those_of_the_paper(beta: float) -> None:
    policy, reference = drawn(0).requires_grad_(), drawn(1)
    found = judge(of(policy), reference, PAIR, CHOSEN, beta)
    found.loss.backward()
    expected, gradient, rewards = 0.0, torch.zeros(8, dtype=torch.float64), []
    for pair in (0, 1):
        sides = [(pair == PAIR) & (side == CHOSEN) for side in (True, False)]
        reward = [beta * float((policy - reference).detach()[side].mean()) for side in sides]
        margin = reward[0] - reward[1]
        expected += math.log1p(math.exp(-margin))
        for side, sign in zip(sides, (-1, 1), strict=True):  # -beta sigma(-margin) (grad log p(chosen) - grad log p(rejected)), eq. 7
            gradient[side] = sign * beta / (1 + math.exp(margin)) / 2
        rewards.append(reward)
    assert float(found.loss.detach()) == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(policy.grad, gradient, rtol=1e-12, atol=0)
    assert float(found.accuracy) == sum(a > b for a, b in rewards)
    assert float(found.margin) == pytest.approx(sum(a - b for a, b in rewards), rel=1e-12)
    assert [float(found.chosen), float(found.rejected)] == pytest.approx([sum(side) for side in zip(*rewards, strict=True)], rel=1e-12)


def test_a_network_that_is_its_reference_loses_log_2_and_is_neither_right_nor_wrong() -> None:
    found = judge(of(drawn(0)), drawn(0), PAIR, CHOSEN, 0.7)
    assert [float(x) for x in found] == [2 * math.log(2), 1.0, 0.0, 0.0, 0.0]


def test_pairs_add_up_however_they_are_put_together() -> None:
    policy, reference = drawn(2), drawn(3)

    def sums(at: Tensor) -> Judged:
        return judge(of(policy[at]), reference[at], torch.zeros(int(at.sum()), dtype=torch.int64), CHOSEN[at], 0.3)

    together = judge(of(policy), reference, PAIR, CHOSEN, 0.3)
    for whole, *parts in zip(together, sums(PAIR == 0), sums(PAIR == 1), strict=True):
        assert float(whole) == pytest.approx(float(sum(parts)), rel=1e-12)


def test_a_margin_beyond_all_bounds_is_finite() -> None:
    policy = torch.tensor([0.0, 1e6], dtype=torch.float64).requires_grad_()
    found = judge(of(policy), torch.zeros(2, dtype=torch.float64), torch.tensor([0, 0]), torch.tensor([True, False]), 1.0)
    found.loss.backward()
    assert float(found.loss.detach()) == 1e6 and policy.grad is not None and policy.grad.tolist() == [-1.0, 1.0]
