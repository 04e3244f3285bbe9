"""IsoFLOP profiles (Hoffmann et al. 2022, approach 2; DeepSeek LLM, section 3.2): a parabola in log M per budget, power laws through their
minima, the loss at the minima against C; with bootstrap intervals.

The replicates resample the residuals of the parabolas, all budgets' together, each grown to its share of the degrees of freedom. Where
the minima scatter about their law more than that explains, each replicate's minima get the rest as normal noise: what a budget's own
seed, learning rate or depth did to all its runs is in the intervals too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unveil.errors import UserError
from unveil.scaling.laws import NEAR_OPTIMAL, PowerLaw
from unveil.scaling.runs import Point, Sweep

Array = NDArray[np.floating[Any]]
REPLICATES = 2000
INTERVAL = (5.0, 95.0)
"""Percentiles: 90 % between them."""
DECAYS = np.geomspace(0.005, 2.0, 160)
"""Exponents of the loss curve that are tried."""


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class Parabola:
    """``loss + bend (log M - log scale)^2``, least squares over the runs of one budget."""

    compute: float
    """C, the runs' geometric mean."""
    scale: float
    """M at the minimum."""
    loss: float
    bend: float
    points: Sequence[Point]
    basis: Array
    """``[3, n]``: losses to coefficients of 1, u and u^2, u = log M - centre."""
    fitted: Array
    """``[n]``."""
    centre: float

    @staticmethod
    def of(points: Sequence[Point]) -> Parabola:
        """Raises ValueError, with the reason, where there is no minimum among the sizes."""
        x, y = np.log([p.scale for p in points]), np.array([p.loss for p in points])
        if len(np.unique(x.round(6))) < 3:
            raise ValueError(f"{len(np.unique(x.round(6)))} sizes, a parabola wants 3")
        centre = float(x.mean())
        design = np.vander(x - centre, 3, increasing=True)
        basis = np.linalg.pinv(design)
        c0, c1, c2 = basis @ y
        if c2 <= 0:
            raise ValueError("its losses have no minimum, they bend down")
        at = centre - c1 / (2 * c2)
        if not x.min() < at < x.max():
            raise ValueError(f"its minimum is at the edge: the {'smallest' if at <= x.min() else 'largest'} network is best")
        compute = float(np.exp(np.mean(np.log([p.compute for p in points]))))
        fitted = design @ np.array([c0, c1, c2])
        return Parabola(compute, float(np.exp(at)), float(c0 - c1**2 / (4 * c2)), float(c2), points, basis, fitted, centre)

    @property
    def band(self) -> tuple[float, float]:
        """M between which the loss is near-optimal."""
        wide = float(np.exp(np.sqrt(NEAR_OPTIMAL * self.loss / self.bend)))
        return self.scale / wide, self.scale * wide

    @property
    def residuals(self) -> Array:
        return np.array([p.loss for p in self.points]) - self.fitted

    def minima(self, losses: Array) -> tuple[Array, Array]:
        """log M and the loss at the minimum for replicates ``[B, n]`` of the losses; NaN where there is none near the sizes."""
        c0, c1, c2 = (losses @ self.basis.T).T
        x = np.log([p.scale for p in self.points])
        with np.errstate(divide="ignore", invalid="ignore"):
            at, least = self.centre - c1 / (2 * c2), c0 - c1**2 / (4 * c2)
        far = (c2 <= 0) | (np.abs(at - self.centre) > np.ptp(x))
        return np.where(far, np.nan, at), np.where(far, np.nan, least)


@dataclass(frozen=True)
class LossCurve:
    """``floor + gain (C / unit)^-decay``, for all replicates at once: arrays ``[B]``, of which the first is the fit itself."""

    unit: float
    floor: Array
    gain: Array
    decay: Array
    scatter: float
    """Standard deviation of a single run about it."""

    def __call__(self, compute: Sequence[float]) -> Array:
        """``[B, len(compute)]``."""
        return self.floor[:, None] + self.gain[:, None] * (np.asarray(compute)[None] / self.unit) ** -self.decay[:, None]


@dataclass(frozen=True)
class IsoFlop:
    """What the parabolas of one sweep say."""

    sweep: Sweep
    parabolas: Sequence[Parabola]
    left_out: Sequence[str]
    """Budgets without a minimum, and why."""
    log_scale: Array
    """log M_opt of each budget, ``[B, K]``."""
    scale_lines: Array
    """Exponent and log factor of M_opt, ``[B, 2]``; row 0 is the fit itself."""
    token_lines: Array
    curve: LossCurve

    @property
    def computes(self) -> list[float]:
        return [p.compute for p in self.parabolas]

    @property
    def scale_exponent(self) -> Interval:
        """a of M_opt ~ C^a."""
        return interval(self.scale_lines[:, 0])

    @property
    def token_exponent(self) -> Interval:
        """b of D_opt ~ C^b."""
        return interval(self.token_lines[:, 0])

    @property
    def loss_exponent(self) -> Interval:
        return interval(self.curve.decay)

    def laws(self) -> dict[str, PowerLaw]:
        """For ``laws.dumps``."""
        low, high = min(self.computes), max(self.computes)
        both = {"scale": self.scale_lines[0], "tokens": self.token_lines[0]}
        return {name: PowerLaw(float(np.exp(line[1])), float(line[0]), low, high) for name, line in both.items()}

    def predicted(self, compute: float, seed: int = 0) -> Interval:
        """The loss of a single run with M_opt of that budget."""
        values = self.curve([compute])[:, 0]
        noise = np.random.default_rng(seed).normal(0.0, self.curve.scatter, len(values) - 1)
        return interval(np.concatenate([values[:1], values[1:] + noise]))


def fit(sweep: Sweep, replicates: int = REPLICATES, seed: int = 0) -> IsoFlop:
    """Fit a sweep. Raises UserError where fewer than two budgets have a minimum among their sizes."""
    parabolas, left_out = [], []
    for points in sweep.budgets:
        try:
            parabolas.append(Parabola.of(points))
        except ValueError as error:
            left_out.append(f"C = {points[0].compute:.2g}: {error}")
    if len(parabolas) < 2:
        why = "; ".join([*left_out, *(f"C = {p.compute:.2g} alone is fitted" for p in parabolas)])
        raise UserError(sweep.name, f"a law wants two budgets with a minimum ({why})", "add budgets or --sizes to the sweep")
    rng = np.random.default_rng(seed)
    pool, freedom = np.concatenate([p.residuals for p in parabolas]), sum(len(p.points) - 3 for p in parabolas)
    pool = pool * np.sqrt(len(pool) / freedom) if freedom else np.full(1, np.nan)
    drawn = [p.minima(p.fitted + rng.choice(pool, (replicates, len(p.points)))) for p in parabolas]
    log_m, losses = (np.stack(part, axis=1) for part in zip(*drawn, strict=True))
    whole = np.isfinite(log_m).all(1)
    log_c = np.log([p.compute for p in parabolas])
    log_m = _with_fit(np.log([p.scale for p in parabolas]), log_m[whole], log_c, rng)
    losses = np.concatenate([np.array([[p.loss for p in parabolas]]), losses[whole]])
    scale_lines = lines(log_c, log_m)
    spread = float(np.std(pool)) if freedom else np.nan
    return IsoFlop(sweep, parabolas, left_out, log_m, scale_lines, lines(log_c, log_c - log_m), _curve(log_c, losses, spread, rng))


def interval(values: Array) -> Interval:
    """The first value, and percentiles of the others; NaN where there are none."""
    low, high = np.percentile(values[1:], INTERVAL) if len(values) > 2 else (np.nan, np.nan)
    return Interval(float(values[0]), float(low), float(high))


def lines(x: Array, y: Array) -> Array:
    """Slope and intercept of ``y [B, K]`` over ``x [K]``, ``[B, 2]``."""
    return y @ np.linalg.pinv(np.stack([x, np.ones_like(x)], axis=1)).T


def _with_fit(found: Array, drawn: Array, x: Array, rng: np.random.Generator) -> Array:
    """The fit in front of its replicates, these with the scatter about a line that they do not explain (method of moments)."""
    if len(x) > 2 and len(drawn) > 1:
        slope, intercept = lines(x, found[None])[0]
        beyond = np.square(found - slope * x - intercept).sum() / (len(x) - 2) - drawn.var(0).mean()
        drawn = drawn + rng.normal(0.0, np.sqrt(max(beyond, 0.0)), drawn.shape)
    return np.concatenate([found[None], drawn])


def _curve(log_c: Array, losses: Array, spread: float, rng: np.random.Generator) -> LossCurve:
    """Through the minima ``[B, K]``: with a floor from four budgets on, which three numbers need; else without."""
    centre = float(log_c.mean())
    floored = len(log_c) > 3
    first = _decayed(log_c - centre, losses[:1], floored)
    scatter = spread
    if floored and len(losses) > 2:
        missed = losses[0] - (first[0] + first[1] * np.exp(-first[2] * (log_c - centre)))
        beyond = max(float(np.square(missed).sum() / (len(log_c) - 3) - losses[1:].var(0).mean()), 0.0)
        losses = np.concatenate([losses[:1], losses[1:] + rng.normal(0.0, np.sqrt(beyond), losses[1:].shape)])
        scatter = float(np.hypot(spread, np.sqrt(beyond)))
    floor, gain, decay = _decayed(log_c - centre, losses, floored)
    return LossCurve(float(np.exp(centre)), floor, gain, decay, scatter)


def _decayed(x: Array, y: Array, floored: bool) -> tuple[Array, Array, Array]:
    """Least squares of ``floor + gain exp(-decay x)`` for ``y [B, K]``, floor and gain not below 0: linear for every decay tried."""
    found: list[Any] = []
    for decay in DECAYS:
        z = np.exp(-decay * x)
        centred = z - z.mean()
        gain = (y * centred).sum(1) / np.square(centred).sum()
        floor = y.mean(1) - gain * z.mean()
        alone = (y * z).sum(1) / np.square(z).sum()
        bare = (floor < 0) | (gain < 0) | (not floored)
        gain, floor = np.where(bare, alone, gain), np.where(bare, 0.0, floor)
        found.append((np.square(y - floor[:, None] - gain[:, None] * z).sum(1), floor, gain))
    misses, floors, gains = (np.stack(part) for part in zip(*found, strict=True))
    best, rows = misses.argmin(0), np.arange(len(y))
    return floors[best, rows], gains[best, rows], DECAYS[best]
