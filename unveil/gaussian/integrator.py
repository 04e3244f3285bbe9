"""Explicit Runge-Kutta methods for a flow that carries its own log-determinant: fixed steps, or a step size per sample.

Everything runs over s in [0, 1]. Adaptive steps are controlled by each sample's own error, so a sample comes out the same alone and in
any batch, and rows that arrive early leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from unveil.errors import UserError
from unveil.gaussian.output import along

Slope = tuple[Tensor, Tensor]
"""d x / ds ``[B, ...]`` and d log-determinant / ds ``[B]``."""
Velocity = Callable[[float | Tensor, Tensor, Tensor | None], Slope]
"""(s, x, rows) -> slope: s a float or ``[B]``; rows are the places of x's samples in the batch, None for all."""


class Tableau(NamedTuple):
    """Butcher's tableau; the last row of ``stages`` gives the step itself where ``weights`` equals it (first same as last)."""

    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    error: tuple[float, ...] = ()
    """Weights of the step less those of the embedded method one order below."""


HEUN = Tableau((0.0, 1.0), ((), (1.0,)), (0.5, 0.5))
RK4 = Tableau((0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))
_FIFTH = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
DORMAND_PRINCE = Tableau(
    (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        _FIFTH,
    ),
    (*_FIFTH, 0.0),
    (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
)
"""Dormand and Prince 1980, RK5(4)7M."""


@dataclass(frozen=True)
class Fixed:
    """``steps`` equal steps: 4 evaluations each ("rk4") or 2 ("heun").

    Raises:
        UserError: fewer than 1 step, an unknown method.
    """

    steps: int = 64
    method: Literal["rk4", "heun"] = "rk4"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError("likelihood.steps", f"got {self.steps}", "choose 1 or more")
        if self.method not in ("rk4", "heun"):
            raise UserError("likelihood.method", f"got '{self.method}'", "choose rk4 or heun")

    def __call__(self, velocity: Velocity, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x at s = 1, the log-determinant and the number of evaluations, ``[B]`` both."""
        tableau = RK4 if self.method == "rk4" else HEUN
        log_det_B = x.new_zeros(len(x))
        h = 1.0 / self.steps
        for i in range(self.steps):
            slopes: list[Slope] = []
            for node, row in zip(tableau.nodes, tableau.stages, strict=True):
                slopes.append(velocity((i + node) * h, _advance(x, h, row, slopes), None))
            x = _advance(x, h, tableau.weights, slopes)
            log_det_B = log_det_B + h * weighted_sum(tableau.weights, [slope for _, slope in slopes])
        return x, log_det_B, torch.full((len(x),), self.steps * len(tableau.nodes))


@dataclass(frozen=True)
class Adaptive:
    """Dormand and Prince's 5(4) with a step size per sample. A step is taken where both the error of x (root mean square over dimensions)
    and that of the log-determinant per dimension are within atol + rtol |.|.

    Raises:
        UserError: tolerances not above 0; a sample that is not there after ``max_steps`` attempts.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 1000

    def __post_init__(self) -> None:
        if not min(self.rtol, self.atol) > 0:
            raise UserError("likelihood.rtol", f"got tolerances {self.rtol} and {self.atol}", "keep both above 0")

    def __call__(self, velocity: Velocity, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x at s = 1, the log-determinant and the number of evaluations, ``[B]`` both."""
        tableau = DORMAND_PRINCE
        ends, log_dets, evaluations = torch.empty_like(x), x.new_zeros(len(x)), torch.ones(len(x), dtype=torch.int64)
        rows = torch.arange(len(x), device=x.device)
        s_B, h_B, log_det_B = x.new_zeros(len(x)), x.new_full((len(x),), 0.02), x.new_zeros(len(x))
        first = velocity(s_B, x, rows)
        for _ in range(self.max_steps):
            slopes = [first]
            h_B = torch.minimum(h_B, 1.0 - s_B)
            for node, row in zip(tableau.nodes[1:], tableau.stages[1:], strict=True):
                slopes.append(velocity(s_B + node * h_B, _advance(x, h_B, row, slopes), rows))
            evaluations[rows.cpu()] += len(tableau.nodes) - 1
            log_slopes = [slope for _, slope in slopes]
            after, log_after_B = _advance(x, h_B, tableau.weights, slopes), log_det_B + h_B * weighted_sum(tableau.weights, log_slopes)
            error_B = self._error(x, after, spread(h_B, x) * weighted_sum(tableau.error, [slope for slope, _ in slopes]))
            dims = x[0].numel()
            log_error_B = self._error(log_det_B / dims, log_after_B / dims, h_B * weighted_sum(tableau.error, log_slopes) / dims)
            worst_B = torch.maximum(error_B, log_error_B)
            taken_B, growth_B = verdict(worst_B, order=5)
            arrived_B = taken_B & (s_B + h_B >= 1.0)
            taken = along(taken_B, x).bool()
            x, log_det_B = torch.where(taken, after, x), torch.where(taken_B, log_after_B, log_det_B)
            first = (torch.where(taken, slopes[-1][0], first[0]), torch.where(taken_B, slopes[-1][1], first[1]))
            s_B, h_B = torch.where(taken_B, s_B + h_B, s_B), h_B * growth_B
            if bool(arrived_B.any()):
                ends[rows[arrived_B]], log_dets[rows[arrived_B]] = x[arrived_B], log_det_B[arrived_B]
                live = ~arrived_B
                rows, x, s_B, h_B, log_det_B, first = (
                    rows[live],
                    x[live],
                    s_B[live],
                    h_B[live],
                    log_det_B[live],
                    (first[0][live], first[1][live]),
                )
            if not len(rows):
                return ends, log_dets, evaluations
        raise UserError("likelihood.rtol", f"{len(rows)} samples needed more than {self.max_steps} steps", "raise the tolerances")

    def _error(self, before: Tensor, after: Tensor, error: Tensor) -> Tensor:
        """Error over tolerance, ``[B]``: above 1 the step is refused."""
        allowed = self.atol + self.rtol * torch.maximum(before.abs(), after.abs())
        return (error / allowed).reshape(len(error), -1).square().mean(1).sqrt()


EQUAL_STEPS = Fixed()


def verdict(error_B: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Whether each sample's step is taken, and by what factor its next one grows (Hairer, Norsett and Wanner 1993, II.4).

    Args:
        error_B: error over tolerance; what is not a number refuses the step, and the next is the shortest.
        order: of the method; its error estimate is of one order below, so it goes as the step to this power.
    """
    return error_B <= 1.0, (0.9 * error_B.clamp(min=1e-10) ** (-1.0 / order)).nan_to_num(0.0).clamp(0.2, 5.0)


def spread(value: float | Tensor, x: Tensor) -> float | Tensor:
    """A number as it is, or numbers per sample in the shape that goes with x."""
    return along(value, x) if isinstance(value, Tensor) else value


def _advance(x: Tensor, h: float | Tensor, weights: Sequence[float], slopes: Sequence[Slope]) -> Tensor:
    """x + h times the weighted sum of the slopes known so far."""
    if not weights:
        return x
    return x + spread(h, x) * weighted_sum(weights, [slope for slope, _ in slopes])


def weighted_sum(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """Sum of weight times value over tensors of one shape; weights of 0 cost nothing."""
    total = torch.zeros_like(values[0])
    for weight, value in zip(weights, values, strict=True):
        if weight:
            total.add_(value, alpha=weight)
    return total
