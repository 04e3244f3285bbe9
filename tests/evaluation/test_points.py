"""Distances of points, with their floor."""

from __future__ import annotations

import numpy as np
import pytest

from unveil.evaluation.points import sliced


def test_a_shift_is_seen_above_the_floor() -> None:
    rng = np.random.default_rng(0)
    held, train, same = rng.standard_normal((3, 4000, 2))
    shifted = sliced(same + np.array([0.4, 0]), held, train)
    assert shifted.distance == pytest.approx(0.4 / 2**0.5, rel=0.05)  # |shift| / sqrt(D)
    fair = sliced(same, held, train)
    assert fair.distance == pytest.approx(fair.floor, abs=5 * fair.stderr) and fair.floor < 0.1 < shifted.distance
    assert (fair.samples, fair.real) == (4000, 4000)


def test_the_error_is_that_of_other_samples() -> None:
    rng = np.random.default_rng(1)
    held = rng.standard_normal((1000, 2))
    found = [sliced(rng.standard_normal((400, 2)) + np.array([1, 0]), held, held) for _ in range(24)]
    spread = np.std([f.distance for f in found], ddof=1)
    assert 0.5 < np.mean([f.stderr for f in found]) / spread < 1.3
    assert np.isnan(sliced(held[:8], held, held).stderr)
