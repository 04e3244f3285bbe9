"""Geometric augmentation that does not leak: the network is told what was done to an image, and told "nothing" when it samples.

After Karras et al. 2022 (EDM), appendix F.2: every kind is applied with a probability of its own, and its parameters, zero where it
was not applied, form the vector that conditions the network.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from unveil.config import AugmentConfig

Array = np.ndarray[Any, Any]

PARAMETERS = {"x-flip": 1, "y-flip": 1, "translate": 2, "scale": 1, "rotate": 2, "stretch": 2}
"""Numbers that describe each kind, in the order in which they are drawn and applied."""
SPREAD = 0.125
"""Standard deviation of a translation, as a share of the side."""
OCTAVES = 0.2
"""Standard deviation of log2 of a scale."""


def parameters(config: AugmentConfig) -> int:
    """Length of the conditioning vector; 0 where nothing is augmented."""
    return sum(PARAMETERS[kind] for kind in dict.fromkeys(config.kinds)) if config.probability else 0


def augmented(x: Array, config: AugmentConfig, rng: np.random.Generator) -> tuple[Array, Array]:
    """An image float32 ``[C, H, W]`` in [-1, 1] and what was done to it, float32 ``[A]``, A = ``parameters(config)``.

    Flips and translations (by whole pixels, mirrored at the border) are exact; scaling by 2^(0.2 z), z ~ N(0, 1), rotation by an angle
    ~ U(-pi, pi) and stretching by 2^(0.2 z) along a direction and 2^(-0.2 z) across it are one bicubic resampling about the centre.
    """
    done: list[float] = []
    matrix = np.eye(2)
    for kind in PARAMETERS:
        if kind not in config.kinds:
            continue
        # every kind draws as much whether it is applied or not: the others' draws do not depend on it
        chosen, z, angle = rng.random() < config.probability, rng.standard_normal(2), rng.uniform(-math.pi, math.pi)
        if not chosen:
            done += [0.0] * PARAMETERS[kind]
        elif kind in ("x-flip", "y-flip"):
            x = x[..., ::-1] if kind == "x-flip" else x[..., ::-1, :]
            done.append(1.0)
        elif kind == "translate":
            x, moved = _translated(x, z)
            done += moved
        elif kind == "scale":
            matrix = matrix * 2.0 ** (OCTAVES * z[0])
            done.append(float(z[0]))
        elif kind == "rotate":
            matrix = _rotation(angle) @ matrix
            done += [math.cos(angle) - 1, math.sin(angle)]
        else:
            turn, factor = _rotation(angle), 2.0 ** (OCTAVES * z[0])
            matrix = turn @ np.diag([factor, 1 / factor]) @ turn.T @ matrix
            # by the double angle, so that equal parameters are equal stretches: those of (z, angle) and (-z, angle + pi / 2) are one
            done += [float(z[0]) * math.cos(2 * angle), float(z[0]) * math.sin(2 * angle)]
    if not np.array_equal(matrix, np.eye(2)):
        x = _resampled(x, matrix)
    return np.ascontiguousarray(x), np.array(done, dtype=np.float32)


def _translated(x: Array, z: Array) -> tuple[Array, list[float]]:
    """By z standard deviations to the right and down, in whole pixels, and how many standard deviations that was."""
    moved = []
    for axis, shift in ((-1, z[0]), (-2, z[1])):
        side = x.shape[axis]
        pixels = int(np.clip(round(float(shift) * SPREAD * side), 1 - side, side - 1))
        source = np.abs(np.arange(side) - pixels)
        x = np.take(x, np.where(source > side - 1, 2 * (side - 1) - source, source), axis)
        moved.append(pixels / (SPREAD * side))
    return x, moved


def _rotation(angle: float) -> Array:
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def _resampled(x: Array, matrix: Array) -> Array:
    """The image under ``matrix``, which acts on (right, down) in pixels about the centre."""
    height, width = x.shape[-2:]
    half = np.diag([width / 2, height / 2])
    back = np.zeros((1, 2, 3), dtype=np.float32)
    back[0, :, :2] = np.linalg.inv(half) @ np.linalg.inv(matrix) @ half
    image = torch.from_numpy(np.ascontiguousarray(x))[None]
    grid = F.affine_grid(torch.from_numpy(back), list(image.shape), align_corners=False)
    drawn = F.grid_sample(image, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    found: Array = drawn[0].clamp(-1, 1).numpy()
    return found
