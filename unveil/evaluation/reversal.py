"""The reversal task (LLaDA, Nie et al. 2025, arXiv 2502.09992, section 3.3): the next line of a poem, and the line before.

A pair of neighbouring lines is a text of its own, ``start first newline second``. A network that sees what follows is asked for either line
as a gap in that text. One that reads left to right can be asked for the line before only as if it came next, ``start second newline
first``; but of lines that are laid before it, it can say which fits best: log p(first) + log p(second | first) is log p(first | second) up
to what is the same for all of them (Bayes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from unveil.data.noise import generator
from unveil.data.tokenizer import Tokenizer
from unveil.evaluation.told import Ids, Told
from unveil.family import Request, Row

CHOICES = 50
"""Lines that are ranked: the true one and others."""


class Pair(NamedTuple):
    """Two lines of a document, one after the other."""

    document: int
    first: str
    second: str

    def line(self, which: int) -> str:
        return self.second if which else self.first


class Way(NamedTuple):
    """Which line is wanted, and how it is asked for.

    name: in words.
    wanted: 0 for the first of a pair, 1 for the second.
    ahead: the lines stand in their order, whichever is told; else what is told stands first.
    told: the other line is told; else both are scored.
    """

    name: str
    wanted: int
    ahead: bool = True
    told: bool = True


NEXT = Way("next line", 1)
FILLED = Way("previous line", 0)
AS_NEXT = Way("previous line", 0, ahead=False)
BY_BAYES = Way("previous line, by Bayes", 0, told=False)


def ways(sees_ahead: bool) -> tuple[Way, ...]:
    """How a network is asked. All but the last of one that reads left to right can be asked to write."""
    return (NEXT, FILLED) if sees_ahead else (NEXT, AS_NEXT, BY_BAYES)


def pairs(documents: Iterable[str]) -> list[Pair]:
    """Of neighbouring lines that are not empty."""
    found = []
    for number, text in enumerate(documents):
        lines = [line for line in text.split("\n") if line.strip()]
        found += [Pair(number, *two) for two in pairwise(lines)]
    return found


class Question:
    """A pair as tokens: start, a line, a newline, a line."""

    def __init__(self, pair: Pair, way: Way, tokenizer: Tokenizer) -> None:
        self._way, self._vocabulary = way, tokenizer.vocabulary
        self._opening, self._newline = tokenizer.opened(""), tokenizer.encode("\n")
        self.truth, self._other = (tokenizer.encode(pair.line(which)) for which in (way.wanted, 1 - way.wanted))
        self._behind = way.wanted == 1 or not way.ahead

    @property
    def place(self) -> slice:
        """Where the wanted line stands."""
        at = len(self._opening) + (len(self._other) + len(self._newline) if self._behind else 0)
        return slice(at, at + len(self.truth))

    def text(self, line: Ids) -> Ids:
        """With ``line`` in the place of the wanted one."""
        first, second = (self._other, line) if self._behind else (line, self._other)
        return np.concatenate([self._opening, first, self._newline, second])

    def scored(self, line: Ids, sample_id: int) -> Told:
        """What the likelihood of ``line`` is asked with."""
        tokens = self.text(line)
        given = np.zeros(len(tokens), dtype=np.bool_)
        given[: len(self._opening)] = True
        if self._way.told:
            given[:] = True
            given[self.place] = False
        return Told(tokens, given, sample_id)

    def request(self, gaps: bool, seed: int) -> Request:
        """To write as many tokens as the true line has: into a gap, or after what is told."""
        if gaps:
            return Request(self.text(np.full(len(self.truth), self._vocabulary.mask)), 0, seed)
        return Request(self.text(self.truth)[: self.place.start], len(self.truth), seed)

    def answered(self, tokens: Ids) -> bool:
        """Whether a canvas holds the true line."""
        return np.array_equal(tokens[self.place], self.truth)


def others(pool: Sequence[Pair], wanted: int, size: Callable[[str], int], seed: int) -> list[list[str] | None]:
    """For each pair ``CHOICES - 1`` lines to tell its first (0) or second (1) from: those of other pairs in the same role, of its ``size``
    and of other documents, all different. None where there are fewer. The same for a seed."""
    lines = sorted({(pair.line(wanted), pair.document) for pair in pool})
    sizes = np.array([size(line) for line, _ in lines])
    found: list[list[str] | None] = []
    for pair in pool:
        truth = pair.line(wanted)
        alike = (lines[i] for i in np.flatnonzero(sizes == size(truth)))
        fit = list(dict.fromkeys(line for line, document in alike if document != pair.document and line != truth))
        rng = generator(seed, 0, pair.document, f"reversal {wanted} {pair.first}")
        found.append([fit[i] for i in rng.permutation(len(fit))[: CHOICES - 1]] if len(fit) >= CHOICES - 1 else None)
    return found


def rank(scores: Sequence[float]) -> float:
    """Of the first score among all, 1 for the highest; equal ones share their places."""
    first, rest = scores[0], np.array(scores[1:])
    return 1.0 + float((rest > first).sum()) + float((rest == first).sum()) / 2


class Mean(NamedTuple):
    value: float
    stderr: float
    """With the pairs of one document taken together, which are not independent."""

    @staticmethod
    def of(values: Sequence[float], documents: Sequence[int]) -> Mean:
        """NaN for no values; the error of a single document is not known, NaN."""
        if not len(values):
            return Mean(float("nan"), float("nan"))
        mean = float(np.mean(values))
        groups, place = np.unique(documents, return_inverse=True)
        if len(groups) < 2:
            return Mean(mean, float("nan"))
        sums = np.bincount(place, weights=np.asarray(values) - mean)
        return Mean(mean, float(np.sqrt((sums**2).sum() * len(groups) / (len(groups) - 1)) / len(values)))


def uncovered(kind: Any, model: Any, requests: Sequence[Request]) -> list[Ids]:
    """The canvases as they end, in the order of the requests."""
    rows: dict[int, Row] = {}
    state = kind.begin(model, requests)
    while state.live:
        rows |= {row.request: row for row in kind.step(model, state).rows}
    return [rows[i].tokens for i in range(len(requests))]
