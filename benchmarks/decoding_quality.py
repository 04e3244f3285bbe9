"""Quality beside speed: one point per setting of a sampler, and which setting is the fastest that keeps the quality.

The loss of quality is that of the judge's perplexity against the plain sampler of the same run, paired over openings. A low perplexity is
worth nothing where the entropy of a text's tokens falls with it, so both are told, and how often a gap is filled with what stood there.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.decoding_runs import NEW, OPENING, Runs, judged, uncovered
from benchmarks.measure import say
from unveil.config import MaskedSamplerConfig, NextTokenSamplerConfig
from unveil.evaluation.generative import unigram_entropy
from unveil.family import Request

WINDOW, TOGETHER = 32, 32
BATCHES = (1, 8)
KEPT = 0.01
"""Loss of perplexity under which quality counts as kept."""


@dataclass(frozen=True)
class Setting:
    """``plain``: the sampler whose quality the others of its kind are measured against."""

    name: str
    kind: str
    config: Any
    plain: bool = False


def masked(name: str, plain: bool = False, **settings: Any) -> Setting:
    config = MaskedSamplerConfig(length=NEW, temperature=0.0, end="forbid", window=WINDOW, **settings)
    return Setting(name, "masked", config, plain)


def block(name: str, plain: bool = False, **settings: Any) -> Setting:
    return Setting(name, "block", MaskedSamplerConfig(length=NEW, temperature=0.0, end="forbid", cache="block", **settings), plain)


def settings() -> list[Setting]:
    found = [masked("plain", True), masked("prefix", cache="prefix"), masked("dual", cache="dual")]
    for least in (0.9, 0.7, 0.5, 0.35):
        found.append(masked(f"dual, threshold {least:g}", cache="dual", commit="threshold", threshold=least))
    found += [masked(f"dual, factor {f:g}", cache="dual", commit="factor", factor=f) for f in (0.5, 1.0)]
    found.append(block("block", True))
    for least in (0.9, 0.7, 0.5, 0.35):
        found.append(block(f"block, threshold {least:g}", commit="threshold", threshold=least))
    found += [block(f"block, factor {f:g}", commit="factor", factor=f) for f in (0.5, 1.0)]
    return [*found, Setting("autoregressive", "autoregressive", NextTokenSamplerConfig(length=NEW, temperature=0.0), True)]


@dataclass(frozen=True)
class Point:
    name: str
    kind: str
    texts: int
    rate: dict[str, float]
    """New tokens per second by batch."""
    evaluations: float
    """Passes of the network per text."""
    tokens_per_forward: float
    """New tokens per pass."""
    read: float
    """Tokens that went through the network per new token."""
    perplexity: float
    entropy: float
    exact: float | None
    """Share of gaps filled with what stood there; None for a network that reads left to right."""
    loss: tuple[float, float, float] | None = None
    """Of perplexity against the plain sampler, with its 95 % interval; a share."""


def loss(nats_N: Any, plain_N: Any) -> tuple[float, float, float]:
    """Of perplexity, paired: exp of the mean difference in nats, less 1, and its 95 % interval."""
    apart_N = nats_N - plain_N
    middle, error = float(apart_N.mean()), 1.96 * float(apart_N.std(ddof=1)) / len(apart_N) ** 0.5
    return tuple(float(np.expm1(x)) for x in (middle, middle - error, middle + error))  # type: ignore[return-value]


def points(runs: Runs, chosen: Sequence[Setting], texts: int, rounds: int = 3) -> list[Point]:
    found, plain = [], {}
    for setting in chosen:
        nats_N, point = measured(runs, setting, texts, rounds)
        if setting.plain:
            plain[setting.kind] = nats_N
        lost = None if setting.plain or setting.kind not in plain else loss(nats_N, plain[setting.kind])
        found.append(Point(**point, loss=lost))
        say(told(found[-1]))
    return found


def measured(runs: Runs, setting: Setting, texts: int, rounds: int) -> tuple[Any, dict[str, Any]]:
    """Nats per new token of each text, and what makes a ``Point``."""
    run, vocabulary = runs.by_kind[setting.kind], runs.vocabulary
    rows = uncovered(run, setting.config, runs.requests(texts), TOGETHER)
    nats_N = judged(runs, [row.tokens for row in rows])
    new = sum(len(row.tokens) - OPENING for row in rows)
    reads_itself = setting.kind == "autoregressive"
    passes = new if reads_itself else sum(row.evaluations for row in rows)
    computed = new if reads_itself else sum(row.computed for row in rows)
    exact = None if reads_itself else filled(runs, setting, texts)
    entropy = unigram_entropy([torch.tensor(row.tokens[OPENING - 1 :]) for row in rows], vocabulary.end)
    rate = {str(batch): speed(runs, setting, batch, rounds) for batch in BATCHES}
    return nats_N, {
        "name": setting.name,
        "kind": setting.kind,
        "texts": texts,
        "rate": rate,
        "evaluations": passes / len(rows),
        "tokens_per_forward": new / passes,
        "read": computed / new,
        "perplexity": float(np.exp(nats_N.mean())),
        "entropy": entropy,
        "exact": exact,
    }


def filled(runs: Runs, setting: Setting, texts: int) -> float:
    asked = [Request(text, 0, seed) for seed, (text, _) in enumerate(runs.gaps[:texts])]
    rows = uncovered(runs.by_kind[setting.kind], setting.config, asked, TOGETHER)
    hidden = [request.tokens == runs.vocabulary.mask for request in asked]
    return float(np.mean([np.array_equal(row.tokens[at], truth) for row, at, (_, truth) in zip(rows, hidden, runs.gaps, strict=False)]))


def speed(runs: Runs, setting: Setting, batch: int, rounds: int) -> float:
    """New tokens per second, the median of so many rounds after one to warm up."""
    rates = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        rows = uncovered(runs.by_kind[setting.kind], setting.config, runs.requests(batch), batch)
        rates.append(sum(len(row.tokens) - OPENING for row in rows) / (time.perf_counter() - start))
    return statistics.median(rates[1:])


def told(p: Point) -> str:
    lost = "" if p.loss is None else f"  loss {p.loss[0]:+.1%} ({p.loss[1]:+.1%} to {p.loss[2]:+.1%})"
    exact = "" if p.exact is None else f"  exact {p.exact:.1%}"
    return (
        f"{p.name}: {p.rate['1']:,.0f} and {p.rate['8']:,.0f} tokens/s, {p.evaluations:.0f} passes, {p.tokens_per_forward:.2f} a pass, "
        f"perplexity {p.perplexity:.3f}, entropy {p.entropy:.3f}{exact}{lost}"
    )


def fastest(found: Sequence[Point], kind: str) -> Point | None:
    """That keeps the quality: of those whose interval of the loss lies under ``KEPT``."""
    kept = [p for p in found if p.kind == kind and (p.loss is None or p.loss[2] < KEPT)]
    return max(kept, key=lambda p: p.rate["8"], default=None)


def plot(found: Sequence[Point], file: Path) -> None:
    """Perplexity against speed at batch 8, with the interval of the loss."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for kind in dict.fromkeys(p.kind for p in found):
        mine = [p for p in found if p.kind == kind]
        plain = next((p.perplexity for p in mine if p.loss is None), 0.0)
        low = [0.0 if p.loss is None else (p.loss[0] - p.loss[1]) * plain for p in mine]
        high = [0.0 if p.loss is None else (p.loss[2] - p.loss[0]) * plain for p in mine]
        axes.errorbar([p.rate["8"] for p in mine], [p.perplexity for p in mine], [low, high], fmt="o", capsize=3, label=kind)
        for p in mine:
            axes.annotate(p.name, (p.rate["8"], p.perplexity), (4, 4), textcoords="offset points", fontsize=7)
    axes.set(xscale="log", xlabel="new tokens a second, batch 8", ylabel="judge's perplexity (bars: 95 % of the loss)")
    axes.legend()
    figure.savefig(file)
