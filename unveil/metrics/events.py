"""Metrics of when: how late a detector notices, and how well it tells the points in time at which actions begin."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from unveil.metrics.detection import Instances, instances

Array = np.ndarray[Any, Any]


class Delays(NamedTuple):
    """For each action, the chunks from its first to the first that reaches the threshold, ``[I]``: -1 where none of its own does."""

    actions: Instances
    delay: Array

    @property
    def missed(self) -> float:
        """Share of the actions never noticed."""
        return float((self.delay < 0).mean()) if len(self.delay) else float("nan")

    @property
    def median(self) -> float:
        """Of those noticed, in chunks."""
        seen = self.delay[self.delay >= 0]
        return float(np.median(seen)) if len(seen) else float("nan")


def detection_delay(scores_TC: Array, truth_TC: Array, boundaries: Array, threshold: float, ignored: Collection[int] = ()) -> Delays:
    """How long after its onset each action's own class scores at least ``threshold``. A threshold that is always reached has no delay:
    read it beside the precision at that threshold."""
    found, reached = instances(truth_TC, boundaries, ignored), np.asarray(scores_TC) >= threshold
    count = len(reached)
    # for each chunk the next one that reaches it; behind the last there is none
    following = np.minimum.accumulate(np.where(reached, np.arange(count)[:, None], count)[::-1])[::-1]
    first = following[found.start, found.label]
    return Delays(found, np.where(first < found.stop, first - found.start, -1))


class Points(NamedTuple):
    """Moments: ``video`` and ``chunk`` int64 ``[P]``, the class and, of detections, its confidence."""

    video: Array
    chunk: Array
    label: Array
    confidence: Array


def onsets(truth_TC: Array, boundaries: Array, ignored: Collection[int] = ()) -> Points:
    """The first chunk of every action, counted from the beginning of its video."""
    found = instances(truth_TC, boundaries, ignored)
    video = np.searchsorted(boundaries, found.start, side="right") - 1
    return Points(video, found.start - np.asarray(boundaries)[video], found.label, np.ones(len(video)))


def point_average_precision(detected: Points, true: Points, tolerance: int, classes: int) -> Array:
    """Point-level AP of each class ``[C]`` (Shou et al. 2018).

    The most confident detection first, each takes the nearest onset of its class and video that is left and at most ``tolerance`` chunks
    off, or is false. AP is the mean over onsets of the precision at the rank that found them, 0 for one never found; NaN for a class
    without onsets.
    """
    found = np.full(classes, np.nan)
    for c in np.unique(true.label):
        mine, open_ = np.flatnonzero(detected.label == c), np.flatnonzero(true.label == c)
        wanted, hits = len(open_), []
        for i in mine[np.argsort(-detected.confidence[mine], kind="stable")]:
            off = np.where(true.video[open_] == detected.video[i], np.abs(true.chunk[open_] - detected.chunk[i]), tolerance + 1)
            hits.append(bool(len(off)) and bool(off.min() <= tolerance))
            if hits[-1]:
                open_ = np.delete(open_, off.argmin())
        hit = np.array(hits, dtype=bool)
        found[c] = (np.cumsum(hit) / np.arange(1, len(hit) + 1))[hit].sum() / wanted
    return found
