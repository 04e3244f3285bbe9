from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from unveil.metrics.frechet import Moments, frechet


def covariance(rng: np.random.Generator, rank: int, size: int = 6) -> np.ndarray:
    a = rng.standard_normal((size, rank))
    return a @ a.T


def test_gaussians_have_the_closed_form() -> None:
    """G16: commuting covariances differ by their standard deviations, and any by scipy's matrix root."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    s, t, shift = rng.uniform(0.2, 3, 6), rng.uniform(0.2, 3, 6), rng.standard_normal(6)
    a, b = Moments(np.zeros(6), turn * s**2 @ turn.T), Moments(shift, turn * t**2 @ turn.T)
    assert frechet(a, b) == pytest.approx((shift**2).sum() + ((s - t) ** 2).sum(), abs=1e-10)
    c, d = covariance(rng, 6), covariance(rng, 6)
    wanted = np.trace(c + d) - 2 * np.trace(sqrtm(c @ d)).real
    assert frechet(Moments(np.ones(6), c), Moments(np.ones(6), d)) == pytest.approx(wanted, rel=1e-8)


def test_singular_covariances_need_no_ridge() -> None:
    rng = np.random.default_rng(1)
    low = covariance(rng, 2)
    assert frechet(Moments(np.zeros(6), low), Moments(np.zeros(6), low)) == pytest.approx(0, abs=1e-6)
    flat = Moments(np.zeros(6), np.zeros((6, 6)))
    assert frechet(flat, Moments(np.zeros(6), low)) == pytest.approx(np.trace(low), rel=1e-12)


def test_features_of_one_law_come_near_and_of_another_do_not() -> None:
    rng = np.random.default_rng(2)
    x, y, z = rng.standard_normal((4000, 4)), rng.standard_normal((4000, 4)), 2 * rng.standard_normal((4000, 4)) + 1
    assert frechet(Moments.of(x), Moments.of(y)) < 0.02
    assert frechet(Moments.of(x), Moments.of(z)) == pytest.approx(4 * (1 + 1), rel=0.1)
    assert Moments.of(x.astype(np.float32)).covariance.dtype == np.float64
    with pytest.raises(ValueError, match="no covariance"):
        Moments.of(x[:1])
