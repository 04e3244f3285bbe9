from __future__ import annotations

import math

import pytest
import torch

from unveil.errors import UserError
from unveil.training.ema_profile import Profile, coefficients, decay, gamma_of, inner_product, reconstruct, sigma_rel_of


def density(profile, tau):
    """(gamma + 1) tau^gamma / t^(gamma + 1) up to t."""
    return torch.where(tau <= profile.time, (profile.gamma + 1) * tau**profile.gamma / profile.time ** (profile.gamma + 1), 0.0)


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.10, 6.94), (0.15, 3.56), (0.2886751345948129, 0.0)])
def test_widths_and_exponents(sigma_rel, gamma):
    """16.97 and 6.94 are the paper's."""
    assert gamma_of(sigma_rel) == pytest.approx(gamma, abs=6e-3)
    assert sigma_rel_of(gamma_of(sigma_rel)) == pytest.approx(sigma_rel, rel=1e-9)
    tau = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000
    p = density(Profile(gamma_of(sigma_rel), 1.0), tau)
    mean = (p * tau).mean()
    assert ((p * (tau - mean) ** 2).mean().sqrt()).item() == pytest.approx(sigma_rel, rel=1e-4)


@pytest.mark.parametrize(
    ("a", "b"), [((6.94, 3.0), (16.97, 5.0)), ((16.97, 5.0), (6.94, 3.0)), ((2.0, 4.0), (2.0, 4.0)), ((0.0, 1.0), (9.0, 2.0))]
)
def test_inner_products_by_quadrature(a, b):
    a, b = Profile(*a), Profile(*b)
    tau = (torch.arange(2_000_000, dtype=torch.float64) + 0.5) / 2_000_000 * 5.0
    assert inner_product(a, b) == pytest.approx((density(a, tau) * density(b, tau)).mean().item() * 5.0, rel=1e-5)


def tracked(gamma, weights):
    """The average kept in training, after every update."""
    average, history = torch.zeros_like(weights[0]), []
    for update, w in enumerate(weights, start=1):
        average = torch.lerp(w, average, decay(gamma, update))
        history.append(average)
    return history


def test_the_recursion_weighs_by_a_power_of_time():
    """Weights w_i = i / T: their average under tau^gamma is (gamma + 1) / (gamma + 2), up to 1 / T; the first ones never count."""
    T = 4000
    weights = [torch.tensor([i / T, 1.0], dtype=torch.float64) for i in range(1, T + 1)]
    for gamma in (gamma_of(0.05), gamma_of(0.1), 0.0):
        average = tracked(gamma, weights)[-1]
        assert average[0].item() == pytest.approx((gamma + 1) / (gamma + 2), abs=2 * (1 + gamma) / T)
        assert average[1].item() == pytest.approx(1.0, abs=1e-12)


def snapshots(times=(250, 500, 750, 1000), widths=(0.05, 0.1)):
    return [Profile(gamma_of(width), float(time)) for time in times for width in widths]


def test_a_kept_average_is_reconstructed_as_itself():
    kept = snapshots()
    for i in (0, 3, 7):
        found = coefficients(kept, kept[i])
        wanted = [float(j == i) for j in range(len(kept))]
        assert found == pytest.approx(wanted, abs=1e-9)


def test_an_average_nobody_kept_is_found_from_snapshots():
    """Weights that go a smooth and a noisy way; averages of widths 0.05 and 0.1 kept eight times, of 0.075 wanted: nearer to the truth
    by far than any of those kept."""
    T, generator = 1000, torch.Generator().manual_seed(0)
    noise = torch.randn(T, 3, generator=generator, dtype=torch.float64)
    path = torch.stack([torch.linspace(0, 1, T), torch.linspace(0, 6, T).sin(), torch.linspace(1, 0, T) ** 3], 1).double()
    weights = list(path + 0.05 * noise)
    kept = snapshots(times=range(125, 1001, 125))
    histories = {width: tracked(gamma_of(width), weights) for width in (0.05, 0.1)}
    stored = [histories[width][time - 1] for time in range(125, 1001, 125) for width in (0.05, 0.1)]
    for width, time in ((0.075, 1000), (0.12, 1000), (0.08, 700)):
        truth = tracked(gamma_of(width), weights)[time - 1]
        loaded = []

        def load(i, loaded=loaded):
            loaded.append(i)
            return {"w": stored[i].float(), "b": stored[i][:1].bfloat16()}

        found = reconstruct(kept, load, Profile(gamma_of(width), float(time)))
        assert found["w"].dtype == torch.float32 and found["b"].dtype == torch.bfloat16
        nearest = min((stored_one - truth).norm() for stored_one in stored)
        assert (found["w"] - truth).norm() < 0.15 * nearest
        assert len(loaded) <= len(kept)


def test_coefficients_sum_to_one():
    assert sum(coefficients(snapshots(), Profile(gamma_of(0.2), 1000.0))) == pytest.approx(1.0, abs=1e-9)


def test_what_cannot_be_reconstructed_is_refused():
    for wrong in (0.0, 0.3, -0.1, math.nan):
        with pytest.raises(UserError, match="width"):
            gamma_of(wrong)
    with pytest.raises(UserError, match="averages"):
        coefficients([], Profile(5.0, 10.0))
    with pytest.raises(UserError, match="averages"):
        coefficients([Profile(5.0, 0.0)], Profile(5.0, 10.0))
