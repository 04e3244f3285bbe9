from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from unveil.metrics.detection import (
    Precision,
    anticipation,
    average_precision,
    instances,
    lstr_tenths,
    oadtr_subset,
    per_frame,
    per_portion,
    tenths,
)
from unveil.metrics.references import chance, delayed

Array = np.ndarray[Any, Any]
CLASSES = 5


def plain(scores: list[float], positive: list[bool], calibrated: bool) -> float:
    """AP from its definition: for each positive the precision among all that score at least as high."""
    total, count = 0.0, sum(positive)
    weight = (len(positive) - count) / count if calibrated else 1.0
    for i, one in enumerate(positive):
        if one:
            true = sum(p and s >= scores[i] for s, p in zip(scores, positive, strict=True))
            false = sum(not p and s >= scores[i] for s, p in zip(scores, positive, strict=True))
            total += weight * true / (weight * true + false)
    return total / count


@pytest.fixture(scope="module")
def videos() -> tuple[Array, Array, Array]:
    """Scores with many ties, one-hot truth in runs, and the ends of four videos."""
    rng = np.random.default_rng(0)
    boundaries = np.array([0, 40, 41, 130, 200])
    labels = np.repeat(rng.choice(CLASSES, 40, p=[0.4, 0.2, 0.2, 0.15, 0.05]), 5)
    truth = np.eye(CLASSES)[labels]
    return np.round(rng.random((200, CLASSES)) + 0.4 * truth, 1), truth, boundaries


@pytest.mark.parametrize("calibrated", [False, True])
def test_average_precision_is_its_definition_ties_and_all(videos: tuple[Array, Array, Array], calibrated: bool) -> None:
    scores, truth, _ = videos
    wanted = [plain(scores[:, c].tolist(), (truth[:, c] > 0).tolist(), calibrated) for c in range(CLASSES)]
    np.testing.assert_allclose(average_precision(scores, truth, calibrated), wanted, atol=1e-13)
    if not calibrated:
        np.testing.assert_allclose(wanted, average_precision_score(truth, scores, average=None), atol=1e-13)


def test_average_precision_at_its_ends() -> None:
    scores = np.array([[0.9], [0.8], [0.1]])
    assert average_precision(scores, np.array([[1], [1], [0]])) == average_precision(scores, np.ones((3, 1)), True) == 1
    assert np.isnan(average_precision(scores, np.zeros((3, 1))))
    for wrong in (scores[:2], scores[:, 0], scores * np.nan):
        with pytest.raises(ValueError, match="of one shape"):
            average_precision(wrong, np.ones((3, 1)))


def test_thumos_rules(videos: tuple[Array, Array, Array]) -> None:
    scores, truth, _ = videos
    found = per_frame(scores, truth, ignored=(4,))
    kept = truth[:, 4] == 0
    wanted = [average_precision_score(truth[kept, c], scores[kept, c]) for c in (1, 2, 3)]
    np.testing.assert_allclose(found.classes, [np.nan, *wanted, np.nan])
    assert kept.sum() < 200 and found.mean == pytest.approx(np.mean(wanted))
    absent = truth.copy()
    absent[:, 2] = 0
    assert per_frame(scores, absent).mean == pytest.approx(np.nanmean(per_frame(scores, absent).classes[[1, 3, 4]]))
    assert math.isnan(per_frame(scores, np.eye(CLASSES)[np.zeros(200, int)]).mean)


def test_anticipation_asks_the_same_video(videos: tuple[Array, Array, Array]) -> None:
    _, truth, boundaries = videos
    said = np.random.default_rng(1).random((200, 3, CLASSES))
    for k, found in enumerate(anticipation(said, truth, boundaries), start=1):
        pairs = [(t, t + k) for a, b in pairwise(boundaries) for t in range(a, b) if t + k < b]
        now, then = (list(part) for part in zip(*pairs, strict=True))
        np.testing.assert_allclose(found.classes, per_frame(said[now, k - 1], truth[then]).classes)
    told = np.stack([np.roll(truth, -k, axis=0) for k in (1, 2)], 1)  # wrong only across the ends of videos
    assert [found.mean for found in anticipation(told, truth, boundaries)] == [1, 1]


def test_oadtrs_subset_leaves_out_the_first_63_and_the_last_8() -> None:
    boundaries = np.array([0, 71, 150, 222])
    kept = oadtr_subset(boundaries)
    assert np.flatnonzero(kept).tolist() == [*range(71 + 63, 150 - 8), 150 + 63]


def test_instances_end_with_their_video(videos: tuple[Array, Array, Array]) -> None:
    labels = np.array([0, 1, 1, 2, 2, 2, 0, 2, 3, 3])
    found = instances(np.eye(CLASSES)[labels], np.array([0, 2, 5, 10]), ignored=(3,))
    assert list(zip(*(part.tolist() for part in found), strict=True)) == [(1, 1, 2), (1, 2, 3), (2, 3, 5), (2, 5, 6), (2, 7, 8)]


def test_portions_share_every_chunk_once() -> None:
    for length in range(1, 45):
        spans = tenths(length)
        assert [i for a, b in spans for i in range(a, b)] == list(range(length))
        assert max(b - a for a, b in spans) - min(b - a for a, b in spans) <= 1
    assert tenths(3) == [(0, 0), (0, 1), (1, 1), (1, 1), (1, 1), (1, 2), (2, 2), (2, 2), (2, 3), (3, 3)]
    assert lstr_tenths(3)[0] == (0, 1) and max(b for _, b in lstr_tenths(30)) == 29


def test_portions_score_only_their_chunks_against_all_others(videos: tuple[Array, Array, Array]) -> None:
    truth, boundaries = np.zeros((120, 2)), np.array([0, 120])
    truth[20:40, 1] = truth[60:100, 1] = 1
    truth[:, 0] = 1 - truth[:, 1]
    late = delayed(truth, boundaries, 4)  # misses the first 4 chunks of 20 and of 40: the first two tenths and the first
    found = [p.mean for p in per_portion(late, truth, boundaries, calibrated=False)]
    assert found[:2] == pytest.approx([6 / 66, (4 * 4 / 12 + 2 * 6 / 66) / 6])
    assert found[2:] == pytest.approx([6 / 14] * 8)  # of 8 false and 6 true


def test_delayed_oracles_fall_and_chance_is_the_prior(videos: tuple[Array, Array, Array]) -> None:
    _, truth, boundaries = videos
    means = [per_frame(delayed(truth, boundaries, k), truth).mean for k in (0, 1, 2, 4)]
    assert means[0] == 1 and means == sorted(means, reverse=True) and means[-1] < 0.7
    assert not delayed(truth, boundaries, 2)[[0, 1, 40, 41, 42]].any() and np.array_equal(delayed(truth, boundaries, 2)[43], truth[41])
    np.testing.assert_allclose(per_frame(chance(truth), truth).classes[1:], truth.mean(0)[1:])
    np.testing.assert_allclose(per_frame(chance(truth), truth, calibrated=True).classes[1:], 0.5)


@pytest.fixture(scope="module")
def golden(data_dir: Path) -> dict[str, Any]:
    with np.load(data_dir / "golden" / "oad_metrics.npz") as stored:
        assert json.loads(str(stored["config"]))["ambiguous"] == 21
        return {name: stored[name] for name in stored.files if name != "config"}


def test_public_evaluations_agree(golden: dict[str, Any]) -> None:
    scores, labels = golden["inputs.scores"], golden["inputs.labels"]
    thumos = per_frame(scores, labels, ignored=(21,))
    for public in ("thumos", "trn"):
        np.testing.assert_allclose(thumos.classes[1:21], golden[f"outputs.{public}.AP"][1:21], atol=1e-12)
        assert thumos.mean == pytest.approx(float(golden[f"outputs.{public}.mAP"]), abs=1e-12)
    every, calibrated = per_frame(scores, labels), per_frame(scores, labels, calibrated=True)
    np.testing.assert_allclose(every.classes[1:], golden["outputs.frame_level.AP"], atol=1e-12)
    np.testing.assert_allclose(every.classes[1:21], golden["outputs.lstr.AP"], atol=1e-12)
    np.testing.assert_allclose(calibrated.classes[1:], golden["outputs.frame_level.cAP"], atol=1e-6)
    np.testing.assert_allclose(calibrated.classes[1:21], golden["outputs.lstr.cAP"], atol=1e-6)
    assert every.mean == pytest.approx(float(golden["outputs.tvseries.mAP"]), abs=1e-12)
    assert calibrated.mean == pytest.approx(float(golden["outputs.frame_level.mcAP"]), abs=1e-6)


def test_equal_scores_are_one_rank_as_in_scikit_learn(golden: dict[str, Any]) -> None:
    tied = per_frame(golden["inputs.scores_tied"], golden["inputs.labels"]).classes[1:21].mean()
    assert tied == pytest.approx(float(golden["outputs.ties.sklearn_mAP"]), abs=1e-12)
    assert abs(tied - float(golden["outputs.ties.frame_level_mAP"])) > 0.03


def test_lstrs_portions(golden: dict[str, Any]) -> None:
    scores, labels = golden["inputs.scores"], golden["inputs.labels"]
    for name, calibrated in (("AP", False), ("cAP", True)):
        cut: list[Precision] = per_portion(scores, labels, np.array([0, 1500]), calibrated=calibrated, cut=lstr_tenths)
        means = [p.classes[1:21].mean() for p in cut]
        np.testing.assert_allclose(means, golden[f"outputs.lstr.perstage_mean_{name}"], atol=1e-6)
