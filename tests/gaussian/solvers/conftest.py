"""A mixture's flow with known end points, noise out of a list, and exact variances."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from unveil.gaussian.exact import Mixture
from unveil.gaussian.grid import Grid, karras
from unveil.gaussian.path import EDM, Path
from unveil.gaussian.solver import Solver
from unveil.gaussian.solvers import dopri5
from unveil.gaussian.tape import Call, Combination, Draw, Let, Terms

LOW, HIGH = 0.05, 10.0


@dataclass(frozen=True)
class Problem:
    """64 starts ``[64, 1]`` in y at n = HIGH, and where the probability flow takes them by n = LOW."""

    mixture: Mixture
    start: Tensor
    end: Tensor

    def grid(self, steps: int, path: Path | None = None) -> Grid:
        """That many steps between the two levels on any path."""
        return karras(path or EDM(), steps + 1, n_min=LOW, n_max=HIGH, clean=False)

    def solve(self, solver: Solver, grid: Grid, **options: Any) -> Tensor:
        """y at the end."""
        first, last = grid.instants[0], grid.instants[-1]
        x = solver(self.mixture.denoise, grid, x=self.start * first.alpha, dtype=torch.float64, **options)
        return x / last.alpha

    def orders(self, solve: Callable[[int], Tensor], steps: Sequence[int] = (64, 128, 256, 512)) -> list[float]:
        """log2 of the quotients of root mean square errors from one number of steps to the next."""
        errors = torch.stack([(solve(count) - self.end).square().mean().sqrt() for count in steps])
        return torch.log2(errors[:-1] / errors[1:]).tolist()


@pytest.fixture(scope="session")
def problem() -> Problem:
    mixture = Mixture([0.3, 0.5, 0.2], [[-1.0], [0.4], [2.0]], 0.25)
    start = HIGH * torch.randn(64, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grid = karras(EDM(), 2, n_min=LOW, n_max=HIGH, clean=False)
    return Problem(mixture, start, dopri5(mixture.denoise, grid, x=start, dtype=torch.float64, rtol=1e-13, atol=1e-13))


class Recorded:
    """Noise out of a list, in the place of a state's streams."""

    def __init__(self, draws: Iterable[Tensor]) -> None:
        self.draws = list(draws)

    def draw(self) -> Tensor:
        return self.draws.pop(0)

    def select(self, rows: Sequence[int]) -> Recorded:
        return self


@pytest.fixture
def recorded() -> type[Recorded]:
    return Recorded


def _variance(solver: Solver, grid: Grid, data: float, start: float, **options: Any) -> float:
    """The variance at the end of a grid, exactly: on data N(0, ``data``) D is a multiple of x, so every step is x' = a x + b z."""
    now = start
    for tape in solver.tapes(grid, **options):
        assert not tape.keeps, "memory is correlated with the state"
        names = {"x": Combination({"x": 1.0})}

        def formal(terms: Terms, names: dict[str, Combination] = names) -> Combination:
            total = Combination({})
            for name, value in terms:
                total = total + names[name] * value
            return total

        for one in tape.instructions:
            if isinstance(one, Call):
                gain = one.level.alpha * data / (one.level.alpha**2 * data + one.level.sigma**2)
                names[one.into] = formal(one.at) * gain
            elif isinstance(one, Let):
                names[one.into] = formal(one.terms)
            elif isinstance(one, Draw):
                names[one.into] = Combination({one.into: 1.0})
        result = formal(tape.result).terms
        now = sum(value**2 * (now if name == "x" else 1.0) for name, value in result.items())
    return now


@pytest.fixture
def variance() -> Callable[..., float]:
    return _variance
