"""The runs of a sweep as points: M, D, learning rate, batch and the held-out loss."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unveil import recipe as recipes
from unveil.config import TextRecipe
from unveil.errors import UserError
from unveil.scaling.cost import model_scale
from unveil.scaling.sweep import FILE, finished

LOSS = "eval/bits_per_byte"
"""Counts the bytes of the source, so that tokenizers and paradigms compare. Of a diffusion model it is an upper bound."""
SAME_BUDGET = 1.25
"""Runs whose C differ by less, one after another, had the same budget: packs are never quite full."""
FREE = ("data.packing_length", "data.packing", "data.workers", "data.cache")
"""Settings of ``data`` that do not change what is learned from."""


@dataclass(frozen=True)
class Point:
    """A finished run."""

    name: str
    scale: float
    """M."""
    tokens: float
    """D, as trained on."""
    lr: float
    batch: int
    loss: float
    """Held-out bits per byte at the end."""

    @property
    def compute(self) -> float:
        """C = M D."""
        return self.scale * self.tokens


@dataclass(frozen=True)
class Sweep:
    name: str
    family: str
    points: Sequence[Point]
    unfinished: Sequence[str]

    @property
    def budgets(self) -> list[list[Point]]:
        """Points by budget, the smallest first."""
        found: list[list[Point]] = []
        for point in sorted(self.points, key=lambda p: p.compute):
            if found and point.compute <= SAME_BUDGET * found[-1][-1].compute:
                found[-1].append(point)
            else:
                found.append([point])
        return found

    @property
    def varies_model(self) -> bool:
        """Whether networks of different sizes share a budget; else learning rates and batches do."""
        return any(len({p.scale for p in points}) > 1 for points in self.budgets)


def read(directory: Path) -> Sweep:
    """All runs in a directory. Raises UserError where it holds none that is finished, or runs that do not belong into one fit."""
    if not directory.is_dir():
        raise UserError(str(directory), "no such directory", "give the --out of `unveil scaling sweep`")
    planned = json.loads((directory / FILE).read_text(encoding="utf-8"))["runs"] if (directory / FILE).is_file() else []
    there = sorted(path.parent.name for path in directory.glob("*/recipe.toml"))
    names = list(dict.fromkeys([*planned, *there]))
    if not names:
        raise UserError(str(directory), "holds no runs", "give the --out of `unveil scaling sweep`")
    done = [name for name in names if finished(directory, name)]
    unfinished = [name for name in names if name not in done]
    if not done:
        shown = ", ".join(names[:3])
        raise UserError(str(directory), f"none of its {len(names)} runs is finished: {shown}", "run the sweep again, it goes on")
    first: TextRecipe = recipes.load(str(directory / done[0]))
    points = []
    for name in done:
        recipe = recipes.load(str(directory / name))
        for key, ours, theirs in recipes.differences(recipe, first):
            if (key.startswith("data.") and key not in FREE) or key == "family":
                remedy = "fit them apart, each from its own directory"
                raise UserError(key, f"{ours!r} in {directory / name}, {theirs!r} in {done[0]}", remedy)
        points.append(_point(directory / name, recipe))
    return Sweep(directory.resolve().name, first.family, points, unfinished)


def _point(path: Path, recipe: TextRecipe) -> Point:
    file = path / "metrics.jsonl"
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        last = next(row for row in reversed(rows) if LOSS in row)
        loss, tokens = float(last[LOSS]), float(last["tokens"])
    except StopIteration:
        raise UserError(str(file), f"has no {LOSS}", "sweep a recipe with data.validation above 0") from None
    except (OSError, ValueError, KeyError) as error:
        raise UserError(str(file), f"is missing or damaged ({error})", "remove that run and sweep again") from None
    batch = recipe.training.packs * recipe.data.packing_length
    return Point(path.name, model_scale(recipe), tokens, recipe.optimizer.lr, batch, loss)
