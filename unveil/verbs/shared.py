"""What verbs have in common: their recipe or run, and how arguments are read."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tyro.conf import Positional

from unveil.errors import UserError

Overrides = Sequence[tuple[str, str]]
"""Settings of a recipe from the command line: dotted key and text."""


@dataclass(frozen=True)
class WithRecipe:
    recipe: Positional[str]
    """A recipe file, the name of a packaged recipe, or a run directory."""
    data: str = ""
    """Your own data in place of the recipe's: text (a file, a folder, JSONL), images (a folder, IDX files), Parquet, or hub:ID."""

    def chosen(self, overrides: Overrides) -> Any:
        from unveil import recipe as recipes

        recipe = recipes.load(self.recipe)
        return recipes.with_overrides(recipes.with_data(recipe, self.data) if self.data else recipe, overrides)


@dataclass(frozen=True)
class OfRun:
    path: Positional[str]
    """A run directory, or a folder with an exported model: ours, or a pipeline of diffusers."""


@dataclass(frozen=True)
class OfModel(OfRun):
    weights: Literal["full", "int8", "nf4"] | None = None
    """Of text: hold the matrices of the blocks in 8 bits, or in 4-bit normal floats. As the model was trained if not given."""
    adapter: str = ""
    """Of text: the run directory of an adapter, or a folder of peft's, to put on the model."""

    def loaded(self) -> Any:
        from unveil.run import load

        return load(self.path, self.weights, self.adapter or None)


def sampler_settings(overrides: Overrides) -> dict[str, str]:
    for key, _ in overrides:
        if not key.startswith("sampler."):
            raise UserError(f"--{key}", "only sampler settings can change once a model is trained", "write --sampler.NAME VALUE")
    return {key.removeprefix("sampler.").replace("-", "_"): value for key, value in overrides}


def no_settings(overrides: Overrides, verb: str) -> None:
    if overrides:
        raise UserError(f"--{overrides[0][0]}", f"`unveil {verb}` takes no settings of a recipe", "leave it out")


def numbers(field: str, text: str, count: int | None = None) -> list[int]:
    """``3,8`` to whole numbers."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts) or (count is not None and len(parts) != count):
        wanted = "whole numbers" if count is None else f"{count} whole numbers"
        raise UserError(field, f"got {text!r}", f"give {wanted} with commas between them")
    return [int(part) for part in parts]


@contextlib.contextmanager
def memory_answered(recipe: Any) -> Iterator[None]:
    """Turn a failed allocation into the line that ``unveil plan`` would give."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search(r"out of memory|can't allocate memory|not enough memory", str(error)):
            raise
        from unveil.plan import out_of_memory

        raise out_of_memory(recipe) from None


def table(rows: Iterable[tuple[str, str]]) -> None:
    for name, value in rows:
        print(f"{name:<22} {value}", flush=True)


def columns(rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows of cells under each other, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        print("  ".join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]), flush=True)


def no_streams(config: Any) -> None:
    """Raises UserError for the data section of a recipe on streams, which need no preparation."""
    from unveil.config import StreamDataConfig

    if isinstance(config, StreamDataConfig):
        raise UserError("recipe", "is of the family 'streams', whose features need no preparation", "train it")
