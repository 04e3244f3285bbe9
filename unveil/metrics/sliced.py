"""Sliced Wasserstein distance (Rabin et al. 2012): the mean over directions of the one-dimensional distance, which sorting solves."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def sliced_wasserstein(a: Array, b: Array, directions: int = 256, seed: int = 0) -> float:
    """The 2-Wasserstein distance of points ``[N, D]`` and ``[M, D]``, averaged (squared) over random directions; its root.

    Where N and M differ, the quantile functions are compared exactly, as the step functions they are. For two Gaussians that differ by
    a shift m it is |m| / sqrt(D) in expectation over the directions.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"points of shapes {a.shape} and {b.shape} cannot be compared")
    along = np.random.default_rng(seed).standard_normal((a.shape[1], directions))
    along /= np.linalg.norm(along, axis=0)
    x, y = np.sort(np.asarray(a, dtype=np.float64) @ along, axis=0), np.sort(np.asarray(b, dtype=np.float64) @ along, axis=0)
    # the levels at which either quantile function steps, and how much of [0, 1] lies between them
    levels = np.union1d(np.arange(1, len(x) + 1) * len(y), np.arange(1, len(y) + 1) * len(x))
    shares = np.diff(levels, prepend=0) / (len(x) * len(y))
    squares = np.square(x[(levels - 1) // len(y)] - y[(levels - 1) // len(x)])
    return float(np.sqrt((shares @ squares).mean()))
