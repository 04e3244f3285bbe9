"""Points in the plane whose distributions are known by sight, to see what a model of continuous data does."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from unveil.data.noise import generator
from unveil.errors import UserError, nearest

POINTS = 10_000
"""Drawn where no other number is asked for."""

Array = np.ndarray[Any, Any]


def points(name: str, count: int = POINTS, seed: int = 0) -> tuple[Array, Array]:
    """Points float32 ``[N, 2]`` about within [-1, 1] and the part that each belongs to, int64 ``[N]``; the same for the same seed.

    Raises UserError for a name that there is not.
    """
    if name not in TOYS:
        raise UserError("data.path", f"got '{name}' for a toy", nearest(name, TOYS))
    xy, part = TOYS[name](generator(seed, 0, 0, f"toy {name}"), count)
    return xy.astype(np.float32), part


def _moons(rng: np.random.Generator, count: int) -> tuple[Array, Array]:
    """Two half circles, each ending in the other's middle."""
    part, angle = rng.integers(0, 2, count), rng.uniform(0, math.pi, count)
    side = 1 - 2 * part
    xy = 0.6 * np.stack([side * (np.cos(angle) - 0.5), side * (np.sin(angle) - 0.25)], 1)
    return xy + 0.04 * rng.standard_normal(xy.shape), part


def _rings(rng: np.random.Generator, count: int) -> tuple[Array, Array]:
    """Three circles about one centre, each with as many points as its length deserves."""
    part, angle = rng.choice(3, count, p=np.array([1, 2, 3]) / 6), rng.uniform(0, 2 * math.pi, count)
    radius = 0.3 * (part + 1) + 0.03 * rng.standard_normal(count)
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1), part


def _checkerboard(rng: np.random.Generator, count: int) -> tuple[Array, Array]:
    """The eight black squares of a board of four by four."""
    part = rng.integers(0, 8, count)
    row = part // 2
    corner = np.stack([2 * (part % 2) + row % 2, row], 1)
    return (corner + rng.uniform(0, 1, (count, 2))) / 2 - 1, part


def _spiral(rng: np.random.Generator, count: int) -> tuple[Array, Array]:
    """Two arms of one and a half turns."""
    part, share = rng.integers(0, 2, count), np.sqrt(rng.uniform(0.02, 1, count))  # the root: even along the arm
    angle = 3 * math.pi * share + math.pi * part
    return 0.95 * share[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.02 * rng.standard_normal((count, 2)), part


def _gaussians(rng: np.random.Generator, count: int) -> tuple[Array, Array]:
    """Eight of them on a circle."""
    part = rng.integers(0, 8, count)
    angle = part * math.pi / 4
    return 0.8 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.06 * rng.standard_normal((count, 2)), part


TOYS: dict[str, Callable[[np.random.Generator, int], tuple[Array, Array]]] = {
    "moons": _moons,
    "rings": _rings,
    "checkerboard": _checkerboard,
    "spiral": _spiral,
    "gaussians": _gaussians,
}
