"""What a solver is: a short function from one instant of a grid to the next, and what may be asked of it.

    @solver(order=1, evaluations=1)
    def ddim(step): ...

makes a ``Solver`` of the function. Calling that samples: ``ddim(denoiser, grid, shape=(16, 3, 32, 32), seeds=range(16))``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil.errors import UserError, nearest
from unveil.gaussian.grid import Grid, Instant
from unveil.gaussian.level import Path
from unveil.gaussian.tape import Combination, Recorder, Tape, Vector

REACH = 3
"""Steps back that a solver may look."""


class Past(NamedTuple):
    """An earlier step: where it began and what it kept."""

    at: Instant
    kept: tuple[Vector, ...]


@dataclass(frozen=True)
class Step:
    """What a solver's function gets: the state ``x`` at ``t``, to be carried to ``s``.

    Vectors are tensors or formal combinations of them, so a function may add them, scale them by floats, and pass them to the callables
    here: ``denoise(x, level)`` is the network, ``noise()`` a standard normal, ``settle(x)`` stores a vector that is used often,
    ``keep(...)`` leaves vectors to later steps, where they are ``past[0].kept``.
    """

    path: Path
    t: Instant
    s: Instant
    x: Vector
    past: tuple[Past, ...]
    """Nearest first; empty at the first step, and after one that began without signal."""
    steps: int
    """Of the whole grid."""
    denoise: Callable[..., Vector]
    noise: Callable[[], Vector]
    learned_noise: Callable[[float, float], Vector]
    settle: Callable[[Vector], Vector]
    keep: Callable[..., None]

    @property
    def last(self) -> bool:
        """Whether ``s`` is the data end, where the state is the denoised image."""
        return self.s.sigma == 0.0


@dataclass(frozen=True)
class Between:
    """An option that is a number."""

    default: float
    low: float = 0.0
    high: float = math.inf
    whole: bool = False

    def check(self, value: Any) -> str:
        """What is wanted, where a value is not that."""
        kinds = int if self.whole else (int, float)
        fits = isinstance(value, kinds) and not isinstance(value, bool) and self.low <= value <= self.high
        return "" if fits else f"choose {'a whole number ' if self.whole else ''}from {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class OneOf:
    """An option that is a word, the first one by default."""

    words: tuple[str, ...]

    @property
    def default(self) -> str:
        return self.words[0]

    def check(self, value: Any) -> str:
        return "" if value in self.words else f"choose {' or '.join(self.words)}"


Options = Mapping[str, Any]


class Traits(NamedTuple):
    """What a solver is with its options.

    order: of convergence in the number of steps (weak order where noise is drawn); 0 where it converges in something else.
    evaluations: calls of the network per step, once its history is there.
    draws: whether it draws noise.
    minimal: the fewest steps.
    """

    order: int
    evaluations: int
    draws: bool
    minimal: int


class Samples(ABC):
    """What all solvers share: being called to sample."""

    @abstractmethod
    def sampler(
        self, denoiser: Callable[..., Tensor], grid: Grid, *, dtype: torch.dtype = torch.float32, clip: float | None = None, **options: Any
    ) -> Any:
        """The loop over the grid; raises UserError for what the solver or the grid refuses."""

    def __call__(
        self,
        denoiser: Callable[..., Tensor],
        grid: Grid,
        shape: Sequence[int] | None = None,
        seeds: Sequence[int] | None = None,
        *,
        x: Tensor | None = None,
        condition: Mapping[str, Tensor] | None = None,
        **options: Any,
    ) -> Tensor:
        """Sample from noise (or from ``x``) to the last instant of the grid, ``[B, ...]``; ``options`` as of ``sampler``."""
        return self.sampler(denoiser, grid, **options).sample(shape, seeds, x, **(condition or {}))


@dataclass(frozen=True)
class Solver(Samples):
    """A step function and its traits.

    Args:
        name: as in a recipe.
        function: (``Step``, option=value, ...) -> the state at ``s``.
        allowed: its options, their defaults and what they may be.
        of: options -> its ``Traits``.
        anywhere: whether it can begin without signal (alpha = 0), which has no place on the clocks n and lambda; another solver's
            first step is DDIM's there.
    """

    name: str
    function: Callable[..., Vector]
    allowed: Mapping[str, Between | OneOf]
    of: Callable[[Options], Traits]
    anywhere: bool

    def traits(self, **given: Any) -> Traits:
        """With these options; raises UserError as ``options``."""
        return self.of(self.options(**given))

    def options(self, **given: Any) -> dict[str, Any]:
        """All options with their values.

        Raises:
            UserError: an option that this solver does not have, or a value outside its range.
        """
        values = {name: option.default for name, option in self.allowed.items()}
        for name, value in given.items():
            if name not in values:
                known = nearest(name, values) if values else "it has no options"
                raise UserError(f"sampler.{name}", f"'{self.name}' has no such option", known)
            if wrong := self.allowed[name].check(value):
                raise UserError(f"sampler.{name}", f"got {value} for '{self.name}'", wrong)
            values[name] = value
        return values

    def tapes(self, grid: Grid, **given: Any) -> tuple[Tape, ...]:
        """The steps of a grid, compiled.

        Raises:
            UserError: an option or its value that is not allowed; too few steps; a solver that draws noise on a grid that inverts.
        """
        options = self.options(**given)
        traits = self.of(options)
        if grid.steps < traits.minimal:
            raise UserError("sampler.steps", f"'{self.name}' needs at least {traits.minimal} steps, got {grid.steps}", "take more steps")
        if grid.inverts and traits.draws:
            raise UserError(
                "sampler.solver", f"'{self.name}' draws noise, which has no inverse", "take an ODE solver, such as ddim or heun"
            )
        tapes: list[Tape] = []
        past: tuple[Past, ...] = ()
        for t, s in zip(grid.instants, grid.instants[1:], strict=False):
            blind = t.alpha == 0.0 and not self.anywhere
            tape, kept = self._trace(grid, t, s, past, {} if blind else options, _plain if blind else self.function)
            tapes.append(tape)
            past = () if t.alpha == 0.0 else (Past(t, kept), *past)[:REACH]
        return tuple(tapes)

    def _trace(
        self, grid: Grid, t: Instant, s: Instant, past: tuple[Past, ...], options: Options, function: Callable[..., Vector]
    ) -> tuple[Tape, tuple[Vector, ...]]:
        """The tape of a step, and the vectors that it keeps as later steps will know them."""
        recorder = Recorder()
        named = tuple(
            Past(one.at, tuple(Combination({f"k{i}-{age}": 1.0}) for i in range(len(one.kept)))) for age, one in enumerate(past, start=1)
        )
        step = Step(
            grid.path,
            t,
            s,
            Combination({"x": 1.0}),
            named,
            grid.steps,
            recorder.denoise,
            recorder.noise,
            recorder.learned_noise,
            recorder.settle,
            recorder.keep,
        )
        tape = recorder.tape(function(step, **options))
        return tape, tape.keeps

    def sampler(
        self, denoiser: Callable[..., Tensor], grid: Grid, *, dtype: torch.dtype = torch.float32, clip: float | None = None, **options: Any
    ) -> Any:
        """A ``sampler.Sampler`` with this solver; raises UserError as it does."""
        # the sampler knows what a solver is; this convenience alone goes the other way
        from unveil.gaussian.sampler import Sampler

        return Sampler(denoiser, grid, self, dtype=dtype, clip=clip, **options)


def first_order(x: Vector, t: Instant, s: Instant, denoised: Vector) -> Vector:
    """x_s = alpha_s D + sigma_s eps, eps = (x_t - alpha_t D) / sigma_t: DDIM, and Euler in n. Exactly D at the data end."""
    ratio = s.sigma / t.sigma
    return x * ratio + denoised * (s.alpha - t.alpha * ratio)


def _plain(step: Step) -> Vector:
    return first_order(step.x, step.t, step.s, step.denoise(step.x, step.t.level))


def solver(
    name: str,
    *,
    order: int | Callable[[Options], int],
    evaluations: int | Callable[[Options], int],
    draws: bool | Callable[[Options], bool] = False,
    minimal: int | Callable[[Options], int] = 1,
    anywhere: bool = False,
    options: Mapping[str, Between | OneOf] | None = None,
) -> Callable[[Callable[..., Vector]], Solver]:
    """Make a ``Solver`` of a step function."""

    def traits(values: Options) -> Traits:
        return Traits(*(trait(values) if callable(trait) else trait for trait in (order, evaluations, draws, minimal)))  # type: ignore[arg-type]

    def of(function: Callable[..., Vector]) -> Solver:
        made = Solver(name, function, options or {}, traits, anywhere)
        object.__setattr__(made, "__doc__", function.__doc__)
        return made

    return of
