from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import expm

from unveil.discrete.process import (
    SCHEDULES,
    Absorbing,
    Cosine,
    Geometric,
    Linear,
    LogLinear,
    LogUniform,
    Uniform,
    alpha,
    sigma,
    sigma_rate,
)
from unveil.nn.packed import Packed

TIMES = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)


@pytest.mark.parametrize("name", SCHEDULES)
def test_slope_is_the_derivative_of_alpha(name):
    schedule, t = SCHEDULES[name], TIMES.clone().requires_grad_()
    (derivative,) = torch.autograd.grad(alpha(schedule, t).sum(), t)
    torch.testing.assert_close(schedule.slope(t.detach()), derivative, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", SCHEDULES)
def test_weight_is_minus_slope_over_mask_rate(name):
    schedule = SCHEDULES[name]
    torch.testing.assert_close(schedule.weight(TIMES), -schedule.slope(TIMES) / (1 - alpha(schedule, TIMES)), rtol=1e-11, atol=0)
    # the same in terms of the total noise: sigma' / expm1(sigma)
    t = TIMES.clone().requires_grad_()
    (rate,) = torch.autograd.grad(sigma(schedule, t).sum(), t)
    torch.testing.assert_close(schedule.weight(TIMES), rate / torch.expm1(sigma(schedule, TIMES)), rtol=1e-11, atol=0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_small_times_keep_their_digits(name):
    """1 - alpha(t) behaves as c t^p near 0; computed as 1 - alpha it would be 0 at 1e-12."""
    schedule, t = SCHEDULES[name], torch.tensor([1e-12], dtype=torch.float64)
    power = 2 if name == "cosine" else 1
    ratio = schedule.mask_rate(2 * t) / schedule.mask_rate(t)
    assert abs(float(ratio) - 2**power) < 1e-9
    assert abs(float(schedule.weight(t) * t) - power) < 1e-9


def test_ends():
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    for schedule in SCHEDULES.values():
        assert float(alpha(schedule, zero)) == 1 and float(sigma(schedule, zero)) == 0
    assert float(alpha(Linear(), one)) == 0 and torch.isinf(sigma(Linear(), one))
    for schedule in (LogLinear(), Cosine()):
        assert abs(float(alpha(schedule, one)) - 1e-3) < 1e-15


@pytest.mark.parametrize(("name", "schedule"), [("loglinear", LogLinear()), ("cosine", Cosine())])
def test_golden_total_noise_and_rate(golden, name, schedule):
    """MDLM's noise tables: total = sigma(t), rate = d sigma / dt."""
    arrays, _ = golden("mdlm_subs")
    t = torch.from_numpy(arrays["inputs.noise_t"]).requires_grad_()
    total = sigma(schedule, t)
    (rate,) = torch.autograd.grad(total.sum(), t)
    np.testing.assert_allclose(total.detach().numpy(), arrays[f"outputs.noise_{name}.total"], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(rate.numpy(), arrays[f"outputs.noise_{name}.rate"], rtol=1e-11, atol=1e-14)


def test_tokens_are_masked_where_the_uniform_is_below_the_rate(vocabulary):
    batch = Packed.of([torch.tensor([3, 0, 1, 2]), torch.tensor([3, 2, 2])])
    process = Absorbing(Linear(), vocabulary.mask, (vocabulary.start,))
    u_T = torch.tensor([0.0, 0.29, 0.3, 0.31, 0.0, 0.79, 0.8], dtype=torch.float64)
    masked_T = process.masked(batch, torch.tensor([0.3, 0.8], dtype=torch.float64), u_T)
    assert masked_T.tolist() == [False, True, False, False, False, True, False]  # the start tokens stay at any u
    assert process.hide(batch.tokens_T, masked_T).tolist() == [3, 5, 1, 2, 3, 5, 2]


def test_at_time_one_of_the_linear_schedule_all_but_the_start_token_is_masked(vocabulary):
    batch = Packed.of([torch.tensor([3, 0, 1, 2, 4])])
    process = Absorbing(Linear(), vocabulary.mask, (vocabulary.start,))
    u_T = torch.full((5,), 1 - 2**-53, dtype=torch.float64)
    assert process.masked(batch, torch.ones(1), u_T).tolist() == [False, True, True, True, True]


@pytest.mark.parametrize("schedule", [Geometric(), Geometric(1e-3, 1.0), LogUniform(1e-3, 0.9)])
def test_schedules_with_noise_at_time_zero(schedule):
    t = TIMES.clone().requires_grad_()
    (derivative,) = torch.autograd.grad(alpha(schedule, t).sum(), t)
    torch.testing.assert_close(schedule.slope(TIMES), derivative, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(schedule.weight(TIMES), -schedule.slope(TIMES) / schedule.mask_rate(TIMES), rtol=1e-10, atol=0)
    (rate,) = torch.autograd.grad(sigma(schedule, t).sum(), t)
    torch.testing.assert_close(sigma_rate(schedule, TIMES), rate, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["geometric_a", "geometric_b", "loglinear"])
def test_golden_schedules_of_sedd(golden, name):
    arrays, config = golden("sedd_noise")
    schedule = LogLinear() if name == "loglinear" else Geometric(**config[name])
    t = torch.from_numpy(arrays["inputs.t"])
    np.testing.assert_allclose(sigma(schedule, t).numpy(), arrays[f"outputs.{name}.total"], rtol=1e-6)  # 1 - e^-20 has lost its digits
    np.testing.assert_allclose(sigma_rate(schedule, t).numpy(), arrays[f"outputs.{name}.rate"], rtol=1e-6)


def test_uniform_chain_is_the_exponential_of_its_rates():
    """Closed form, law of the draws and entropy against exp(sigma Q), by scipy."""
    states, process = (0, 1, 2, 4), Uniform(Geometric(1e-2, 4.0), (0, 1, 2, 4), (3,))
    fine = (torch.arange(40000, dtype=torch.float64) + 0.5) / 40000
    for t in (0.0, 0.5, 1.0):
        time = torch.tensor([t], dtype=torch.float64)
        noise = sigma(process.schedule, time)
        exact = expm(float(noise) * (np.full((4, 4), 0.25) - np.eye(4)))
        assert float(process.moved(noise)) == pytest.approx(exact[0, 1], rel=1e-9)
        assert float(process.entropy(noise)) == pytest.approx(-(exact[0] * np.log(exact[0])).sum(), rel=1e-9)
        for row, token in enumerate(states):
            drawn = process.noised(Packed.of([torch.full((40000,), token)]), time, fine)
            counts = np.array([int((drawn == state).sum()) for state in states]) / 40000
            np.testing.assert_allclose(counts, exact[row], atol=1e-4)
    assert process.noised(Packed.of([torch.tensor([3])] * 2), torch.ones(2), torch.zeros(2)).tolist() == [3, 3]


def test_a_time_for_each_token():
    batch = Packed.of([torch.tensor([3, 0, 1]), torch.tensor([3, 2])])
    masked_T = Absorbing(Linear(), 5, (3,)).masked(batch, torch.tensor([0.9, 0.1, 0.9, 0.9, 0.4]), torch.full((5,), 0.3))
    assert masked_T.tolist() == [False, False, True, False, True]
