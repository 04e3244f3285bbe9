"""Verbs that make a model: train, demo, and what belongs before it: data, plan."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import subcommand

from unveil.errors import UserError
from unveil.verbs.shared import Overrides, WithRecipe, memory_answered, no_settings, no_streams, table


@dataclass(frozen=True)
class Train(WithRecipe):
    """Train a recipe into a run directory. Any setting can be changed: --training.steps 500 --model.width 128."""

    run_dir: str = ""
    """Where the run goes; runs/NAME of the recipe if not given."""
    resume: bool = False
    """Go on with the run that is there."""
    seed: int | None = None
    """In place of the recipe's seed."""

    def run(self, overrides: Overrides) -> None:
        from unveil.run import train

        seed = [] if self.seed is None else [("seed", str(self.seed))]
        recipe = self.chosen([*overrides, *seed])
        directory = Path(self.run_dir or (self.recipe if Path(self.recipe).is_dir() else f"runs/{Path(self.recipe).stem}"))
        with memory_answered(recipe):
            train(recipe, directory, self.resume)
        if os.environ.get("RANK", "0") == "0":  # torchrun starts this on every rank
            look = "stream {}" if recipe.family == "streams" else "sample {} --watch"
            print(f"\nThe run is in {directory}. Next:\n  unveil {look.format(directory)}\n  unveil report {directory}")


@dataclass(frozen=True)
class Demo:
    """Train an autoregressive and a masked-diffusion model on Python's own library, and one of digits; see them uncover on one page."""

    run_dir: str = "runs/demo"
    """Where it goes; what is there is gone on with."""
    minutes: float = 10.5
    """For everything: the networks and the training follow from the machine's speed."""

    def run(self, overrides: Overrides) -> None:
        no_settings(overrides, "demo")
        from unveil.demo import demo

        demo(Path(self.run_dir), self.minutes)


@dataclass(frozen=True)
class Prepare(WithRecipe):
    """Make the tokenizer and the token shards, or the pixels, of a recipe; interrupted and started again, it goes on."""

    workers: int = 0
    """Processes; 0 takes one per core."""

    def run(self, overrides: Overrides) -> None:
        from unveil.config import ImageDataConfig
        from unveil.corpora import prepared, prepared_images

        config = self.chosen(overrides).data
        no_streams(config)
        if isinstance(config, ImageDataConfig):
            found = prepared_images(config)
            print(f"{found.folder}: " + ", ".join(f"{len(index):,} {part}" for part, index in found.parts.items()) + " images")
            return
        data = prepared(config, self.workers)
        tokens = {split: sum(int(store.lengths.sum()) for store in stores) for split, stores in data.splits.items()}
        print(f"{data.folder}: " + ", ".join(f"{count:,} {split}" for split, count in tokens.items() if count) + " tokens")


@dataclass(frozen=True)
class Inspect(WithRecipe):
    """Show a recipe's documents, their lengths, and how well they pack; or its images, their shape and classes."""

    def run(self, overrides: Overrides) -> None:
        from unveil.config import ImageDataConfig
        from unveil.corpora import described, described_images, prepared, prepared_images

        config = self.chosen(overrides).data
        no_streams(config)
        if isinstance(config, ImageDataConfig):
            table(described_images(prepared_images(config)))
            return
        table(described(prepared(config), config))


@dataclass(frozen=True)
class Data:
    """Corpora and images: prepare, inspect."""

    verb: Annotated[Prepare, subcommand("prepare")] | Annotated[Inspect, subcommand("inspect")]

    def run(self, overrides: Overrides) -> None:
        self.verb.run(overrides)


@dataclass(frozen=True)
class Plan(WithRecipe):
    """What a recipe will cost here: parameters, FLOPs, memory by part, time; and what to change where it does not fit."""

    memory: str = ""
    """The limit, such as 24GiB; this machine's memory if not given."""

    def run(self, overrides: Overrides) -> None:
        from unveil.plan import advice, described, machine_memory, parse_bytes, plan, size

        limit = parse_bytes(self.memory) if self.memory else machine_memory()
        costs = plan(self.chosen(overrides))
        table(described(costs, limit))
        if change := advice(costs, limit):
            raise UserError("--memory", f"{size(costs.total)} do not fit into {size(limit)}", change)
