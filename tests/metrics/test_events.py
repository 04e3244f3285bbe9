from __future__ import annotations

import math

import numpy as np
import pytest

from unveil.metrics.events import Points, detection_delay, onsets, point_average_precision


def points(*rows: tuple[int, int, int, float]) -> Points:
    video, chunk, label, confidence = (np.array(column) for column in zip(*rows, strict=True))
    return Points(video, chunk, label, confidence)


def test_delay_counts_from_the_onset_within_the_action() -> None:
    labels = np.array([0, 1, 1, 1, 0, 0, 2, 2, 2, 1, 1])
    scores = np.zeros((11, 3))
    scores[3, 1] = scores[4, 1] = scores[6, 2] = 0.7
    scores[8, 1] = 0.9  # before its action begins
    truth, boundaries = np.eye(3)[labels], np.array([0, 5, 11])
    found = detection_delay(scores, truth, boundaries, 0.7)
    assert found.actions.label.tolist() == [1, 1, 2] and found.delay.tolist() == [2, -1, 0]
    assert found.missed == pytest.approx(1 / 3) and found.median == 1
    assert detection_delay(scores, truth, boundaries, 0.71).missed == 1
    assert math.isnan(detection_delay(scores, truth, boundaries, 0.71).median)
    assert math.isnan(detection_delay(scores, np.eye(3)[[0] * 11], boundaries, 0.5).missed)


def test_onsets_count_within_their_video() -> None:
    labels = np.array([1, 1, 0, 2, 2, 2, 1])
    found = onsets(np.eye(3)[labels], np.array([0, 4, 7]))
    assert list(zip(found.video.tolist(), found.chunk.tolist(), found.label.tolist(), strict=True)) == [
        (0, 0, 1),
        (1, 2, 1),
        (0, 3, 2),
        (1, 0, 2),
    ]


def test_points_are_matched_once_and_the_surest_first() -> None:
    true = points((0, 10, 1, 1.0), (0, 30, 1, 1.0), (1, 10, 1, 1.0), (0, 50, 2, 1.0))
    detected = points(
        (0, 12, 1, 0.9),  # right, 2 off
        (0, 9, 1, 0.8),  # its onset is taken
        (1, 31, 1, 0.7),  # another video's
        (0, 30, 1, 0.6),  # right
        (0, 10, 2, 0.9),  # another class's
    )
    found = point_average_precision(detected, true, tolerance=2, classes=4)
    np.testing.assert_allclose(found, [np.nan, (1 / 1 + 2 / 4) / 3, 0, np.nan])
    np.testing.assert_allclose(point_average_precision(detected, true, 1, 4)[1], (1 / 2 + 2 / 4) / 3)
    assert point_average_precision(true, true, 0, 4)[1:3].tolist() == [1, 1]


def test_the_nearest_onset_is_taken() -> None:
    true = points((0, 10, 1, 1.0), (0, 13, 1, 1.0))
    detected = points((0, 12, 1, 0.9), (0, 11, 1, 0.8))
    assert point_average_precision(detected, true, 2, 2)[1] == 1
