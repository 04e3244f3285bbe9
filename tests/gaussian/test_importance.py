from __future__ import annotations

import pytest
import torch

from unveil.errors import UserError
from unveil.gaussian.importance import Importance


def uniform(count):
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def loss_at(u):
    return torch.exp(4 * u)


def filled(bins=10, **options):
    table = Importance(bins, **options)
    u = uniform(50 * bins)
    table.observe(u, loss_at(u))
    table.advance()
    return table


def test_it_is_uniform_until_every_bin_has_been_seen():
    table, u = Importance(4, warmup=3), uniform(40)
    table.observe(uniform(12)[:11], torch.ones(11))
    table.advance()
    warped, correction = table.warp(u)
    torch.testing.assert_close(warped, u, rtol=0, atol=1e-15)
    assert (correction == 1).all()


def test_draws_follow_the_root_of_the_second_moment():
    table = filled(floor=1e-6)
    root = loss_at(uniform(500)).square().reshape(10, 50).mean(1).sqrt()
    warped, correction = table.warp(uniform(100_000))
    counts = torch.bincount((warped * 10).long(), minlength=10) / 100_000
    torch.testing.assert_close(counts, (root / root.sum()).float(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(correction, 1 / (10 * table.probabilities()[(warped * 10).long()]))


def test_the_expectation_stays_and_the_variance_falls():
    table, u = filled(), uniform(200_000)
    warped, correction = table.warp(u)
    plain, weighed = loss_at(u), correction * loss_at(warped)
    torch.testing.assert_close(weighed.mean(), plain.mean(), rtol=1e-4, atol=0)
    assert weighed.var() < 0.1 * plain.var()


def test_what_is_observed_counts_after_advance_only():
    table, u = filled(), uniform(1000)
    before = table.warp(u)[0]
    table.observe(u, 1 / loss_at(u))
    assert torch.equal(table.warp(u)[0], before)
    table.advance()
    assert not torch.equal(table.warp(u)[0], before)
    again = table.warp(u)[0]
    table.advance()  # nothing new
    assert torch.equal(table.warp(u)[0], again)


def test_the_window_forgets():
    table = filled(bins=2, window=10)
    for _ in range(150):
        table.observe(uniform(2), torch.tensor([3.0, 1.0]))
        table.advance()
    torch.testing.assert_close(table.second_moment, torch.tensor([9.0, 1.0], dtype=torch.float64), rtol=1e-3, atol=0)
    table.observe(uniform(20), torch.tensor([2.0] * 10 + [5.0] * 10))
    table.advance()
    torch.testing.assert_close(table.second_moment, torch.tensor([4.0, 25.0], dtype=torch.float64))


def test_its_state_is_in_the_model():
    table = filled()
    table.observe(uniform(3), torch.ones(3))
    other = Importance(10)
    other.load_state_dict(table.state_dict())
    for one in (table, other):
        one.advance()
    assert torch.equal(other.probabilities(), table.probabilities())


def test_a_loss_that_is_not_finite_is_passed_over():
    table = filled()
    before = table.probabilities()
    table.observe(uniform(3), torch.tensor([float("nan"), float("inf"), float("nan")]))
    table.advance()
    assert torch.equal(table.probabilities(), before)


@pytest.mark.parametrize("wrong", [{"bins": 0}, {"floor": 0.0}, {"floor": 1.5}])
def test_settings_that_make_no_table_are_refused(wrong):
    with pytest.raises(UserError):
        Importance(**wrong)
