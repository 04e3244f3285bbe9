"""Embedded Runge-Kutta on the probability flow with a step size per sample: each row's error decides its own next step alone.

On the clock log n the flow is dy/dlog n = y - D with y = x / alpha, the same for every path. A grid gives the two ends only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unveil.errors import UserError
from unveil.gaussian.grid import Grid
from unveil.gaussian.integrator import DORMAND_PRINCE, Tableau, verdict, weighted_sum
from unveil.gaussian.level import Level
from unveil.gaussian.output import along
from unveil.gaussian.sampler import Loop, Snapshot, State
from unveil.gaussian.solver import Between, Samples, Traits

BOGACKI_SHAMPINE = Tableau(
    (0.0, 1 / 2, 3 / 4, 1.0),
    ((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    (2 / 9, 1 / 3, 4 / 9, 0.0),
    (-5 / 72, 1 / 12, 1 / 9, -1 / 8),
)
"""Bogacki and Shampine 1989, 3(2)."""

FIRST = 0.05
"""The first step to be tried, as a share of the way: of no sample's neighbours."""
TOLERANCE = Between(1e-5, 1e-13, 1.0)


@dataclass(frozen=True)
class AdaptiveSolver(Samples):
    """An embedded pair.

    Args:
        name: as in a recipe.
        tableau: with an embedded error, and first same as last: its last slope is the next step's first.
        order: of the result; the error is that of one order below.
    """

    name: str
    tableau: Tableau
    order: int

    def traits(self, **options: Any) -> Traits:
        """Its order; an attempt's calls of the network but the first, which the attempt before has made."""
        return Traits(self.order, len(self.tableau.nodes) - 1, draws=False, minimal=1)

    def sampler(
        self, denoiser: Callable[..., Tensor], grid: Grid, *, dtype: torch.dtype = torch.float32, clip: float | None = None, **options: Any
    ) -> AdaptiveSampler:
        """Options: ``rtol``, ``atol`` (1e-5 both): a step is taken where the root mean square of error / (atol + rtol |y|) is within 1.

        Raises:
            UserError: another option, or a tolerance outside its range.
        """
        for name, value in options.items():
            if name not in ("rtol", "atol"):
                raise UserError(
                    f"sampler.{name}", f"'{self.name}' has no such option", "it has rtol and atol, and chooses its steps itself"
                )
            if wrong := TOLERANCE.check(value):
                raise UserError(f"sampler.{name}", f"got {value} for '{self.name}'", wrong)
        return AdaptiveSampler(denoiser, grid, self, dtype, clip, **options)


class AdaptiveSampler(Loop):
    """The loop of an embedded pair: a step is an attempt by every row; rows that arrive leave, each at its own time.

    A state's x, and that of rows in snapshots that are not final, is y = x / alpha.

    Raises:
        UserError: a grid that begins or ends where n is 0 or infinite; in ``step``, a row that needs more than ``max_steps`` attempts.
    """

    def __init__(
        self,
        denoiser: Callable[..., Tensor],
        grid: Grid,
        solver: AdaptiveSolver,
        dtype: torch.dtype = torch.float32,
        clip: float | None = None,
        rtol: float = TOLERANCE.default,
        atol: float = TOLERANCE.default,
        max_steps: int = 10_000,
    ) -> None:
        super().__init__(denoiser, grid, dtype, clip)
        self.solver, self.rtol, self.atol, self.max_steps = solver, rtol, atol, max_steps
        noisy = grid.instants[:-1] if grid.clean else grid.instants
        self._start, self._stop = (-at.log_snr for at in (noisy[0], noisy[-1]))
        if not (math.isfinite(self._start) and math.isfinite(self._stop)) or self._start == self._stop:
            raise UserError("sampler.grid", f"'{solver.name}' goes between two finite noise levels", "give a grid with two, such as karras")
        self._scale = noisy[-1].alpha

    def begin(self, *args: Any, **kwargs: Any) -> State:
        """As ``Loop.begin``. What the state keeps is each row's log n, its next step on that clock and its slope there."""
        state = super().begin(*args, **kwargs)
        state.x = state.x / self.grid.instants[0].alpha
        clock_B = state.x.new_full((state.live,), self._start, dtype=torch.float64)
        step_B = torch.full_like(clock_B, (self._stop - self._start) * FIRST)
        state.kept = {"clock": clock_B, "step": step_B, "slope": self._slope(state.x, clock_B, state)}
        return state

    @torch.no_grad()
    def _slope(self, y: Tensor, log_n_B: Tensor, state: State) -> Tensor:
        n_B = log_n_B.exp()
        return y - self._image(y, Level(torch.ones_like(n_B), n_B), state.condition)

    @torch.no_grad()
    def step(self, state: State) -> Snapshot:
        """One attempt by every row. Raises UserError where a row has had ``max_steps``."""
        state.steps += 1
        if not state.live:
            return Snapshot(state.steps, [], state.x, [], lambda: state.x)
        tableau, y, clock_B, slopes = self.solver.tableau, state.x, state.kept["clock"], [state.kept["slope"]]
        left_B = self._stop - clock_B
        reaches_B = state.kept["step"].abs() >= left_B.abs()
        step_B = torch.where(reaches_B, left_B, state.kept["step"])
        h = along(step_B, y).to(y.dtype)
        for node, row in zip(tableau.nodes[1:], tableau.stages[1:], strict=True):
            after = y + h * weighted_sum(row, slopes)
            slopes.append(self._slope(after, clock_B + node * step_B, state))
        error = h * weighted_sum(tableau.error, slopes) / (self.atol + self.rtol * torch.maximum(y.abs(), after.abs()))
        error_B = error.flatten(1).double().square().mean(1).sqrt()
        taken_B, growth_B = verdict(error_B, self.solver.order)
        taken, arrived = along(taken_B, y).bool(), along(taken_B & reaches_B, y).bool()
        image = after - slopes[-1]
        state.x = torch.where(taken, after, y)
        state.kept = {
            "clock": torch.where(taken_B, clock_B + step_B, clock_B),
            "step": step_B * growth_B,
            "slope": torch.where(taken, slopes[-1], slopes[0]),
        }
        state.at = [at + 1 for at in state.at]
        final = (taken_B & reaches_B).tolist()
        if max((at for at, done in zip(state.at, final, strict=True) if not done), default=0) >= self.max_steps:
            raise UserError("sampler.rtol", f"a sample needs more than {self.max_steps} steps", "raise rtol and atol")
        end = image if self.grid.clean else state.x * self._scale
        return self._leave(state, torch.where(arrived, end, state.x), final, lambda: image)


bosh3 = AdaptiveSolver("bosh3", BOGACKI_SHAMPINE, 3)
dopri5 = AdaptiveSolver("dopri5", DORMAND_PRINCE, 5)
