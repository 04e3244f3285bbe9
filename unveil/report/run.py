"""A run directory as a report sees it: files only, no network and no data."""

from __future__ import annotations

import json
import statistics
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from unveil.errors import UserError
from unveil.report.chart import short
from unveil.report.evidence import Evidence

LOSSES = ("nll", "bound", "loss")
"""The term that a page draws against tokens: the first that the run logged, else its first term."""
COLOURS = 6
"""Colours for runs in the style sheet; a page with more uses them again."""


@dataclass(frozen=True)
class RunReport:
    name: str
    index: int
    """Place on the page, which gives the colour."""
    recipe: Mapping[str, Any]
    recipe_text: str
    environment: Mapping[str, Any]
    log: Sequence[Mapping[str, float]]
    timing: Sequence[Mapping[str, float]]
    evidence: Evidence

    @staticmethod
    def read(directory: Path, index: int = 0, name: str = "") -> RunReport:
        """Raises UserError where the directory is none of a run, or a file of it is damaged."""
        recipe = directory / "recipe.toml"
        if not recipe.is_file():
            raise UserError(str(directory), "is no run directory, it holds no recipe.toml", "give the directory that `unveil train` made")
        text = recipe.read_text(encoding="utf-8")
        try:
            tree = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UserError(str(recipe), f"is not TOML ({error})", "restore the file from the run's copy") from None
        environment = directory / "environment.json"
        return RunReport(
            name or directory.resolve().name,
            index % COLOURS,
            tree,
            text,
            _json(environment, environment.read_text(encoding="utf-8")) if environment.exists() else {},
            list(_rows(directory / "metrics.jsonl")),
            list(_rows(directory / "timing.jsonl")),
            Evidence.load(directory),
        )

    @property
    def unit(self) -> str:
        """What the trainer counted."""
        return {"gaussian": "images", "streams": "chunks"}.get(self.recipe.get("family", ""), "tokens")

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Tokens (or images) seen and the value, for the rows of the log that have it."""
        rows = [row for row in self.log if key in row]
        return [float(row["tokens"]) for row in rows], [float(row[key]) for row in rows]

    @property
    def loss(self) -> tuple[list[float], list[float]]:
        """Tokens (or images) seen and the loss that is comparable between runs."""
        logged = dict.fromkeys(key for row in self.log for key in row if key.startswith("train/"))
        wanted = [f"train/{name}" for name in LOSSES if f"train/{name}" in logged] or list(logged)
        return self.series(wanted[0]) if wanted else ([], [])

    @cached_property
    def costs(self) -> dict[str, tuple[str, str]]:
        """Name of a cost, what it means, its value in words."""
        known, unit = self.evidence.costs, self.unit
        one = unit.removesuffix("s")
        rows: dict[str, tuple[str, str]] = {}
        if "parameters" in known:
            rows["parameters"] = ("weights of the network, embedding and head included", short(known["parameters"]))
        if f"flops_per_{one}" in known:
            rows[f"FLOPs per {one}"] = ("forward and backward, in training", short(known[f"flops_per_{one}"]))
        if self.log:
            rows[f"{unit} trained on"] = ("every pass over the data counted", short(self.log[-1]["tokens"]))
        if self.timing:
            rows["training time"] = ("of the training steps, the compiler's warm-up included", f"{self.timing[-1]['seconds'] / 60:.1f} min")
            rows[f"{unit} per second"] = ("median over training", short(statistics.median(row["tokens_per_second"] for row in self.timing)))
            peak = f"{short(known['peak_flops'])}FLOP/s, " if "peak_flops" in known else ""
            share = statistics.median(row["utilisation"] for row in self.timing)
            rows["utilisation"] = (f"share of {peak}the best matrix product measured here", f"{share:.0%}")
        if "memory_bytes" in known:
            rows["peak memory"] = ("of the process, from its start", f"{known['memory_bytes'] / 2**30:.2f} GiB")
        return rows

    @cached_property
    def versions(self) -> list[tuple[str, str]]:
        """The environment, nested keys joined by dots."""
        return list(_flat(self.environment, ""))

    @property
    def best_baseline(self) -> tuple[str, float] | None:
        """The primed baseline with the fewest bits."""
        scores = self.evidence.baselines
        return min(((score.name, score.primed) for score in scores), key=lambda pair: pair[1], default=None)


def _flat(value: Any, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _rows(path: Path) -> Iterator[Mapping[str, float]]:
    """JSON lines. A last line without its end is what a killed run leaves, and is passed over."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n") and line.strip():
            yield _json(path, line)


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(str(path), f"is damaged ({error})", "restore the file, or train again") from None
