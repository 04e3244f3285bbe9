"""DDPM's discrete tables as a path: times are the 0-based steps 0 ... T-1, and -1 is the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from unveil.errors import UserError, nearest
from unveil.gaussian.level import Path


def _linear(steps: int, low: float, high: float) -> Tensor:
    return torch.linspace(low, high, steps, dtype=torch.float64)


def _quadratic(steps: int, low: float, high: float) -> Tensor:
    return torch.linspace(math.sqrt(low), math.sqrt(high), steps, dtype=torch.float64).square()


def _sigmoid(steps: int, low: float, high: float) -> Tensor:
    return torch.linspace(-6.0, 6.0, steps, dtype=torch.float64).sigmoid() * (high - low) + low


def _cosine(steps: int, low: float, high: float) -> Tensor:
    """alphas_bar = f(t) / f(0), f = cos^2((t + 0.008) / 1.008 pi / 2), each beta at most 0.999 (Nichol & Dhariwal 2021, eq. 17)."""
    f = torch.cos((torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * (0.5 * math.pi)).square()
    return (1.0 - f[1:] / f[:-1]).clamp(max=0.999)


SCHEDULES: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": _linear,
    "cosine": _cosine,
    "quadratic": _quadratic,
    "sigmoid": _sigmoid,
}
"""Betas of a schedule from the number of steps and the first and last beta (the cosine schedule has its own)."""


@dataclass(frozen=True)
class DDPM(Path):
    """A table of betas: x_i = sqrt(abar_i) x0 + sqrt(1 - abar_i) eps, abar_i = product of 1 - beta_j for j <= i (Ho et al. 2020, eq. 4).

    Args:
        schedule: "linear" (Ho et al.), "cosine" (Nichol & Dhariwal), "quadratic" (latent diffusion's ``scaled_linear``), "sigmoid".
        steps: T.
        beta_min, beta_max: first and last beta at T = 1000; for another T they are scaled by 1000 / T, which keeps abar_T about as small.
        table: the betas themselves, of a checkpoint made elsewhere; the four arguments above are then unused.
        zero_terminal: see ``zero_terminal_snr``.

    Between the steps log n is linear in t, and so it goes on above T - 1; where an end of the interval is 0 or infinite (below step 0,
    and before a terminal step without signal) the angle arctan n is linear instead. The derivatives are those of this interpolation.

    Raises:
        UserError: an unknown schedule, fewer than 1 step, a beta outside (0, 1) (1 is allowed in the last place).
    """

    schedule: str = "linear"
    steps: int = 1000
    beta_min: float = 1e-4
    beta_max: float = 0.02
    table: tuple[float, ...] = ()
    zero_terminal: bool = False

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UserError("path.schedule", f"got '{self.schedule}'", nearest(self.schedule, SCHEDULES))
        if self.table:
            object.__setattr__(self, "steps", len(self.table))
        if self.steps < 1:
            raise UserError("path.steps", f"got {self.steps}", "choose 1 or more")
        betas = self.betas
        if not (bool((betas > 0).all()) and bool((betas[:-1] < 1).all()) and float(betas[-1]) <= 1):
            raise UserError(
                "path.beta_max",
                f"got betas from {float(betas.min()):.4g} to {float(betas.max()):.4g} over {self.steps} steps",
                "keep them between 0 and 1: lower beta_max or take more steps",
            )

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return 0.0

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return self.steps - 1.0

    @cached_property
    def betas(self) -> Tensor:
        """``[T]``, before any rescaling to zero terminal SNR."""
        if self.table:
            return torch.tensor(self.table, dtype=torch.float64)
        scale = 1000.0 / self.steps
        return SCHEDULES[self.schedule](self.steps, scale * self.beta_min, scale * self.beta_max)

    @cached_property
    def alphas_bar(self) -> Tensor:
        """alpha^2 of each step, ``[T]``."""
        return 1.0 / (1.0 + self._table.square())[1:]

    @cached_property
    def _table(self) -> Tensor:
        """n at the steps -1, 0, ..., T - 1, ``[T + 1]``."""
        log_alphas_bar = torch.log1p(-self.betas).cumsum(0)
        if not self.zero_terminal:
            n2 = torch.expm1(-log_alphas_bar)  # 1 / abar - 1
        else:
            root = torch.exp(0.5 * log_alphas_bar)
            root = (root - root[-1]) * root[0] / (root[0] - root[-1])
            n2 = 1.0 / root.square() - 1.0
        return torch.cat([torch.zeros(1, dtype=torch.float64), torch.sqrt(n2)])

    def _interval(self, right: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """n at both ends of the intervals that end in table entries ``right``, and whether log n (not the angle) is linear there."""
        table = self._table.to(device)
        low, high = table[right - 1], table[right]
        return low, high, (low > 0) & high.isfinite()

    def _n_and_turn(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """n and d arctan(n) / dt."""
        right = (torch.floor(t) + 2).clamp(1, self.steps).long()
        low, high, logarithmic = self._interval(right, t.device)
        share = t - (right - 2)
        rate = torch.log(high) - torch.log(low)
        n = low * torch.exp(rate * share)
        lower, upper = torch.atan(low), torch.atan(high)
        angle = torch.lerp(lower, upper, share)
        # the tangent of pi / 2 is finite in floating point; the table's own infinity is not
        by_angle = torch.where(share == 1, high, torch.tan(angle))
        turn = torch.where(logarithmic, rate / (n + 1.0 / n), upper - lower)
        return torch.where(logarithmic, n, by_angle), turn

    def _n(self, t: Tensor) -> Tensor:
        return self._n_and_turn(t)[0]

    def _time(self, n: Tensor) -> Tensor:
        table = self._table.to(n.device)
        right = torch.searchsorted(table, n.contiguous()).clamp(1, self.steps)
        low, high, logarithmic = self._interval(right, n.device)
        by_log = torch.log(n / low) / torch.log(high / low)
        by_angle = (torch.atan(n) - torch.atan(low)) / (torch.atan(high) - torch.atan(low))
        return right - 2 + torch.where(logarithmic, by_log, by_angle)

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.rsqrt(1.0 + self._n(t).square())

    def _sigma(self, t: Tensor) -> Tensor:
        return torch.rsqrt(1.0 + self._n(t).square().reciprocal())  # right at n = 0 and n = inf too

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return -self._sigma(t) * self._n_and_turn(t)[1]

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return self._alpha(t) * self._n_and_turn(t)[1]

    def _drift(self, t: Tensor) -> Tensor:
        n, turn = self._n_and_turn(t)
        return -n * turn

    def _diffusion2(self, t: Tensor) -> Tensor:
        return -2.0 * self._drift(t)


def zero_terminal_snr(path: DDPM) -> DDPM:
    """The table rescaled so that its last step holds no signal at all (Lin et al. 2024, algorithm 1): r = sqrt(abar) becomes
    (r - r_T) r_1 / (r_1 - r_T), the first step unchanged.

    eps or score prediction cannot say the image at that step; ``Denoiser`` refuses the combination.

    Raises:
        UserError: a table of one step, which cannot keep its first step and lose its last.
    """
    if path.steps < 2:
        raise UserError("path.steps", f"got {path.steps} with zero terminal SNR", "take at least 2 steps")
    return replace(path, zero_terminal=True)
