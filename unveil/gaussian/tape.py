"""A solver's step as a list of linear combinations: written once as in the paper, compiled once per grid, then two or three passes a step.

Every solver here but the adaptive one is linear in the state, the denoised images and the noise, with coefficients that the grid fixes. So
its function is run once per step of the grid on *formal* vectors, ``Combination``: what it does to them is written down as a ``Tape`` whose
coefficients are Python floats. Running the tape costs one elementwise pass per term and no arithmetic on schedules. The same function
run on tensors is the plain twin.

Names of vectors: "x" the state, "D0", "D1", ... the answers of the network in this step, "z0", ... noise, "k0-1" the first vector that the
step before kept, "k1-2" the second one of the step before that, "u0", ... combinations that are stored because they are used again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil.gaussian.level import Level

Vector = Any
"""A tensor ``[B, ...]``, or a formal ``Combination``: what a solver does with it is the same."""

Terms = tuple[tuple[str, Any], ...]
"""(name, coefficient): Python floats for a whole batch, or tensors that broadcast over rows at different steps."""

ULP = 2.0**-52


@dataclass(frozen=True)
class Combination:
    """A sum of named vectors."""

    terms: Mapping[str, float]

    def __add__(self, other: Combination) -> Combination:
        names = dict.fromkeys([*self.terms, *other.terms])
        return Combination({name: self.terms.get(name, 0.0) + other.terms.get(name, 0.0) for name in names})

    def __sub__(self, other: Combination) -> Combination:
        return self + other * -1.0

    def __mul__(self, factor: float) -> Combination:
        return Combination({name: value * factor for name, value in self.terms.items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Combination:
        return Combination({name: value / divisor for name, value in self.terms.items()})

    def frozen(self) -> Terms:
        """Without what cancelled, and a term of factor 1 in front: it saves a pass."""
        kept = [(name, 1.0 if abs(value - 1.0) <= 2 * ULP else value) for name, value in self.terms.items() if value != 0.0]
        return tuple(sorted(kept, key=lambda term: term[1] != 1.0))


class Call(NamedTuple):
    """``into`` becomes the denoised image of the state ``at`` a level. If ``share``, also what the network says of its variance."""

    into: str
    at: Terms
    level: Level
    share: bool = False


class Raw(NamedTuple):
    """``into`` becomes the bare answer of a network whose input, scaled as it wants it, is ``at``, and whose second input is ``noise``."""

    into: str
    at: Terms
    noise: Any


class Let(NamedTuple):
    """``into`` becomes a combination."""

    into: str
    terms: Terms


class Draw(NamedTuple):
    """``into`` becomes the next noise of each row."""

    into: str


class Learned(NamedTuple):
    """``into`` becomes the next noise times a standard deviation between two bounds of its logarithm, where the network put it."""

    into: str
    low: Any
    high: Any


Instruction = Call | Raw | Let | Draw | Learned


@dataclass(frozen=True)
class Tape:
    """One step: the instructions in order, the next state, what later steps need of this one, and the image as this step saw it."""

    instructions: tuple[Instruction, ...]
    result: Terms
    keeps: tuple[str, ...]
    denoised: Terms
    given: Terms = ()
    """Where part of the image is known, what that part is after the step."""

    @property
    def form(self) -> Hashable:
        """Equal for tapes that differ in numbers alone."""
        return tuple((type(one), one.into) for one in self.instructions), self.keeps, bool(self.given)


@dataclass
class Recorder:
    """Writes down what a solver does to formal vectors."""

    instructions: list[Instruction] = field(default_factory=list)
    keeps: list[str] = field(default_factory=list)
    _count: dict[str, int] = field(default_factory=dict)

    def _new(self, kind: str) -> str:
        self._count[kind] = self._count.get(kind, -1) + 1
        return f"{kind}{self._count[kind]}"

    def denoise(self, x: Combination, level: Level, share: bool = False) -> Combination:
        name = self._new("D")
        self.instructions.append(Call(name, x.frozen(), level, share))
        return Combination({name: 1.0})

    def noise(self) -> Combination:
        name = self._new("z")
        self.instructions.append(Draw(name))
        return Combination({name: 1.0})

    def learned_noise(self, low: float, high: float) -> Combination:
        name = self._new("z")
        self.instructions.append(Learned(name, low, high))
        return Combination({name: 1.0})

    def settle(self, x: Combination) -> Combination:
        """Store a combination, so that what follows is counted from it."""
        terms = x.frozen()
        if len(terms) == 1 and terms[0][1] == 1.0:
            return Combination(dict(terms))
        name = self._new("u")
        self.instructions.append(Let(name, terms))
        return Combination({name: 1.0})

    def keep(self, *vectors: Combination) -> None:
        self.keeps = [next(iter(self.settle(vector).terms)) for vector in vectors]

    def tape(self, result: Combination) -> Tape:
        last = next(i.into for i in reversed(self.instructions) if isinstance(i, Call))
        return Tape(tuple(self.instructions), result.frozen(), tuple(self.keeps), ((last, 1.0),))


def evaluate(terms: Terms, vectors: Mapping[str, Tensor]) -> Tensor:
    """The combination. A new tensor, unless it is one vector as it is."""
    name, factor = terms[0]
    start, rest = vectors[name], terms[1:]
    if isinstance(factor, Tensor):
        total = start * factor
        for name, factor in rest:
            total.addcmul_(vectors[name], factor)
        return total
    if factor != 1.0:
        total = start * factor
    elif rest:
        (name, factor), *rest = rest  # type: ignore[assignment]
        total = torch.add(start, vectors[name], alpha=factor)
    else:
        return start
    for name, factor in rest:
        total.add_(vectors[name], alpha=factor)
    return total


def fuse(tape: Tape, coefficients: Callable[[Level], tuple[float, float, float, float]]) -> Tape:
    """The same step in terms of the network's bare answers "F0", ...: D = skip x + out F is put in where a D stood.

    ``coefficients``: level -> (skip, out, into, noise), as ``Denoiser.coefficients``. A D that later steps need is stored.
    """
    known: dict[str, Combination] = {}

    def rewrite(terms: Terms) -> Terms:
        return _rewritten(terms, known).frozen()

    instructions: list[Instruction] = []
    for step in tape.instructions:
        if isinstance(step, Call):
            at = _rewritten(step.at, known)
            skip, out, into, noise = coefficients(step.level)
            raw = step.into.replace("D", "F")
            instructions.append(Raw(raw, (at * into).frozen(), noise))
            known[step.into] = at * skip + Combination({raw: out})
            if step.into in tape.keeps:
                instructions.append(Let(step.into, known.pop(step.into).frozen()))
        elif isinstance(step, Let):
            instructions.append(Let(step.into, rewrite(step.terms)))
        else:
            instructions.append(step)
    return Tape(tuple(instructions), rewrite(tape.result), tape.keeps, rewrite(tape.denoised), tape.given)


def _rewritten(terms: Terms, known: Mapping[str, Combination]) -> Combination:
    total = Combination({})
    for name, value in terms:
        total = total + known.get(name, Combination({name: 1.0})) * value
    return total


def merge(tapes: Sequence[Tape], column: Callable[[Sequence[float]], Tensor]) -> Tape:
    """One tape for rows at different steps, of one ``form``: ``column`` makes of a number per row a tensor that broadcasts with vectors."""

    def together(values: Sequence[Any]) -> Any:
        one = values[0]
        if isinstance(one, Level):
            return Level(*(torch.tensor(numbers, dtype=torch.float64) for numbers in zip(*values, strict=True)))
        if isinstance(one, tuple):
            tables = [dict(terms) for terms in values]
            names = dict.fromkeys(name for table in tables for name in table)
            return tuple((name, column([table.get(name, 0.0) for table in tables])) for name in names)
        return column(values) if isinstance(one, float) else one

    steps = zip(*(tape.instructions for tape in tapes), strict=True)
    instructions = tuple(type(rows[0])(*map(together, zip(*rows, strict=True))) for rows in steps)
    result, denoised, given = (together([getattr(tape, name) for tape in tapes]) for name in ("result", "denoised", "given"))
    return Tape(instructions, result, tapes[0].keeps, denoised, given)
