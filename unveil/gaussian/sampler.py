"""How data is uncovered: a state of rows and a step. The sampler owns the loop and asks the network; a solver only combines vectors.

A row depends on its seed and its own course alone, not on its neighbours, when it joined them, or the device. Rows at the same step, the
usual case, move by numbers; rows at different steps move together too, by tensors of numbers, in as few calls of the network as can be.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unveil.errors import UserError
from unveil.gaussian.denoiser import Denoiser
from unveil.gaussian.grid import Grid
from unveil.gaussian.level import Level
from unveil.gaussian.noise import Noise, start
from unveil.gaussian.solver import Solver
from unveil.gaussian.tape import Call, Draw, Learned, Let, Raw, Tape, evaluate, fuse, merge


@dataclass(frozen=True)
class Snapshot:
    """The rows after a step; those that became final in it are among them for the last time.

    Tensors are a step's own: later steps do not change them.
    """

    step: int
    requests: list[int]
    x: Tensor
    """``[B, ...]``, where each row is now; of a final row on a grid with a clean end, the denoised image."""
    final: list[bool]
    _denoised: Callable[[], Tensor] = field(repr=False)

    def denoised(self) -> Tensor:
        """The image as the network saw it in this step, ``[B, ...]``. Computed when asked for."""
        return self._denoised()


@dataclass
class State:
    """The live rows between two steps."""

    x: Tensor
    """``[B, ...]``"""
    at: list[int]
    """Steps that each row has made."""
    noise: Noise
    kept: dict[str, Tensor]
    """What earlier steps left to later ones, ``[B, ...]`` each."""
    condition: dict[str, Tensor]
    given: dict[str, Tensor]
    """Known parts of images, where there are any."""
    requests: list[int]
    begun: int
    """Requests so far; a joined state's are numbered on from here."""
    steps: int = 0

    @property
    def live(self) -> int:
        return len(self.at)

    def select(self, rows: Sequence[int]) -> State:
        """These rows, in this order; they and the rows of this state go on independently."""
        index = torch.as_tensor(rows, dtype=torch.int64, device=self.x.device)
        kept, condition, given = ({k: v[index] for k, v in d.items()} for d in (self.kept, self.condition, self.given))
        at, requests = ([values[row] for row in rows] for values in (self.at, self.requests))
        return State(self.x[index], at, self.noise.select(rows), kept, condition, given, requests, self.begun, self.steps)

    def become(self, other: State) -> None:
        """Take over another state's rows."""
        for part in fields(State):
            setattr(self, part.name, getattr(other, part.name))

    def join(self, other: State) -> State:
        """This state's rows and then the other's, whose requests are numbered on; independent of both."""
        return self.beside(replace(other, requests=[request + self.begun for request in other.requests]), self.begun + other.begun)

    def beside(self, other: State, begun: int) -> State:
        """The rows of both, under the numbers that they have."""

        def stacked(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            # what only one side has is of steps that the other has not made: nothing asks its rows for it
            return {
                name: torch.cat([ours.get(name, torch.zeros_like(self.x)), theirs.get(name, torch.zeros_like(other.x))])
                for name in dict.fromkeys([*ours, *theirs])
            }

        return State(
            torch.cat([self.x, other.x]),
            self.at + other.at,
            self.noise.join(other.noise),
            stacked(self.kept, other.kept),
            {name: torch.cat([value, other.condition[name]]) for name, value in self.condition.items()},
            {name: torch.cat([value, other.given[name]]) for name, value in self.given.items()},
            self.requests + other.requests,
            begun,
            max(self.steps, other.steps),
        )


class Loop(ABC):
    """What all samplers share: where rows begin, and going on until none is left.

    Args:
        denoiser: (x, level, **condition) -> D, such as a ``Denoiser``, a guided one or an exact one.
        grid: where to stop. With increasing times it inverts: the same steps, from an image to its noise.
        dtype: of the state: float32, or float64 where errors of 1e-7 a step matter. The network computes in its own.
        clip: D is held within -clip ... clip, and every solver takes its eps from the D that it is shown.

    Raises:
        UserError: a dtype or a clip that is no such thing.
    """

    def __init__(self, denoiser: Callable[..., Tensor], grid: Grid, dtype: torch.dtype = torch.float32, clip: float | None = None) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise UserError("sampler.dtype", f"got {dtype}", "choose float32 or float64: narrower states lose what a small step adds")
        if clip is not None and not clip > 0.0:
            raise UserError("sampler.clip", f"got {clip}", "choose a bound above 0, or none")
        self.denoiser, self.grid, self.dtype, self.clip = denoiser, grid, dtype, clip
        self._parameter = next(denoiser.parameters(), None) if isinstance(denoiser, nn.Module) else None

    @abstractmethod
    def step(self, state: State) -> Snapshot:
        """Every row moves on by one step; rows that are done leave the state."""

    def begin(
        self,
        shape: Sequence[int] | None = None,
        seeds: Sequence[int] | None = None,
        x: Tensor | None = None,
        given: Mapping[str, Tensor] | None = None,
        **condition: Tensor,
    ) -> State:
        """A row per seed, at the grid's first instant.

        Args:
            shape: ``[B, ...]``; that of ``x`` where it is given.
            seeds: B of them, 0 ... B - 1 if left out. A seed alone decides a row's first state and all its noise.
            x: the first state instead of noise of standard deviation sigma, ``[B, ...]``: inversion needs one.
            given: what an ``Inpainter`` is told.
            condition: what else the network takes, ``[B, ...]`` each.

        Raises:
            UserError: not one seed per row; an inversion without a state to begin at.
            ValueError: neither shape nor state; a condition or a state of another batch size.
        """
        if shape is None:
            if x is None:
                raise ValueError("a shape, or a state to begin at")
            shape = tuple(x.shape)
        seeds = range(shape[0]) if seeds is None else seeds
        if len(seeds) != shape[0]:
            raise UserError("sampler.seeds", f"got {len(seeds)} for {shape[0]} samples", "give one seed per sample")
        if x is None:
            if self.grid.inverts:
                raise UserError("sampler.grid", "increasing times invert, but no images are given", "pass x, or use decreasing times")
            x = torch.stack([start(seed, shape[1:]) for seed in seeds]).to(self.dtype) * self.grid.instants[0].sigma
        x = x.to(x.device if self._parameter is None else self._parameter.device, self.dtype)
        given = {name: value.to(x.device) for name, value in (given or {}).items()}
        condition = {name: value.to(x.device) for name, value in condition.items()}
        if tuple(x.shape) != tuple(shape) or any(len(value) != shape[0] for value in (*condition.values(), *given.values())):
            raise ValueError(f"the state {tuple(x.shape)} and all conditions must be of the batch {tuple(shape)}")
        return State(x, [0] * len(seeds), Noise(seeds, x), {}, condition, given, list(range(len(seeds))), len(seeds))

    def sample(
        self, shape: Sequence[int] | None = None, seeds: Sequence[int] | None = None, x: Tensor | None = None, **condition: Tensor
    ) -> Tensor:
        """From ``begin`` to the grid's end, ``[B, ...]`` in the state's dtype and in the order of the seeds."""
        return self.finish(self.begin(shape, seeds, x, None, **condition))

    def finish(self, state: State) -> Tensor:
        """Go on until no row is left; where each arrived, by request."""
        ends: dict[int, Tensor] = {}
        while state.live:
            snapshot = self.step(state)
            ends.update((request, end) for request, end, final in zip(snapshot.requests, snapshot.x, snapshot.final, strict=True) if final)
        return torch.stack([ends[request] for request in sorted(ends)])

    def _image(self, x: Tensor, level: Level, condition: Mapping[str, Tensor]) -> Tensor:
        return self._bounded(self.denoiser(x, level, **condition))

    def _bounded(self, image: Tensor) -> Tensor:
        image = image.to(self.dtype)
        return image if self.clip is None else image.clamp(-self.clip, self.clip)

    def _leave(self, state: State, x: Tensor, final: list[bool], denoised: Callable[[], Tensor]) -> Snapshot:
        """A snapshot that shows ``x`` of a state whose rows have moved; the final ones are not in the state any more."""
        snapshot = Snapshot(state.steps, state.requests, x, final, denoised)
        if any(final):
            state.become(state.select([row for row, done in enumerate(final) if not done]))
        return snapshot


class Sampler(Loop):
    """A denoiser, a grid and a solver that takes the grid's steps.

    A bare ``Denoiser``'s linear map is multiplied into the solver's coefficients, which saves its passes over the state.

    Args:
        solver: one of ``solvers.SOLVERS``.
        options: the solver's.

    Raises:
        UserError: what the solver or the grid refuses; learned variance of a network without.
    """

    def __init__(
        self,
        denoiser: Callable[..., Tensor],
        grid: Grid,
        solver: Solver,
        *,
        dtype: torch.dtype = torch.float32,
        clip: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(denoiser, grid, dtype, clip)
        self.tapes = self._compile(solver.tapes(grid, **options))
        self._reach = _reach(self.tapes)

    def _compile(self, tapes: Sequence[Tape]) -> tuple[Tape, ...]:
        learns = any(isinstance(one, Learned) for tape in tapes for one in tape.instructions)
        if learns and not getattr(self.denoiser, "learned_variance", False):
            raise UserError("sampler.variance", "got 'learned' for a network that learned none", "choose small or large")
        plain = type(self.denoiser) is Denoiser and not self.denoiser.learned_variance and self.clip is None
        return tuple(fuse(tape, self.denoiser.coefficients) for tape in tapes) if plain else tuple(tapes)  # type: ignore[attr-defined]

    @torch.no_grad()
    def step(self, state: State) -> Snapshot:
        """Every row moves on by one step; rows that are done leave the state."""
        state.steps += 1
        if not state.live:
            return Snapshot(state.steps, [], state.x, [], lambda: state.x)
        level = state.at.count(state.at[0]) == state.live
        denoised = self._run(self.tapes[state.at[0]], state) if level else self._ragged(state)
        state.at = [at + 1 for at in state.at]
        return self._leave(state, state.x, [at == len(self.tapes) for at in state.at], denoised)

    def _run(self, tape: Tape, state: State) -> Callable[[], Tensor]:
        """Play a tape on the rows of a state; returns what computes the image as the step saw it."""
        vectors = {"x": state.x, **state.kept, **state.given}
        share: Tensor | None = None
        for one in tape.instructions:
            match one:
                case Raw():
                    noise = one.noise.flatten() if isinstance(one.noise, Tensor) else one.noise
                    inside = evaluate(one.at, vectors).to(self.dtype if self._parameter is None else self._parameter.dtype)
                    output, _ = self.denoiser.answer(inside, noise, state.condition)  # type: ignore[attr-defined]
                    vectors[one.into] = output.to(state.x.dtype)
                case Call():
                    at = evaluate(one.at, vectors)
                    if one.share:
                        image, share = self.denoiser.with_variance(at, one.level, **state.condition)  # type: ignore[attr-defined]
                        vectors[one.into] = self._bounded(image)
                    else:
                        vectors[one.into] = self._image(at, one.level, state.condition)
                case Let():
                    vectors[one.into] = evaluate(one.terms, vectors)
                case Draw():
                    vectors[one.into] = state.noise.draw()
                case Learned():
                    assert share is not None, "a learned variance follows the call that tells it"
                    vectors[one.into] = torch.exp(one.low + share * (one.high - one.low)).mul_(state.noise.draw())
        state.x = evaluate(tape.result, vectors)
        if tape.given:
            state.x = torch.where(state.given["mask"], evaluate(tape.given, vectors), state.x)
        if self._reach:
            state.kept = self._aged(state.kept, [vectors[name] for name in tape.keeps])
        return partial(evaluate, tape.denoised, vectors)

    def _ragged(self, state: State) -> Callable[[], Tensor]:
        """The same for rows at different steps: those whose tapes differ in numbers alone go together."""
        groups: dict[Hashable, list[int]] = {}
        for row, at in enumerate(state.at):
            groups.setdefault(self.tapes[at].form, []).append(row)

        def column(numbers: Sequence[float]) -> Tensor:
            return torch.tensor(numbers, dtype=self.dtype, device=state.x.device).view(-1, *[1] * (state.x.ndim - 1))

        parts, images = [], []
        for rows in groups.values():
            parts.append(state.select(rows))
            images.append(self._run(merge([self.tapes[state.at[row]] for row in rows], column), parts[-1]))
        moved = parts[0]
        for part in parts[1:]:
            moved = moved.beside(part, state.begun)
        order = [row for rows in groups.values() for row in rows]
        back = sorted(range(len(order)), key=order.__getitem__)
        state.become(moved.select(back))
        return lambda: torch.cat([image() for image in images])[back]

    def _aged(self, kept: Mapping[str, Tensor], new: Sequence[Tensor]) -> dict[str, Tensor]:
        """What is kept, one step older, as far back as any later step looks."""
        fresh = {(i, 1): value for i, value in enumerate(new)}
        older = {(i, age + 1): value for (i, age), value in ((_place(name), value) for name, value in kept.items())}
        return {f"k{i}-{age}": value for (i, age), value in {**older, **fresh}.items() if age <= self._reach.get(i, 0)}


def _place(name: str) -> tuple[int, int]:
    """(which, age) of a kept vector's name."""
    which, age = name[1:].split("-")
    return int(which), int(age)


def _reach(tapes: Sequence[Tape]) -> dict[int, int]:
    """How many steps back each of the kept vectors is asked for."""
    reach: dict[int, int] = {}
    for tape in tapes:
        inner = [one.at if isinstance(one, Call | Raw) else one.terms for one in tape.instructions if isinstance(one, Call | Raw | Let)]
        for name, _ in (term for terms in (*inner, tape.result, tape.denoised) for term in terms):
            if name[0] == "k":
                which, age = _place(name)
                reach[which] = max(reach.get(which, 0), age)
    return reach
