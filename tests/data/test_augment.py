from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.linalg import expm

from unveil.config import AugmentConfig
from unveil.data.augment import PARAMETERS, SPREAD, augmented, parameters


def image(side: int = 16) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (3, side, side)).astype(np.float32)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_nothing_is_done_and_told_at_probability_zero() -> None:
    x, done = augmented(image(), AugmentConfig(), rng(0))
    assert np.array_equal(x, image()) and not done.any() and len(done) == 9
    assert parameters(AugmentConfig()) == 0 and parameters(AugmentConfig(probability=0.1)) == 9
    assert parameters(AugmentConfig(probability=0.1, kinds=("x-flip", "rotate"))) == 3


def test_flips_and_translations_are_exact() -> None:
    for kind, flipped in (("x-flip", image()[:, :, ::-1]), ("y-flip", image()[:, ::-1])):
        x, done = augmented(image(), AugmentConfig(probability=1, kinds=(kind,)), rng(0))  # type: ignore[arg-type]
        assert np.array_equal(x, flipped) and done.tolist() == [1]
    moves = set()
    for seed in range(20):
        x, done = augmented(image(), AugmentConfig(probability=1, kinds=("translate",)), rng(seed))
        right, down = (round(float(d) * SPREAD * 16) for d in done)
        mirrored = np.pad(image(), ((0, 0), (15, 15), (15, 15)), mode="reflect")
        assert np.array_equal(x, mirrored[:, 15 - down : 31 - down, 15 - right : 31 - right])
        moves.add((right, down))
    assert len(moves) > 15


def test_the_parameters_say_what_was_done() -> None:
    """A blob off the centre is found where scale, angle and stretch, read from the parameters alone, put it."""
    side, at = 65, np.array([12.0, -7.0])
    right, down = np.meshgrid(np.arange(side) - 32, np.arange(side) - 32)
    blob = (2 * np.exp(-((right - at[0]) ** 2 + (down - at[1]) ** 2) / 20) - 1)[None].astype(np.float32)
    for seed in range(8):
        x, done = augmented(blob, AugmentConfig(probability=1, kinds=("scale", "rotate", "stretch")), rng(seed))
        cos, sin = done[1] + 1, done[2]
        stretch = expm(0.2 * np.log(2) * np.array([[done[3], done[4]], [done[4], -done[3]]]))
        place = stretch @ (2.0 ** (0.2 * done[0]) * np.array([[cos, -sin], [sin, cos]]) @ at)
        near = np.hypot(right - place[0], down - place[1]) < 12  # the mirror at the border shows other blobs
        weight = (x[0] + 1) * near
        found = np.array([(weight * right).sum(), (weight * down).sum()]) / weight.sum()
        assert np.abs(found - place).max() < 0.15


def test_kinds_are_independent_and_as_frequent_as_asked() -> None:
    config = AugmentConfig(probability=0.25)
    told = np.array([augmented(image(4), config, rng(seed))[1] for seed in range(600)])
    bounds = np.cumsum([0, *PARAMETERS.values()])
    applied = np.array([(told[:, a:b] != 0).any(1) for a, b in pairwise(bounds)])
    assert np.abs(applied.mean(1)[[0, 1, 3, 4, 5]] - 0.25).max() < 0.06
    alone = np.array([augmented(image(4), AugmentConfig(probability=1, kinds=("y-flip",)), rng(seed))[1] for seed in range(5)])
    assert (alone == 1).all()
    correlation = np.corrcoef(applied[[0, 1, 3, 4, 5]])
    assert np.abs(correlation - np.eye(5)).max() < 0.15


@pytest.mark.parametrize("seed", range(3))
def test_values_stay_in_range_and_the_same_draws_give_the_same_image(seed: int) -> None:
    config = AugmentConfig(probability=0.9)
    x, done = augmented(image(), config, rng(seed))
    again, told = augmented(image(), config, rng(seed))
    assert np.array_equal(x, again) and np.array_equal(done, told)
    assert x.min() >= -1 and x.max() <= 1 and x.dtype == np.float32 and x.flags.c_contiguous and not np.array_equal(x, image())
