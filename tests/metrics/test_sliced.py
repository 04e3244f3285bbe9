from __future__ import annotations

import numpy as np
import pytest

from unveil.metrics.sliced import sliced_wasserstein


def test_in_one_dimension_it_is_the_distance_itself() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((50, 1)), rng.standard_normal((50, 1)) + 2
    wanted = np.sqrt(np.mean((np.sort(a[:, 0]) - np.sort(b[:, 0])) ** 2))
    assert sliced_wasserstein(a, b) == pytest.approx(wanted, rel=1e-12)


def test_sets_of_different_sizes_are_compared_exactly() -> None:
    """A set repeated is the same law."""
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((12, 3)), rng.standard_normal((20, 3))
    assert sliced_wasserstein(a, np.repeat(a, 5, axis=0)) == pytest.approx(0, abs=1e-12)
    assert sliced_wasserstein(a, b) == pytest.approx(sliced_wasserstein(np.repeat(a, 5, 0), np.repeat(b, 3, 0)), rel=1e-12)


def test_a_shift_of_a_gaussian_is_seen_at_its_length_over_root_d() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((3000, 4))
    found = sliced_wasserstein(x, x + np.array([3.0, 0, 0, 0]), directions=4000)
    assert found == pytest.approx(3 / 2, rel=0.05)
    with pytest.raises(ValueError, match="cannot be compared"):
        sliced_wasserstein(x, x[:, :2])
