"""Kernel distance between two sets of features (Binkowski et al. 2018): unbiased at any number of samples, unlike Frechet's."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class KernelDistance(NamedTuple):
    value: float
    """Mean over the blocks; may be negative."""
    stderr: float
    """Standard error of that mean; NaN for a single block."""


def kid(a: Array, b: Array, block: int = 1000) -> KernelDistance:
    """Squared maximum mean discrepancy of features ``[N, D]`` and ``[M, D]`` under the kernel (x . y / D + 1)^3.

    The sets are cut into blocks of ``block`` in the order given, the last incomplete one left out unless it is the only one. Raises
    ValueError for fewer than two features in a set or for features of different widths.
    """
    if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features of shapes {a.shape} and {b.shape} cannot be compared")
    size = min(block, len(a), len(b))
    count = min(len(a), len(b)) // size
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    values = np.array([_mmd(a[i * size : (i + 1) * size], b[i * size : (i + 1) * size]) for i in range(count)])
    return KernelDistance(float(values.mean()), float(values.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan"))


def _mmd(a: Array, b: Array) -> float:
    """The U-statistic: pairs of a sample with itself stay out."""
    n, width = a.shape

    def kernel(x: Array, y: Array) -> Array:
        values: Array = (x @ y.T / width + 1) ** 3
        return values

    within = sum(float(k.sum() - np.trace(k)) for k in (kernel(a, a), kernel(b, b)))
    return within / (n * (n - 1)) - 2 * float(kernel(a, b).mean())
