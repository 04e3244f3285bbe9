from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from unveil.data.noise import generator
from unveil.data.sprites import CHUNK, CLASSES, ONE, RADII, SPEED, WORLD, Path, Video, _acted, _mask, _steps, sprites, static

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def video() -> Video:
    return sprites("test", 0, chunks=60)


def test_a_video_is_the_same_for_ever(video: Video) -> None:
    assert video.frames.shape == (360, 64, 64, 3) and video.frames.dtype == np.uint8 and video.labels.shape == (60,)
    assert (
        hashlib.sha256(video.frames.tobytes() + video.labels.tobytes()).hexdigest()
        == "0d98f00c104d3d39e09622fcc9ea95525ef2b6fe06e337b07a35291899322fc3"
    )
    assert not np.array_equal(sprites("test", 1, chunks=60).frames, video.frames)
    assert not np.array_equal(sprites("train", 0, chunks=60).frames, video.frames)


def test_the_static_control_shows_no_motion_within_a_chunk(video: Video) -> None:
    shown = static(video)
    chunks = shown.frames.reshape(60, CHUNK, 64, 64, 3)
    assert (chunks == chunks[:, :1]).all() and np.array_equal(chunks[:, 0], video.frames[CHUNK - 1 :: CHUNK])
    assert not (video.frames.reshape(60, CHUNK, 64, 64, 3) == video.frames[CHUNK - 1 :: CHUNK, None]).all()


def acted(count: int) -> list[tuple[int, Array, Array, Array]]:
    """Label and path of each stretch of one class, in so many videos, but for the last, which the end may cut."""
    found = []
    for i in range(count):
        labels, path = _acted(generator(0, 0, i, "test"), 240)
        bounds = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist()]
        found += [(int(labels[a]), *(part[a * CHUNK : b * CHUNK] for part in path)) for a, b in pairwise(bounds)]
    return found


def test_a_moment_tells_nothing_of_the_class() -> None:
    """Place and size are uniform in every class, so that no function of one frame knows better than the prior."""
    places: dict[int, list[tuple[int, int, int]]] = {label: [] for label in range(len(CLASSES))}
    for label, x, y, size in acted(600):
        middle = len(x) // 2
        places[label].append((x[middle] * 4 // WORLD, y[middle] * 4 // WORLD, size[middle] // CHUNK))
    for found in places.values():
        for column, levels in zip(np.array(found).T, (4, 4, len(RADII)), strict=True):
            counts = np.bincount(column, minlength=levels)
            statistic = (np.square(counts - len(found) / levels) / (len(found) / levels)).sum()
            assert statistic < levels - 1 + 5 * np.sqrt(2 * (levels - 1))  # chi-squared: mean and five deviations


def test_motion_tells_the_class() -> None:
    def step(at: Array) -> Array:
        return (np.diff(at) + WORLD // 2) % WORLD - WORLD // 2

    begins = set()
    for label, x, y, size in acted(40):
        dx, dy, dsize = step(x), step(y), np.diff(size)
        name, half = CLASSES[label], len(x) // 2 - 1
        if name in ("left", "right"):
            assert (dx == (SPEED if name == "right" else -SPEED)).all() and not dy.any()
        elif name in ("up", "down"):
            assert (dy == (SPEED if name == "down" else -SPEED)).all() and not dx.any()
        elif name in ("clockwise", "counter-clockwise"):
            begins.add((int(dx[0]), int(dy[0])))
            turned = np.sign(dx[:-1] * dy[1:] - dy[:-1] * dx[1:])
            assert (turned == (1 if name == "clockwise" else -1)).all() and np.abs(np.hypot(dx, dy) - SPEED).max() < 1
        elif name in ("grow", "shrink"):
            assert not dx.any() and set(dsize.tolist()) <= ({1, -47} if name == "grow" else {-1, 47})
        elif name.startswith("out"):
            assert (dx == dy).all() and (dx[:half] == dx[0]).all() and dx[0] > 0
            assert (dx[half:] == (0 if name.endswith("stay") else -dx[0])).all()
    assert len(begins) > 20  # an orbit sets out in any direction: the first step does not tell it


def test_two_stages_are_one_up_to_their_middle() -> None:
    back, stay = (_steps(generator(0, 0, 0, "x"), CLASSES.index(name), 60) for name in ("out and back", "out and stay"))
    assert np.array_equal(back[:30], stay[:30]) and not stay[30:].any() and np.array_equal(back[30:], -back[:30])


def test_what_acts_is_drawn_where_it_is() -> None:
    path = Path(np.array([0, 32 * ONE]), np.array([32 * ONE, 20 * ONE]), np.array([0, 47]))
    for shape, area in ((0, 4), (1, np.pi), (2, 2)):
        mask = _mask(path, shape)
        assert mask.sum((1, 2)) == pytest.approx([area * 4**2, area * 11**2], rel=0.35)
        assert mask[0, 32, 0] and mask[0, 32, 63] and not mask[0, 32, 32]  # across the edge
        assert np.array_equal(np.argwhere(mask[1]).mean(0), [19.5, 31.5])
