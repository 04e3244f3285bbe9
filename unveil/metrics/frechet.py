"""Frechet distance between Gaussians fitted to features (Dowson and Landau 1982; Heusel et al. 2017, "FID" with Inception's features)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class Moments(NamedTuple):
    """Mean ``[D]`` and covariance ``[D, D]`` (unbiased), float64."""

    mean: Array
    covariance: Array

    @staticmethod
    def of(features: Array) -> Moments:
        """Of features ``[N, D]``. Raises ValueError for fewer than two."""
        if len(features) < 2:
            raise ValueError(f"{len(features)} features have no covariance")
        wide = np.asarray(features, dtype=np.float64)
        return Moments(wide.mean(0), np.atleast_2d(np.cov(wide, rowvar=False)))


def frechet(a: Moments, b: Moments) -> float:
    """|mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)): the squared 2-Wasserstein distance of the two Gaussians.

    tr (C_a C_b)^(1/2) is the sum of the singular values of C_a^(1/2) C_b^(1/2): two symmetric roots, which need no complex numbers and
    no ridge where a covariance is singular.
    """
    spread = np.linalg.svd(_root(a.covariance) @ _root(b.covariance), compute_uv=False).sum()
    distance = np.square(a.mean - b.mean).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * spread
    return max(float(distance), 0.0)


def _root(covariance: Array) -> Array:
    values, vectors = np.linalg.eigh(covariance)
    root: Array = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    return root
