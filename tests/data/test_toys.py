"""Points whose distributions are known by sight."""

from __future__ import annotations

import numpy as np
import pytest

from unveil.data.toys import TOYS, points
from unveil.errors import UserError


@pytest.mark.parametrize("name", TOYS)
def test_points_are_the_same_for_a_seed_and_fill_the_frame(name: str) -> None:
    xy, part = points(name, 4000)
    assert xy.dtype == np.float32 and xy.shape == (4000, 2) and len(part) == 4000
    assert np.array_equal(points(name, 4000)[0], xy) and not np.array_equal(points(name, 4000, seed=1)[0], xy)
    assert np.abs(xy.mean(0)).max() < 0.05 and 0.3 < xy.std() < 0.7 and np.abs(xy).max() < 1.2


def test_they_lie_where_they_should() -> None:
    rings, part = points("rings", 6000)
    assert np.abs(np.linalg.norm(rings, axis=1) - 0.3 * (part + 1)).max() < 0.15
    assert np.abs(np.bincount(part) / 6000 - np.array([1, 2, 3]) / 6).max() < 0.03
    board, _ = points("checkerboard", 6000)
    assert (np.floor(2 * (board + 1)).sum(1) % 2 == 0).all() and np.abs(board).max() <= 1
    centres, part = points("gaussians", 6000)
    at = 0.8 * np.stack([np.cos(part * np.pi / 4), np.sin(part * np.pi / 4)], 1)
    assert (centres - at).std() == pytest.approx(0.06, rel=0.05)
    moons, part = points("moons", 6000)
    upper = moons[part == 0] / 0.6 + [0.5, 0.25]
    assert np.abs(np.linalg.norm(upper, axis=1) - 1).max() < 0.35 and upper[:, 1].min() > -0.3
    spiral, part = points("spiral", 6000)
    radius, angle = np.linalg.norm(spiral, axis=1) / 0.95, np.arctan2(spiral[:, 1], spiral[:, 0])
    wound = np.angle(np.exp(1j * (angle - 3 * np.pi * radius - np.pi * part)))
    assert np.abs(wound[radius > 0.5]).max() < 0.9


def test_an_unknown_toy_gets_the_nearest_name() -> None:
    with pytest.raises(UserError, match="did you mean 'moons'"):
        points("moon", 3)
