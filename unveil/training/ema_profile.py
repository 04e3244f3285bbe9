"""Averages of weights chosen after training: power-function profiles and their reconstruction from snapshots (Karras et al. 2024, section
3).

A power-function average of exponent gamma weighs the weights at time tau <= t by (gamma + 1) tau^gamma / t^(gamma + 1). Its width is
sigma_rel, the standard deviation of that density over t. Two averages kept in training span a family of them: any other is nearly a linear
combination of snapshots taken along the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unveil.errors import UserError

WIDEST = 12.0**-0.5
"""sigma_rel of gamma = 0, the plain mean of all weights; wider profiles would weigh the beginning most."""


class Profile(NamedTuple):
    """An average: its exponent, and the step (or any measure of time) at which it was taken."""

    gamma: float
    time: float


def gamma_of(sigma_rel: float) -> float:
    """The exponent of a width: the largest real root of g^3 + 7 g^2 + (16 - s^-2) g + 12 - s^-2 (Karras et al. 2024, appendix C).

    Raises:
        UserError: a width outside (0, 1/sqrt(12)].
    """
    if not 0.0 < sigma_rel <= WIDEST * (1 + 1e-12):
        raise UserError("width", f"got {sigma_rel}", f"choose a width above 0, at most {WIDEST:.4f}, such as 0.05 or 0.1")
    inverse = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return max(float(root.real) for root in roots if abs(root.imag) < 1e-6 * (1.0 + abs(root)))


def sigma_rel_of(gamma: float) -> float:
    """sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))), the inverse of ``gamma_of``."""
    return math.sqrt((gamma + 1.0) / ((gamma + 2.0) ** 2 * (gamma + 3.0)))


def decay(gamma: float, update: int) -> float:
    """beta of update ``update`` = 1, 2, ..., in average <- beta average + (1 - beta) weights: (1 - 1 / update)^(gamma + 1).

    That of the first is 0, so the initial weights never count.
    """
    return (1.0 - 1.0 / update) ** (gamma + 1.0)


def inner_product(a: Profile, b: Profile) -> float:
    """The integral of the product of two profiles over time."""
    first, last = (a, b) if a.time < b.time else (b, a)
    ratio = (first.time / last.time) ** last.gamma
    return (a.gamma + 1.0) * (b.gamma + 1.0) * ratio / ((a.gamma + b.gamma + 1.0) * last.time)


def coefficients(snapshots: Sequence[Profile], wanted: Profile) -> list[float]:
    """How to combine snapshots into the wanted profile, nearest in least squares; they sum to 1 (Karras et al. 2024, algorithm 3).

    Raises:
        UserError: no snapshot, or a profile whose time is not above 0.
    """
    if not snapshots:
        raise UserError("averages", "got none", "train with two widths, and keep their averages from time to time")
    if min(profile.time for profile in (*snapshots, wanted)) <= 0:
        raise UserError("averages", "got an average of no updates", "take snapshots after the first update")
    gram = np.array([[inner_product(a, b) for b in snapshots] for a in snapshots])
    right = np.array([inner_product(a, wanted) for a in snapshots])
    # unit diagonal: profiles of early times are narrow and tall, and the matrix is close to singular as it is
    scale = np.sqrt(np.diag(gram))
    solution, *_ = np.linalg.lstsq(gram / np.outer(scale, scale), right / scale, rcond=None)
    solution = solution / scale
    return [float(value) for value in solution / solution.sum()]


def reconstruct(snapshots: Sequence[Profile], load: Callable[[int], Mapping[str, Tensor]], wanted: Profile) -> dict[str, Tensor]:
    """The weights under the wanted profile, from averages kept in training.

    Args:
        snapshots: their profiles; at least those of two exponents, at times up to the wanted one.
        load: the weights of snapshot i. One is held at a time; those whose coefficient is 0 are not loaded.

    Returns:
        Weights by name, in the dtype of the snapshots. Summed in float64: coefficients of both signs cancel.
    """
    total: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for i, coefficient in enumerate(coefficients(snapshots, wanted)):
        if coefficient == 0.0:
            continue
        for name, tensor in load(i).items():
            dtypes[name] = tensor.dtype
            total[name] = total.get(name, torch.zeros((), dtype=torch.float64)) + coefficient * tensor.double().cpu()
    return {name: tensor.to(dtypes[name]) for name, tensor in total.items()}
