"""Power laws from a budget C (FLOPs) to the model scale, the tokens, the batch and the learning rate that are best for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unveil.errors import UserError

NEAR_OPTIMAL = 0.0025
"""Losses this share above the least one count as near-optimal (DeepSeek LLM, section 3.1)."""


@dataclass(frozen=True)
class PowerLaw:
    """``factor * C^exponent``, fitted on budgets from ``low`` to ``high``."""

    factor: float
    exponent: float
    low: float
    high: float

    def __call__(self, compute: float) -> float:
        return float(self.factor * compute**self.exponent)

    def beyond(self, compute: float) -> float:
        """How many times the budget lies outside the fitted range; 1 within it."""
        return max(self.low / compute, compute / self.high, 1.0)


@dataclass(frozen=True)
class Law:
    """All that a budget decides."""

    name: str
    source: str
    scale: PowerLaw
    """M_opt, FLOPs per token."""
    tokens: PowerLaw
    """D_opt."""
    lr: PowerLaw
    batch: PowerLaw
    """In tokens."""


DEEPSEEK = Law(
    "deepseek",
    "DeepSeek LLM (2024), equations 1 and 4",
    PowerLaw(0.1715, 0.5243, 1e17, 3e20),
    PowerLaw(5.8316, 0.4757, 1e17, 3e20),
    PowerLaw(0.3118, -0.1250, 1e17, 2e19),
    PowerLaw(0.2920, 0.3271, 1e17, 2e19),
)

CHINCHILLA = replace(
    DEEPSEEK,
    name="chinchilla",
    source="Hoffmann et al. (2022): 20 tokens per parameter, C = 6 N D; learning rate and batch by DeepSeek LLM",
    scale=PowerLaw(6 / 120**0.5, 0.5, 6e18, 3e21),
    tokens=PowerLaw(20 / 120**0.5, 0.5, 6e18, 3e21),
)

LAWS = {law.name: law for law in (DEEPSEEK, CHINCHILLA)}
PARTS = ("scale", "tokens", "lr", "batch")


def law(names: str) -> Law:
    """A law by name, or from files that ``unveil scaling fit`` wrote, with commas between them; DeepSeek's where they say nothing.

    Raises UserError.
    """
    found = DEEPSEEK
    for name in names.split(","):
        found = LAWS[name] if name in LAWS else _read(Path(name), found)
    return found


def dumps(source: str, parts: Mapping[str, PowerLaw]) -> str:
    """JSON that ``law`` reads, of those of ``PARTS`` that were fitted."""
    return json.dumps({"source": source, **{key: asdict(value) for key, value in parts.items()}}, indent=2) + "\n"


def _read(path: Path, other: Law) -> Law:
    if not path.is_file():
        raise UserError("--law", f"no law {str(path)!r}", f"give {', '.join(LAWS)} or the law.json of `unveil scaling fit`")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        parts = {key: PowerLaw(**tree[key]) for key in PARTS if key in tree}
        return replace(other, name=str(path), source=str(tree["source"]), **parts)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("--law", f"{path} is damaged ({error})", "write it anew with `unveil scaling fit`") from None


def fit_power_law(compute: Sequence[float], values: Sequence[float]) -> PowerLaw:
    """Least squares in logarithms. Raises ValueError for fewer than two budgets."""
    if len(set(compute)) < 2:
        raise ValueError("a power law wants two budgets")
    exponent, intercept = np.polyfit(np.log(compute), np.log(values), 1)
    return PowerLaw(float(np.exp(intercept)), float(exponent), min(compute), max(compute))


def near_optimal(losses: Sequence[float], share: float = NEAR_OPTIMAL) -> NDArray[np.bool_]:
    """Which losses are at most ``share`` above the least."""
    values = np.asarray(losses, dtype=np.float64)
    return values <= (1 + share) * values.min()
