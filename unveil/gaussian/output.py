"""What a network may predict: six readings of one pair, the image D = E[x0 | x_t] and the noise e = E[eps | x_t].

Each is a row of one linear map, output = p D + q e, beside x_t = alpha D + sigma e:

    x0      D
    eps     e
    score   -e / sigma                     (the gradient of log p_t at x_t)
    v       alpha e - sigma D              (Salimans & Ho 2022)
    flow    alpha' D + sigma' e            (the velocity of the probability flow; e - D under rectified flow)
    F       (sigma D / s - s alpha e) / sqrt(sigma^2 + s^2 alpha^2), s = sigma_data   (EDM's F; -v where s = 1 and alpha^2 + sigma^2 = 1)

The map holds for samples as it holds for expectations, so the same row turns (x0, eps) into a training target. Times may be floats or
tensors ``[B]`` that go with the first dimension of the data.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from unveil.gaussian.level import Path

Output = Literal["eps", "x0", "v", "score", "flow", "F"]
OUTPUTS: tuple[Output, ...] = get_args(Output)


class Point(NamedTuple):
    """A path at one time: float64 tensors of one shape."""

    alpha: Tensor
    sigma: Tensor
    alpha_dot: Tensor
    sigma_dot: Tensor

    @staticmethod
    def of(path: Path, t: float | Tensor) -> Point:
        t = torch.as_tensor(t, dtype=torch.float64)
        return Point(path.alpha(t), path.sigma(t), path.alpha_dot(t), path.sigma_dot(t))


def row(predicts: Output, point: Point, sigma_data: float = 0.5) -> tuple[Tensor, Tensor]:
    """(p, q) with output = p D + q e."""
    alpha, sigma, alpha_dot, sigma_dot = point
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    match predicts:
        case "x0":
            return one, zero
        case "eps":
            return zero, one
        case "score":
            return zero, -1.0 / sigma
        case "v":
            return -sigma, alpha
        case "flow":
            return alpha_dot, sigma_dot
        case "F":
            norm = torch.sqrt(sigma.square() + (sigma_data * alpha).square())
            return sigma / (sigma_data * norm), -sigma_data * alpha / norm


def inverse_row(predicts: Output, point: Point, sigma_data: float = 0.5) -> tuple[Tensor, Tensor]:
    """(a, b) with D = a x_t + b output: the 2x2 system of ``row`` and x_t, solved.

    Infinite or nan where the output does not determine D: eps and score at alpha = 0.
    """
    p, q = row(predicts, point, sigma_data)
    if predicts == "x0":  # nothing to solve, and no 0 / 0 at sigma = 0
        return q, p
    determinant = point.alpha * q - point.sigma * p
    return q / determinant, -point.sigma / determinant


def target(predicts: Output, x0: Tensor, eps: Tensor, path: Path, t: float | Tensor, sigma_data: float = 0.5) -> Tensor:
    """What a network that predicts ``predicts`` is trained towards, from the sample's own image and noise; the dtype is that of x0."""
    p, q = row(predicts, Point.of(path, t), sigma_data)
    return along(p, x0) * x0 + along(q, x0) * eps


def from_output(predicts: Output, x: Tensor, output: Tensor, path: Path, t: float | Tensor, sigma_data: float = 0.5) -> Tensor:
    """D from x_t and an output. Not finite for eps and score where alpha = 0, which do not say what the image is."""
    a, b = inverse_row(predicts, Point.of(path, t), sigma_data)
    return along(a, x) * x + along(b, x) * output


def to_output(predicts: Output, x: Tensor, denoised: Tensor, path: Path, t: float | Tensor, sigma_data: float = 0.5) -> Tensor:
    """An output from x_t and D, the inverse of ``from_output``. Not finite where sigma = 0, unless it is x0."""
    point = Point.of(path, t)
    p, q = row(predicts, point, sigma_data)
    if predicts == "x0":
        return denoised
    eps = (x - along(point.alpha, x) * denoised) / along(point.sigma, x)
    return along(p, x) * denoised + along(q, x) * eps


def along(values: Tensor, x: Tensor) -> Tensor:
    """Numbers per sample (``[B]``) or one number, in the dtype and on the device of x and shaped to go with its first dimension."""
    return values.to(x).reshape(-1, *[1] * (x.ndim - 1)) if values.ndim else values.to(x)
