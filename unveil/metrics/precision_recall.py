"""Improved precision and recall (Kynkaanniemi et al. 2019): fidelity and coverage apart, which one distance mixes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

CHUNK = 2048
"""Rows of the distance matrix held at a time."""


class PrecisionRecall(NamedTuple):
    precision: float
    """Share of the generated samples within the manifold of the real ones."""
    recall: float
    """Share of the real samples within the manifold of the generated ones."""


def precision_recall(real: Array, generated: Array, neighbours: int = 3) -> PrecisionRecall:
    """Of features ``[N, D]`` and ``[M, D]``. A set's manifold is the union of the balls around its members that reach their
    ``neighbours``-th nearest other member. Raises ValueError where a set has no so many others."""
    if min(len(real), len(generated)) <= neighbours:
        raise ValueError(f"{min(len(real), len(generated))} features have no {neighbours} neighbours each")
    return PrecisionRecall(_covered(real, generated, neighbours), _covered(generated, real, neighbours))


def _covered(manifold: Array, points: Array, neighbours: int) -> float:
    manifold, points = np.asarray(manifold, dtype=np.float64), np.asarray(points, dtype=np.float64)
    radii = np.concatenate([np.partition(d, neighbours, axis=1)[:, neighbours] for d in _distances(manifold, manifold)])
    inside = [(d <= radii).any(1) for d in _distances(points, manifold)]
    return float(np.concatenate(inside).mean())


def _distances(a: Array, b: Array) -> Any:
    """Squared distances of the rows of ``a`` to all of ``b``, in chunks; exactly 0 from a point to itself."""
    squares = np.square(b).sum(1)
    for start in range(0, len(a), CHUNK):
        rows = a[start : start + CHUNK]
        found = np.square(rows).sum(1)[:, None] + squares - 2 * rows @ b.T
        if a is b:
            found[np.arange(len(rows)), np.arange(start, start + len(rows))] = 0.0
        yield np.maximum(found, 0.0)
