"""How two ways of doing the same work are compared: in blocks that alternate, in one process, by medians."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from unveil.environment import environment

Block = Callable[[], float]
"""Does a block of work and answers its rate, units of work per second: more is better, whatever is measured."""

QUIET = 0.5
"""Load up to which a machine counts as idle."""


@dataclass(frozen=True)
class Row:
    """One line of a benchmark.

    ``ours`` and ``peer`` are medians of rates in ``unit``. ``ratio``, above 1 where we win, is the median of ours / peer over pairs
    of neighbouring blocks, so it need not be the quotient of the medians; ``spread`` is the interquartile range of those ratios.
    ``floor`` is the rate at the machine's physical limit, in ``unit``, or None where none can be computed.
    """

    name: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    unit: str
    spread: float
    floor: float | None


def compare(name: str, ours: Block, peer: Block, *, peer_name: str, unit: str, floor: float | None, warmup: int = 2, pairs: int = 7) -> Row:
    """Alternate the two. Whichever went second goes first the next time, so that a drift of the machine favours neither.

    Raises ValueError for fewer than five pairs: medians and quartiles of so few say little.
    """
    if pairs < 5:
        raise ValueError(f"medians of at least five are reported, got {pairs} pairs")
    for _ in range(warmup):
        ours()
        peer()
    rates: list[tuple[float, float]] = []
    for i in range(pairs):
        if i % 2:
            second = peer()
            rates.append((ours(), second))
        else:
            first = ours()
            rates.append((first, peer()))
    return summarise(name, rates, peer_name=peer_name, unit=unit, floor=floor)


def summarise(name: str, rates: Sequence[tuple[float, float]], *, peer_name: str, unit: str, floor: float | None) -> Row:
    """The row of paired rates (ours, peer). Ratios are taken within pairs: a disturbance that spans a pair cancels."""
    ours, peer, ratios = [a for a, _ in rates], [b for _, b in rates], [a / b for a, b in rates]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Row(name, statistics.median(ours), statistics.median(peer), peer_name, middle, unit, high - low, floor)


def rate(work: Callable[[], object], amount: float, repeats: int = 1) -> float:
    """Units per second of ``repeats`` calls of ``work``, each worth ``amount`` units."""
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return amount * repeats / (time.perf_counter() - start)


def fastest(candidates: Mapping[str, Callable[[], Block]], rounds: int = 4) -> str:
    """The name of the candidate with the highest rate in any round: disturbances only ever slow a block down.

    All are built, warmed up by two blocks each, take turns, and are dropped. Their rates are told on stderr.
    """
    blocks = {name: build() for name, build in candidates.items()}
    for block in blocks.values():
        block()
        block()
    best = dict.fromkeys(blocks, 0.0)
    for _ in range(rounds):
        for name, block in blocks.items():
            best[name] = max(best[name], block())
    torch.compiler.reset()  # the losers' graphs and guards go with them
    for name, value in best.items():
        say(f"  candidate: {value:10,.0f}  {name}")
    return max(best, key=best.__getitem__)


def say(line: str) -> None:
    """Progress and choices go to stderr: stdout belongs to the result."""
    print(line, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """What the figures are measured on. ``load`` is the mean number of runnable processes over the last minute: asked before a
    benchmark begins, that of the neighbours. Warns where it disturbs."""
    load = os.getloadavg()[0]
    if load > QUIET:
        say(f"load {load:.1f}: other processes compete for the cores, the figures will be disturbed")
    return {**environment(), "load": load}
