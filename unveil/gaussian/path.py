"""How data is hidden: the continuous paths in closed form, and the discrete one (``gaussian.ddpm``) beside them by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unveil.errors import UserError
from unveil.gaussian.ddpm import DDPM, zero_terminal_snr
from unveil.gaussian.level import Level, Path

__all__ = [
    "DDPM",
    "EDM",
    "PATHS",
    "VE",
    "VP",
    "Cosine",
    "Level",
    "Path",
    "RectifiedFlow",
    "Shifted",
    "SubVP",
    "Trigonometric",
    "zero_terminal_snr",
]


@dataclass(frozen=True)
class EDM(Path):
    """alpha = 1, sigma = t: time is the noise level (Karras et al. 2022)."""

    t_min: float = 0.002
    t_max: float = 80.0

    def _n(self, t: Tensor) -> Tensor:
        return t

    def _time(self, n: Tensor) -> Tensor:
        return n

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return t

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class VE(Path):
    """alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t (Song et al. 2021, appendix C). The data end is t = -inf.

    Song's SDE started at x0 at t = 0 has variance sigma(t)^2 - sigma_min^2; like his code, this is the path itself, whose t = 0 is
    the data already convolved with sigma_min.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 0.0
    t_max: float = 1.0

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def _n(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(self._rate * t)

    def _time(self, n: Tensor) -> Tensor:
        return torch.log(n / self.sigma_min) / self._rate

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self._n(t)

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return self._rate * self._n(t)


@dataclass(frozen=True)
class SubVP(Path):
    """alpha = exp(-B), sigma = 1 - alpha^2 (Song et al. 2021, eq. 29).

    B is the integral of beta / 2, beta = beta_min + (beta_max - beta_min) t; n = 2 sinh B, and g^2 = beta (1 - alpha^4).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-5
    t_max: float = 1.0

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def _exponent(self, t: Tensor) -> Tensor:
        """B(t) = -log alpha."""
        return t * (0.5 * self.beta_min + 0.25 * (self.beta_max - self.beta_min) * t)

    def _time_of_exponent(self, exponent: Tensor) -> Tensor:
        """The positive root of B(t) = exponent, without cancellation where it is small."""
        half = 0.5 * self.beta_min
        return 2.0 * exponent / (half + torch.sqrt(half**2 + (self.beta_max - self.beta_min) * exponent))

    def _n(self, t: Tensor) -> Tensor:
        return 2.0 * torch.sinh(self._exponent(t))

    def _time(self, n: Tensor) -> Tensor:
        return self._time_of_exponent(torch.asinh(0.5 * n))

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self._exponent(t))

    def _sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-2.0 * self._exponent(t))

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return -0.5 * self._beta(t) * self._alpha(t)

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return self._beta(t) * torch.exp(-2.0 * self._exponent(t))

    def _drift(self, t: Tensor) -> Tensor:
        return -0.5 * self._beta(t)


@dataclass(frozen=True)
class VP(SubVP):
    """alpha = exp(-B) as sub-VP's, sigma = sqrt(1 - alpha^2): DDPM's linear schedule in continuous time (Song et al. 2021, eq. 33).

    n = sqrt(exp(2 B) - 1), and g^2 = beta. Networks are trained down to t = 1e-5; the papers' grids for sampling end at 1e-3.
    """

    def _n(self, t: Tensor) -> Tensor:
        return torch.sqrt(torch.expm1(2.0 * self._exponent(t)))

    def _time(self, n: Tensor) -> Tensor:
        return self._time_of_exponent(0.5 * torch.log1p(n.square()))

    def _sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-2.0 * self._exponent(t)))

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return 0.5 * self._beta(t) * torch.exp(-2.0 * self._exponent(t)) / self._sigma(t)

    def _diffusion2(self, t: Tensor) -> Tensor:
        return self._beta(t)


@dataclass(frozen=True)
class Cosine(Path):
    """alpha = cos(phi(t)) / cos(phi(0)), phi = (t + offset) / (1 + offset) pi / 2, variance preserving: DDPM's cosine schedule in
    continuous time (Nichol & Dhariwal 2021, eq. 17).

    With p = phi(0): sigma^2 = sin(phi - p) sin(phi + p) / cos(p)^2, so small times keep their digits. At ``t_max`` n is 641; at t = 1
    it would be infinite.
    """

    offset: float = 0.008
    t_min: float = 1e-4
    t_max: float = 0.999

    @property
    def _rate(self) -> float:
        """d phi / dt."""
        return 0.5 * math.pi / (1.0 + self.offset)

    @property
    def _start(self) -> float:
        """phi(0)."""
        return self._rate * self.offset

    def _angle(self, t: Tensor) -> Tensor:
        return self._start + self._rate * t

    def _n(self, t: Tensor) -> Tensor:
        return self._sigma(t) / self._alpha(t)

    def _time(self, n: Tensor) -> Tensor:
        # tan(phi) = sqrt(n^2 + s^2) / c with s, c of phi(0); the tangent of phi - phi(0) follows without taking their difference
        s, c = math.sin(self._start), math.cos(self._start)
        q = torch.sqrt(n.square() + s**2)
        t = torch.atan(n.square() * c / ((q + s) * (c**2 + q * s))) / self._rate
        return torch.where(n.isinf(), 1.0, t)

    def _alpha(self, t: Tensor) -> Tensor:
        # the sine of the complement: exactly 0 at t = 1
        return torch.sin(self._rate * (1.0 - t)) / math.cos(self._start)

    def _sigma(self, t: Tensor) -> Tensor:
        rise = self._rate * t
        return torch.sqrt(torch.sin(rise) * torch.sin(rise + 2.0 * self._start)) / math.cos(self._start)

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return -self._rate * torch.sin(self._angle(t)) / math.cos(self._start)

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return -self._alpha(t) * self._alpha_dot(t) / self._sigma(t)

    def _diffusion2(self, t: Tensor) -> Tensor:
        return -2.0 * self._drift(t)


@dataclass(frozen=True)
class Trigonometric(Path):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2) (Albergo & Vanden-Eijnden 2023; SiT's GVP)."""

    t_min: float = 1e-3
    t_max: float = 1.0

    def _n(self, t: Tensor) -> Tensor:
        return self._sigma(t) / self._alpha(t)

    def _time(self, n: Tensor) -> Tensor:
        return torch.atan(n) * (2.0 / math.pi)

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.sin((1.0 - t) * (0.5 * math.pi))

    def _sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t * (0.5 * math.pi))

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return -0.5 * math.pi * self._sigma(t)

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return 0.5 * math.pi * self._alpha(t)


@dataclass(frozen=True)
class RectifiedFlow(Path):
    """alpha = 1 - t, sigma = t (Liu et al. 2023; Lipman et al. 2023), with noise at t = 1 where the papers have it at 0.

    t = n / (1 + n), so logit(t) = log n: logit-normal times are EDM's log-normal noise levels.
    """

    t_min: float = 1e-3
    t_max: float = 1.0

    def _n(self, t: Tensor) -> Tensor:
        return t / (1.0 - t)

    def _time(self, n: Tensor) -> Tensor:
        return 1.0 / (1.0 + 1.0 / n)  # right at n = 0 and n = inf too

    def _alpha(self, t: Tensor) -> Tensor:
        return 1.0 - t

    def _sigma(self, t: Tensor) -> Tensor:
        return t

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return torch.full_like(t, -1.0)

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class Shifted(Path):
    """The same curve (alpha, sigma) on another clock, n -> factor n: at every time there is ``factor`` times the noise.

    On rectified flow this is SD3's timestep shift t -> factor t / (1 + (factor - 1) t) (Esser et al. 2024, eq. 23), there with
    factor = sqrt(pixels / pixels trained on).

    Raises:
        UserError: a factor that is not above 0.
    """

    path: Path
    factor: float

    def __post_init__(self) -> None:
        if not 0.0 < self.factor < math.inf:
            raise UserError("path.shift", f"got {self.factor}", "choose a factor above 0; 1 leaves the path as it is")

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return self.path.t_min

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return self.path.t_max

    def _inner(self, t: Tensor) -> Tensor:
        """The time of the inner path that has this noise level."""
        return self.path.time(self._n(t))

    def _pace(self, t: Tensor) -> Tensor:
        """d inner / dt, from n' = W / alpha^2 with W = alpha sigma' - alpha' sigma at both times. That (alpha, sigma) at the inner time
        is parallel to (alpha, factor sigma) at t keeps both ends free of 0 / 0."""
        inner, path = self._inner(t), self.path
        now = path.alpha(t).square() + (self.factor * path.sigma(t)).square()
        then = path.alpha(inner).square() + path.sigma(inner).square()
        above, below = _wronskian(path, t), _wronskian(path, inner)
        # where sigma' is infinite it goes as 1 / sigma
        return self.factor * torch.where(above.isinf(), self.factor, above / below) * then / now

    def _n(self, t: Tensor) -> Tensor:
        return self.factor * self.path.n(t)

    def _time(self, n: Tensor) -> Tensor:
        return self.path.time(n / self.factor)

    def _alpha(self, t: Tensor) -> Tensor:
        return self.path.alpha(self._inner(t))

    def _sigma(self, t: Tensor) -> Tensor:
        return self.path.sigma(self._inner(t))

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return self.path.alpha_dot(self._inner(t)) * self._pace(t)

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return self.path.sigma_dot(self._inner(t)) * self._pace(t)

    def _drift(self, t: Tensor) -> Tensor:
        return self.path.drift(self._inner(t)) * self._pace(t)

    def _diffusion2(self, t: Tensor) -> Tensor:
        return self.path.diffusion2(self._inner(t)) * self._pace(t)


def _wronskian(path: Path, t: Tensor) -> Tensor:
    return path.alpha(t) * path.sigma_dot(t) - path.alpha_dot(t) * path.sigma(t)


PATHS: dict[str, Callable[..., Path]] = {
    "ddpm": DDPM,
    "vp": VP,
    "sub-vp": SubVP,
    "ve": VE,
    "edm": EDM,
    "rectified-flow": RectifiedFlow,
    "cosine": Cosine,
    "trigonometric": Trigonometric,
}
"""Paths by the name that a recipe gives them; ``DDPM(schedule="cosine")`` is the discrete table, "cosine" its continuous form."""
