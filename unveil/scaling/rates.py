"""Learning rate and batch against C (DeepSeek LLM, section 3.1).

Per budget all runs within 0.25 % of the least loss are near-optimal; a power law goes through all of them, with intervals from its
residuals and from how fine the grid is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unveil.errors import UserError
from unveil.scaling.isoflop import REPLICATES, Array, Interval, interval, lines
from unveil.scaling.laws import PowerLaw, fit_power_law, near_optimal
from unveil.scaling.runs import Point, Sweep


@dataclass(frozen=True)
class Grid:
    """The runs of one budget at different learning rates and batches."""

    points: Sequence[Point]
    near: Sequence[Point]
    """Those that are near-optimal."""

    @property
    def compute(self) -> float:
        return float(np.exp(np.mean(np.log([p.compute for p in self.points]))))

    @property
    def best(self) -> Point:
        return min(self.points, key=lambda p: p.loss)

    @property
    def edges(self) -> str:
        """Of which settings the best lies at the end of what was tried."""
        found = []
        for name in ("lr", "batch"):
            tried, value = sorted({getattr(p, name) for p in self.points}), getattr(self.best, name)
            if len(tried) > 1 and value in (tried[0], tried[-1]):
                found.append(f"{name} {value:.3g} is the {'least' if value == tried[0] else 'largest'} tried")
        return ", ".join(found)


@dataclass(frozen=True)
class Rates:
    sweep: Sweep
    grids: Sequence[Grid]
    lr: PowerLaw
    batch: PowerLaw
    lr_lines: Array
    """Exponent and log factor, ``[B, 2]``; row 0 is the fit itself."""
    batch_lines: Array

    @property
    def lr_exponent(self) -> Interval:
        return interval(self.lr_lines[:, 0])

    @property
    def batch_exponent(self) -> Interval:
        return interval(self.batch_lines[:, 0])

    def laws(self) -> dict[str, PowerLaw]:
        return {"lr": self.lr, "batch": self.batch}


def fit(sweep: Sweep, replicates: int = REPLICATES, seed: int = 0) -> Rates:
    """Fit a sweep over learning rates and batches. Raises UserError for a single budget."""
    grids = []
    for points in sweep.budgets:
        mask = near_optimal([p.loss for p in points])
        grids.append(Grid(points, [p for p, kept in zip(points, mask, strict=True) if kept]))
    if len(grids) < 2:
        raise UserError(sweep.name, f"one budget, C = {grids[0].compute:.2g}, a law wants two", "sweep more of them: --compute A,B")
    rng = np.random.default_rng(seed)
    laws, replicated = [], []
    for key in ("lr", "batch"):
        laws.append(fit_power_law([g.compute for g in grids for _ in g.near], [float(getattr(p, key)) for g in grids for p in g.near]))
        replicated.append(_replicates(grids, key, replicates, rng))
    return Rates(sweep, grids, laws[0], laws[1], replicated[0], replicated[1])


def _replicates(grids: Sequence[Grid], key: str, replicates: int, rng: np.random.Generator) -> Array:
    """The line, and lines through resampled residuals that are grown to their share of the degrees of freedom; each budget's points are
    moved together by up to half a step of its grid, which is all that a grid can tell."""
    sizes = [len(grid.near) for grid in grids]
    x = np.repeat(np.log([grid.compute for grid in grids]), sizes)
    y = np.log([getattr(p, key) for grid in grids for p in grid.near])
    first = lines(x, y[None])
    fitted = first[0, 0] * x + first[0, 1]
    pool = (y - fitted) * np.sqrt(len(x) / max(len(x) - 2, 1))
    half = np.array([_step([getattr(p, key) for p in grid.points]) / 2 for grid in grids])
    moved = np.repeat(rng.uniform(-half, half, (replicates, len(grids))), sizes, axis=1)
    return np.concatenate([first, lines(x, fitted + rng.choice(pool, moved.shape) + moved)])


def _step(values: Sequence[float]) -> float:
    """Between neighbours of a grid, in logarithms; 0 where there is one value."""
    tried = np.log(sorted(set(values)))
    return float(np.median(np.diff(tried))) if len(tried) > 1 else 0.0
