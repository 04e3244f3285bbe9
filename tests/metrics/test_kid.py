from __future__ import annotations

import numpy as np
import pytest

from unveil.metrics.kid import kid


def test_it_is_the_u_statistic_written_out() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((7, 3)), rng.standard_normal((7, 3)) + 0.5

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 3 + 1) ** 3)

    off = [(i, j) for i in range(7) for j in range(7) if i != j]
    within = np.mean([k(a[i], a[j]) for i, j in off]) + np.mean([k(b[i], b[j]) for i, j in off])
    across = np.mean([k(x, y) for x in a for y in b])
    assert kid(a, b).value == pytest.approx(within - 2 * across, rel=1e-12)
    assert np.isnan(kid(a, b).stderr)


def test_it_is_unbiased_at_any_number_of_samples() -> None:
    """Over many small sets of one law the mean is 0 within its error; of two laws it is the same for small and large blocks."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((20_000, 2)), rng.standard_normal((20_000, 2))
    same = kid(x, y, block=10)
    assert abs(same.value) < 4 * same.stderr
    small, large = kid(x, y + 0.3, block=10), kid(x, y + 0.3, block=500)
    assert abs(small.value - large.value) < 4 * (small.stderr + large.stderr) and large.value > 10 * large.stderr


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        kid(np.zeros((5, 2)), np.zeros((5, 3)))
