"""How often each noise level is trained: densities over log n, each as the inverse of its distribution function.

A density turns a uniform u in [0, 1) into log n, n = sigma / alpha, so that stratified u make stratified noise levels. Only its product
with the weighting matters to the expected loss (``gaussian.weighting``); what the density decides is the variance of the gradient. All of
it is float64, of the shape of u.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from unveil.errors import UserError
from unveil.gaussian.ddpm import DDPM
from unveil.gaussian.level import Level, Path


class Density(Protocol):
    def log_n(self, u: Tensor) -> Tensor:
        """The quantile function: log n at which the share u of all samples has less noise."""


class ContinuousDensity(Density, Protocol):
    def pdf(self, log_n: Tensor) -> Tensor:
        """Probability per unit of log n; 0 outside the range."""


def level_at(log_n: Tensor) -> Level:
    """The level of log n whose alpha^2 + sigma^2 = 1, float64: a network is asked about n alone, and these inputs are bounded even at
    n = 0 and n = inf."""
    return Level(torch.sigmoid(-2.0 * log_n.double()).sqrt(), torch.sigmoid(2.0 * log_n.double()).sqrt())


@dataclass(frozen=True)
class LogNormal:
    """log n ~ N(mean, std^2) (EDM, Table 1: -1.2, 1.2; EDM2: -0.4, 1.0).

    With n = t / (1 - t) it is the logit-normal density of rectified flow's times (SD3), with the same mean and std: logit(t) = log n.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        _above_0(self.std)

    def log_n(self, u: Tensor) -> Tensor:
        return self.mean + self.std * _normal_quantile(u)

    def pdf(self, log_n: Tensor) -> Tensor:
        return _normal_pdf((log_n.double() - self.mean) / self.std) / self.std


@dataclass(frozen=True)
class LogUniform:
    """log n uniform between two levels: VE's times, and what likelihood weighting in time becomes when it is sampled instead of
    weighted (Song et al. 2021, "Maximum likelihood training")."""

    n_min: float = 0.02
    n_max: float = 100.0

    def __post_init__(self) -> None:
        if not 0.0 < self.n_min < self.n_max < math.inf:
            raise UserError("objective.n_min", f"got noise levels from {self.n_min} to {self.n_max}", "keep 0 < n_min < n_max")

    def log_n(self, u: Tensor) -> Tensor:
        return torch.lerp(*_pair(math.log(self.n_min), math.log(self.n_max), u), u.double())

    def pdf(self, log_n: Tensor) -> Tensor:
        low, high = math.log(self.n_min), math.log(self.n_max)
        return ((log_n >= low) & (log_n <= high)).double() / (high - low)


@dataclass(frozen=True)
class UniformTime:
    """t uniform on the trained range of a path (Ho et al. 2020; Song et al. 2021)."""

    path: Path

    def log_n(self, u: Tensor) -> Tensor:
        return _at(self.path, u.double())

    def pdf(self, log_n: Tensor) -> Tensor:
        share, pace = _share_and_pace(self.path, log_n)
        return ((share >= 0) & (share <= 1)) * pace


@dataclass(frozen=True)
class LogitNormal:
    """logit of the time ~ N(mean, std^2), the time as a share of the path's range (Esser et al. 2024). On rectified flow from 0
    to 1 it is ``LogNormal`` with the same parameters."""

    path: Path
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        _above_0(self.std)

    def log_n(self, u: Tensor) -> Tensor:
        return _at(self.path, torch.sigmoid(self.mean + self.std * _normal_quantile(u)))

    def pdf(self, log_n: Tensor) -> Tensor:
        share, pace = _share_and_pace(self.path, log_n)
        inside = (share > 0) & (share < 1)
        share = torch.where(inside, share, 0.5)
        return inside * pace * _normal_pdf((torch.logit(share) - self.mean) / self.std) / (self.std * share * (1.0 - share))


@dataclass(frozen=True)
class UShaped:
    """Times near both ends of the path, where a reflowed velocity is hardest: p ~ cosh(steepness (share - 1/2)), half exp(a share) and half
    its mirror image (Lee et al. 2024)."""

    path: Path
    steepness: float = 4.0

    def __post_init__(self) -> None:
        if not self.steepness > 0:
            raise UserError("objective.steepness", f"got {self.steepness}", "choose a number above 0")

    def log_n(self, u: Tensor) -> Tensor:
        a = self.steepness
        return _at(self.path, 0.5 + torch.asinh((2.0 * u.double() - 1.0) * math.sinh(0.5 * a)) / a)

    def pdf(self, log_n: Tensor) -> Tensor:
        a = self.steepness
        share, pace = _share_and_pace(self.path, log_n)
        inside = (share >= 0) & (share <= 1)
        share = torch.where(inside, share, 0.5)
        return inside * pace * (0.5 * a / math.sinh(0.5 * a)) * torch.cosh(a * (share - 0.5))


@dataclass(frozen=True)
class UniformLevels:
    """One of finitely many levels, all equally often.

    ``levels`` are the n in rising order; the last may be infinite, where nothing of the data is left.
    """

    levels: tuple[float, ...]

    @staticmethod
    def of(path: DDPM) -> UniformLevels:
        """The steps of a discrete path, step i at index i."""
        return UniformLevels(tuple(path.n(torch.arange(path.steps)).tolist()))

    def index(self, u: Tensor) -> Tensor:
        """Which level, int64."""
        return (u.double() * len(self.levels)).long().clamp(0, len(self.levels) - 1)

    def log_n(self, u: Tensor) -> Tensor:
        return torch.tensor(self.levels, dtype=torch.float64, device=u.device).log()[self.index(u)]


def uniform(path: Path) -> Density:
    """Times as the path's own paper draws them: the steps of a discrete path, else uniform."""
    return UniformLevels.of(path) if isinstance(path, DDPM) else UniformTime(path)


DENSITIES: dict[str, Callable[[Path], Density]] = {
    "uniform": uniform,
    "log-normal": lambda path: LogNormal(),
    "log-uniform": lambda path: LogUniform(path.n(path.t_min), path.n(path.t_max)),
    "logit-normal": LogitNormal,
    "u-shaped": UShaped,
}
"""Densities by the name that a recipe gives them, for the path that is trained."""


def _at(path: Path, share: Tensor) -> Tensor:
    """log n at a share of the path's trained range."""
    return path.n(torch.lerp(*_pair(path.t_min, path.t_max, share), share)).log()


def _share_and_pace(path: Path, log_n: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of ``_at`` and its derivative by log n: d log n / dt = (n^2)' / (2 n^2) = g^2 / (2 sigma^2)."""
    t = path.time(log_n.double().exp())
    span = path.t_max - path.t_min
    return (t - path.t_min) / span, 2.0 * path.sigma(t).square() / (path.diffusion2(t) * span)


def _pair(low: float, high: float, like: Tensor) -> tuple[Tensor, Tensor]:
    return torch.full_like(like, low, dtype=torch.float64), torch.full_like(like, high, dtype=torch.float64)


def _normal_quantile(u: Tensor) -> Tensor:
    """Finite at u = 0 too, which a uniform number may be."""
    return torch.special.ndtri(u.double().clamp(2.0**-54, 1.0 - 2.0**-53))


def _normal_pdf(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z.square()) / math.sqrt(2.0 * math.pi)


def _above_0(std: float) -> None:
    if not 0.0 < std < math.inf:
        raise UserError("objective.std", f"got {std}", "give the standard deviation of log n, above 0")
