"""At which noise levels a solver stops: the times of a path from noise to data.

A grid of N times and the data end behind them makes N steps. What carries over from one path to another is n = sigma / alpha: Karras'
levels, say, lie on any path at the times where it has these n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch

from unveil.errors import UserError
from unveil.gaussian.level import Level, Path
from unveil.gaussian.path import DDPM
from unveil.gaussian.preconditioning import IDDPMPreconditioning

ROUNDING = 1e-9
"""How far outside its range, relative to it, a time may come to lie by going through n and back."""


class Instant(NamedTuple):
    """A place on a path: its time, and alpha and sigma there, Python floats."""

    time: float
    alpha: float
    sigma: float

    @property
    def level(self) -> Level:
        return Level(self.alpha, self.sigma)

    @property
    def n(self) -> float:
        """sigma / alpha, infinite where no signal is left."""
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def log_snr(self) -> float:
        """lambda = log(alpha / sigma), DPM-Solver's clock (half the logarithm of the signal-to-noise ratio)."""
        if self.sigma == 0.0:
            return math.inf
        return math.log(self.alpha / self.sigma) if self.alpha else -math.inf


@dataclass(frozen=True)
class Grid:
    """Times of a path in the order in which a sampler visits them.

    Args:
        path: whose times they are.
        times: strictly decreasing, from noise to data; strictly increasing for inversion.
        clean: whether a last step goes from the last time to the data end, n = 0, where a sample is its denoised image.

    Raises:
        UserError: no step at all, times that are not finite, not monotone or outside the path's range, the data end
            behind increasing times.
    """

    path: Path
    times: tuple[float, ...]
    clean: bool = True

    def __post_init__(self) -> None:
        times, low, high = self.times, self.path.t_min, self.path.t_max
        if self.steps < 1:
            raise UserError("sampler.steps", f"got {self.steps}", "take at least one step")
        if not all(map(math.isfinite, times)):
            raise UserError("sampler.grid", "a time is not finite", "remove it")
        slack = ROUNDING * (high - low)
        outside = next((t for t in times if not low - slack <= t <= high + slack), None)
        if outside is not None:
            raise UserError("sampler.grid", f"time {outside:.6g} is outside the path's {low:.6g} to {high:.6g}", "stay within the range")
        signs = {math.copysign(1.0, b - a) if b != a else 0.0 for a, b in pairwise(times)}
        if signs - {-1.0} and (self.clean or signs != {1.0}):
            wanted = "decreasing" if self.clean else "decreasing (or increasing, to invert)"
            raise UserError("sampler.grid", "the times are not monotone", f"make them strictly {wanted}; fewer steps never repeat one")

    @property
    def steps(self) -> int:
        return len(self.times) - 1 + self.clean

    @property
    def inverts(self) -> bool:
        """Whether it runs from data to noise."""
        return len(self.times) > 1 and self.times[1] > self.times[0]

    @cached_property
    def instants(self) -> tuple[Instant, ...]:
        """Steps + 1 places; the data end has alpha 1 and sigma 0 on every path."""
        found = [Instant(t, float(level.alpha), float(level.sigma)) for t in self.times for level in [self.path.level(t)]]
        return (*found, Instant(self.path.data_end, 1.0, 0.0)) if self.clean else tuple(found)

    def reversed(self) -> Grid:
        """The same times the other way round, for inversion. The data end is left out: there the flow has no direction."""
        return Grid(self.path, self.times[::-1], clean=False)


def _grid(path: Path, times: Iterable[float], clean: bool = True) -> Grid:
    """A grid of times that went through n and back, which must not leave the path's range by rounding."""
    low, high = path.t_min, path.t_max
    slack = ROUNDING * (high - low)
    return Grid(path, tuple(min(max(t, low), high) if low - slack <= t <= high + slack else t for t in times), clean)


def _line(start: float, stop: float, count: int) -> list[float]:
    """``count`` evenly spaced numbers; the first alone where there is but one."""
    if count < 1:
        raise UserError("sampler.steps", f"got {count}", "take at least one step")
    return torch.linspace(start, stop, count, dtype=torch.float64).tolist()


def _ends(path: Path, n_min: float | None, n_max: float | None) -> tuple[float, float]:
    """The outermost noise levels: those given, or the path's."""
    low = path.n(path.t_min) if n_min is None else n_min
    high = path.n(path.t_max) if n_max is None else n_max
    if not 0.0 < low < high:
        raise UserError("sampler.n_min", f"got noise levels from {low:.4g} to {high:.4g}", "give an n_min above 0 and below n_max")
    if math.isinf(high):
        raise UserError(
            "sampler.n_max", "the path begins without signal, at infinite n", "give a finite n_max, such as 80, or a grid in time"
        )
    return low, high


def karras(path: Path, steps: int, rho: float = 7.0, n_min: float | None = None, n_max: float | None = None, clean: bool = True) -> Grid:
    """n_i = (n_max^(1/rho) + i / (N - 1) (n_min^(1/rho) - n_max^(1/rho)))^rho (Karras et al. 2022, eq. 5).

    ``n_min`` and ``n_max`` are the path's ends where not given. Raises UserError for a rho that is not above 0, and as ``Grid``.
    """
    if not 0.0 < rho < math.inf:
        raise UserError("sampler.rho", f"got {rho}", "choose a rho above 0; the paper's is 7")
    low, high = _ends(path, n_min, n_max)
    roots = _line(high ** (1.0 / rho), low ** (1.0 / rho), steps)
    return _grid(path, (path.time(root**rho) for root in roots), clean)


def log_uniform(path: Path, steps: int, n_min: float | None = None, n_max: float | None = None, clean: bool = True) -> Grid:
    """Uniform in log n, DPM-Solver's choice. n^2 is geometric too, so this is also the grid of VE SDEs (EDM's Table 1)."""
    low, high = _ends(path, n_min, n_max)
    return _grid(path, (path.time(math.exp(value)) for value in _line(math.log(high), math.log(low), steps)), clean)


def uniform(path: Path, steps: int, clean: bool = True) -> Grid:
    """Uniform in the path's own time, from t_max to t_min: score SDEs and rectified flow."""
    return _grid(path, _line(path.t_max, path.t_min, steps), clean)


def uniform_to_zero(path: Path, steps: int) -> Grid:
    """Uniform in time with the data end as the last of the N + 1 places, all steps equal: t_max (1 - i / N) where the data is at t = 0."""
    return _grid(path, _line(path.t_max, path.data_end, steps + 1)[:-1])


def iddpm(path: Path, steps: int, n_max: float | None = None) -> Grid:
    """Levels out of the table of improved DDPM's preconditioning below ``n_max``, evenly by index (Karras et al. 2022, Table 1)."""
    limit = path.n(path.t_max) if n_max is None else n_max
    levels = [n for n in IDDPMPreconditioning().levels.tolist() if 0.0 < n <= limit]
    return _grid(path, (path.time(levels[round(place)]) for place in _line(0.0, len(levels) - 1.0, steps)))


def _table(path: Path, name: str, steps: int) -> int:
    """T of a discrete path that has at least so many steps."""
    if not isinstance(path, DDPM):
        raise UserError("sampler.grid", f"'{name}' counts a discrete table's steps", "choose uniform, log-uniform or karras for this path")
    if not 1 <= steps <= path.steps:
        raise UserError("sampler.steps", f"got {steps} for a table of {path.steps}", f"choose 1 to {path.steps}")
    return path.steps


def trailing(path: Path, steps: int) -> Grid:
    """round(T - i T / N) - 1: begins at the last training step, as it should (Lin et al. 2024, section 3.3)."""
    total = _table(path, "trailing", steps)
    return Grid(path, tuple(round(total - i * total / steps) - 1.0 for i in range(steps)))


def leading(path: Path, steps: int) -> Grid:
    """i floor(T / N), the DDIM authors' choice: the last training steps are never visited."""
    total = _table(path, "leading", steps)
    return Grid(path, tuple(float(i * (total // steps)) for i in reversed(range(steps))))


def linspace(path: Path, steps: int) -> Grid:
    """Steps 0 and T - 1 and, rounded to whole steps, those evenly between."""
    total = _table(path, "linspace", steps)
    return Grid(path, tuple(float(round(t)) for t in _line(total - 1.0, 0.0, steps)))


def quadratic(path: Path, steps: int) -> Grid:
    """floor of squares evenly spaced in the root up to 0.8 T (Song et al. 2021, DDIM, appendix D.2, for CIFAR-10).

    Raises UserError where rounding down would visit a step twice.
    """
    total = _table(path, "quadratic", steps)
    return Grid(path, tuple(float(math.floor(root * root)) for root in reversed(_line(0.0, math.sqrt(0.8 * total), steps))))


GRIDS: dict[str, Callable[..., Grid]] = {
    "karras": karras,
    "log-uniform": log_uniform,
    "uniform": uniform,
    "uniform-to-zero": uniform_to_zero,
    "iddpm": iddpm,
    "trailing": trailing,
    "leading": leading,
    "linspace": linspace,
    "quadratic": quadratic,
}
"""Grids by the name that a recipe gives them."""
