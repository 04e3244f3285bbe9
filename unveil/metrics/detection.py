"""Per-frame metrics of online action detection: how well a class's scores rank all chunks of all videos.

Shape letters: T chunks of all videos end to end, C classes, K chunks ahead, V videos. ``truth_TC`` is one-hot or multi-hot;
``boundaries`` are the V + 1 ends of the videos. Class ``BACKGROUND`` is no class of its own but every class's negatives.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

BACKGROUND = 0
PORTIONS = 10

Array = np.ndarray[Any, Any]
Cut = Callable[[int], list[tuple[int, int]]]
"""Takes the chunks of an instance to the ``PORTIONS`` spans ``[start, stop)`` of its portions."""


class Precision(NamedTuple):
    """A number per class ``[C]``, NaN where the class is not scored or has no positives, and their mean over the others."""

    classes: Array
    mean: float


def average_precision(scores_TC: Array, positives_TC: Array, calibrated: bool = False) -> Array:
    """Of each column: the mean over its positives of the precision among all chunks that score as high, float64 ``[C]``.

    Equal scores are one rank, as in scikit-learn's ``average_precision_score``. ``calibrated`` weights true positives by w = negatives /
    positives, w TP / (w TP + FP), so that chance is one half at any prior (De Geest et al. 2016). NaN without positives.
    Raises ValueError where shapes differ or a score is NaN.
    """
    scores, positives = np.asarray(scores_TC), np.asarray(positives_TC, dtype=bool)
    if scores.shape != positives.shape or scores.ndim != 2 or np.isnan(scores).any():
        raise ValueError(f"scores {scores.shape} and truth {positives.shape} of one shape [T, C], without NaN")
    found = np.full(scores.shape[1], np.nan)
    for c in np.flatnonzero(positives.any(0)):
        order = np.argsort(-scores[:, c])
        ranked, hit = scores[order, c], positives[order, c]
        last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # of each run of equal scores
        true = np.cumsum(hit)[last]
        false = last + 1 - true
        weight = (len(hit) - true[-1]) / true[-1] if calibrated else 1.0
        gained = np.diff(true, prepend=0)
        reached = gained > 0
        found[c] = (gained[reached] * _precision(weight, true[reached], false[reached])).sum() / true[-1]
    return found


def per_frame(scores_TC: Array, truth_TC: Array, ignored: Collection[int] = (), calibrated: bool = False) -> Precision:
    """mAP, or mcAP if ``calibrated``, by the rules of THUMOS' evaluation: chunks of an ignored class are left out altogether; background
    and ignored classes are not averaged; nor are classes without positives."""
    truth = np.asarray(truth_TC, dtype=bool)
    kept = ~truth[:, list(ignored)].any(1)
    found = average_precision(np.asarray(scores_TC)[kept], truth[kept], calibrated)
    found[[BACKGROUND, *ignored]] = np.nan
    return _mean(found)


def anticipation(
    scores_TKC: Array, truth_TC: Array, boundaries: Array, ignored: Collection[int] = (), calibrated: bool = False
) -> list[Precision]:
    """``per_frame`` for each horizon k = 1 ... K: what is said at t, at index k - 1, against the truth at t + k of the same video. The last
    k chunks of a video have none and are left out; the field's one number is the mean of the K means."""
    found = []
    for k in range(1, np.shape(scores_TKC)[1] + 1):
        said = np.flatnonzero(_left(boundaries) >= k)
        found.append(per_frame(np.asarray(scores_TKC)[said, k - 1], np.asarray(truth_TC)[said + k], ignored, calibrated))
    return found


def oadtr_subset(boundaries: Array, steps: int = 64, horizon: int = 8) -> Array:
    """Which chunks the released OadTR scores, bool ``[T]``: those with a full window behind and all futures ahead. Leaving the others out
    flatters nobody in particular, but numbers of both kinds do not compare."""
    left = _left(boundaries)
    starts = np.repeat(boundaries[:-1], np.diff(boundaries))
    return (np.arange(len(left)) - starts >= steps - 1) & (left >= horizon)


class Instances(NamedTuple):
    """Every action: the maximal runs of a class within a video. ``label``, ``start`` and ``stop`` int64 ``[I]``, ``[start, stop)`` in
    chunks of all videos."""

    label: Array
    start: Array
    stop: Array


def instances(truth_TC: Array, boundaries: Array, ignored: Collection[int] = ()) -> Instances:
    """By class and then by time; background and ignored classes have none."""
    truth = np.asarray(truth_TC, dtype=bool).copy()
    truth[:, [BACKGROUND, *ignored]] = False
    begins, ends = truth.copy(), truth.copy()
    begins[1:] &= ~truth[:-1]
    ends[:-1] &= ~truth[1:]
    inner = np.asarray(boundaries)[:-1]
    begins[inner] = truth[inner]
    ends[np.asarray(boundaries)[1:] - 1] = truth[np.asarray(boundaries)[1:] - 1]
    (label, start), (_, last) = np.nonzero(begins.T), np.nonzero(ends.T)
    return Instances(label, start, last + 1)


def tenths(length: int) -> list[tuple[int, int]]:
    """Every chunk in exactly one portion, by its middle; an instance shorter than ten chunks has portions without any."""
    cuts = np.ceil(np.arange(PORTIONS + 1) * length / PORTIONS - 0.5).astype(int).tolist()
    return list(pairwise(cuts))


def lstr_tenths(length: int) -> list[tuple[int, int]]:
    """As the released LSTR cuts, for numbers that compare with published ones: the last chunk is in no portion, and a portion without a
    chunk borrows one."""
    cuts = [(int((length - 1) * p / PORTIONS), int((length - 1) * ((p + 1) / PORTIONS))) for p in range(PORTIONS)]
    return [(start, max(start + 1, stop)) for start, stop in cuts]


def per_portion(
    scores_TC: Array, truth_TC: Array, boundaries: Array, ignored: Collection[int] = (), calibrated: bool = True, cut: Cut = tenths
) -> list[Precision]:
    """For each tenth of the actions' lengths: their chunks in it against all chunks without the class (De Geest et al. 2016).

    It shows how much of an action a detector must have seen."""
    truth, scores = np.asarray(truth_TC, dtype=bool), np.asarray(scores_TC)
    kept = ~truth[:, list(ignored)].any(1)
    within = np.zeros((PORTIONS, *truth.shape), dtype=bool)
    for label, start, stop in zip(*instances(truth, boundaries, ignored), strict=True):
        for portion, (a, b) in zip(within, cut(int(stop - start)), strict=True):
            portion[start + a : start + b, label] = True
    found = []
    for portion in within:
        classes = np.full(truth.shape[1], np.nan)
        for c in np.flatnonzero(portion[kept].any(0)):
            rows = kept & (portion[:, c] | ~truth[:, c])
            classes[c] = average_precision(scores[rows, c : c + 1], portion[rows, c : c + 1], calibrated)[0]
        found.append(_mean(classes))
    return found


def _left(boundaries: Array) -> Array:
    """Chunks of its video after each, ``[T]``."""
    ends = np.repeat(np.asarray(boundaries)[1:], np.diff(boundaries))
    left: Array = ends - 1 - np.arange(len(ends))
    return left


def _precision(weight: float, true: Array, false: Array) -> Array:
    """Calibrated; 1 before the first false one, also where nothing is negative and the weight is 0."""
    return np.where(false == 0, 1.0, weight * true / np.maximum(weight * true + false, np.finfo(float).tiny))


def _mean(classes: Array) -> Precision:
    scored = classes[~np.isnan(classes)]
    return Precision(classes, float(scored.mean()) if len(scored) else float("nan"))
