"""What a person can ask for, one dataclass per verb: its fields are the arguments, its docstring the help, ``run`` does it.

Whatever is heavy is imported by the verb that needs it.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, subcommand

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
        with _memory_answered(recipe):
            train(recipe, directory, self.resume)
        if os.environ.get("RANK", "0") == "0":  # torchrun starts this on every rank
            print(f"\nThe run is in {directory}. Next:\n  unveil sample {directory} --watch\n  unveil report {directory}")


@dataclass(frozen=True)
class OfRun:
    path: Positional[str]
    """A run directory, or a folder with an exported model."""


@dataclass(frozen=True)
class Sample(OfRun):
    """Uncover text or images. How: --sampler.steps 32 --sampler.temperature 0.7, or --sampler.kind heun --sampler.steps 18."""

    prompt: str | None = None
    """What to go on from; nothing begins a document."""
    infill: str | None = None
    """A text with gaps, written <mask>, or <mask:12> for 12 tokens."""
    num: int | None = None
    """Number of texts (1 if not given) or of images (16)."""
    seed: int = 0
    """Of the first; the others follow."""
    label: str | None = None
    """Class of the images."""
    between: str | None = None
    """Two seeds, as 3,8: the images between theirs."""
    inpaint: str | None = None
    """An image file, or the number of a held-out image, of which a part is to be made anew."""
    hole: str | None = None
    """That part, in pixels: left,top,right,bottom."""
    invert: str | None = None
    """An image file, or the number of a held-out image: to its noise and back."""
    out: str = ""
    """PNG file for the images; samples.png in the run's directory if not given."""
    watch: bool = False
    """Show every step."""

    def run(self, overrides: Overrides) -> None:
        settings = _sampler(overrides)
        from unveil.image_run import ImageRun
        from unveil.run import load
        from unveil.watch import printable, watch

        run = load(self.path).with_sampler(**settings)
        if isinstance(run, ImageRun):
            with _memory_answered(None):
                self._images(run)
            return
        for name in ("label", "between", "inpaint", "hole", "invert"):
            if getattr(self, name) is not None:
                raise UserError(f"--{name}", "is for images, this is a run of text", "leave it out")
        sampler = run.recipe.sampler
        with _memory_answered(None):
            num = 1 if self.num is None else self.num
            snapshots = run.sample(self.prompt, infill=self.infill, num=num, seed=self.seed)
            if self.watch:
                watch(snapshots, getattr(sampler, "steps", 0) or sampler.length)
                return
            *_, last = snapshots
        text = "\n\n--------\n\n".join([last.text] if last.single else last.text)
        print(printable(text) if sys.stdout.isatty() else text)

    def _images(self, run: Any) -> None:
        from unveil.watch import watch_images

        if self.prompt is not None or self.infill is not None:
            raise UserError("--prompt" if self.infill is None else "--infill", "is for text, this is a run of images", "leave it out")
        if sum(value is not None for value in (self.between, self.inpaint, self.invert)) > 1:
            raise UserError("--between", "given with --inpaint or --invert", "ask for one of them")
        num = 16 if self.num is None else self.num
        if self.between is not None:
            snapshots = run.interpolate(*_numbers("--between", self.between, 2), num=8 if self.num is None else num, label=self.label)
        elif self.inpaint is not None:
            if self.hole is None:
                raise UserError("--inpaint", "given without --hole", "say which part to make anew: --hole left,top,right,bottom")
            hole = _numbers("--hole", self.hole, 4)
            snapshots = run.inpaint(run.image(self.inpaint), hole, num=num, label=self.label, seed=self.seed)
        elif self.invert is not None:
            snapshots = run.reconstruct(run.image(self.invert), label=self.label)
        else:
            snapshots = run.sample(num, label=self.label, seed=self.seed)
        if self.watch:
            last = watch_images(snapshots)
        else:
            *_, last = snapshots
        out = Path(self.out or Path(self.path) / "samples.png")
        out.write_bytes(last.png(8 if self.between is not None else 0))
        print(out.resolve().as_uri())


@dataclass(frozen=True)
class Chat(OfRun):
    """Talk with a model, in its own chat template where it has one. An empty line ends."""

    seed: int = 0

    def run(self, overrides: Overrides) -> None:
        settings = _sampler(overrides)
        from unveil.chat import talk
        from unveil.run import load
        from unveil.text_run import TextRun

        run = load(self.path).with_sampler(**settings)
        if not isinstance(run, TextRun):
            raise UserError(self.path, "is a run of images, which do not talk", "give a run of text")
        talk(run, self.seed)


@dataclass(frozen=True)
class Evaluate(OfRun):
    """Score a run: held-out text in bits per byte; images by their distance to real ones, at any number of network evaluations."""

    split: Literal["validation", "test"] = "validation"
    tokens: int | None = None
    """How many tokens (or images) at the most; 0 takes all. The recipe's number if not given."""
    draws: int | None = None
    """Monte-Carlo draws per sequence or image."""
    nfe: str | None = None
    """Of images: network evaluations per image to compare, as 5,10,20,50."""
    solvers: str | None = None
    """Of images: solvers to compare, as heun,dpmpp-2m; the run's own if not given."""
    samples: int | None = None
    """Of images: how many to generate. The recipe's number if not given."""
    inception: str = ""
    """Of images: file of Inception's weights; without it a small classifier trained on the same images gives the features."""
    bits: bool = False
    """Of images: bits per dimension of held-out images, beside the distances."""
    json: bool = False
    """Print JSON."""

    def run(self, overrides: Overrides) -> None:
        import json
        from dataclasses import asdict

        from unveil.families import EXACT
        from unveil.image_run import ImageRun
        from unveil.run import load

        _none(overrides, "evaluate")
        run = load(self.path)
        if isinstance(run, ImageRun):
            self._images(run)
            return
        bits = run.evaluate(self.split, self.tokens, self.draws)
        exact = run.recipe.family in EXACT
        if self.json:
            print(json.dumps({"split": self.split, "bound": not exact, **asdict(bits)}))
            return
        sign = "" if exact else "at most "
        print(f"{self.split}: {sign}{bits.content:.4f} ± {bits.stderr:.4f} bits per byte ({bits.nats_per_token:.4f} nats per token)")
        print(
            f"{bits.tokens:,} tokens, {bits.bytes:,} bytes in {bits.sequences:,} sequences; a document's end costs {bits.ending:.2f} bits"
        )

    def _images(self, run: Any) -> None:
        import json
        from dataclasses import asdict

        from unveil.quality import measured, record

        counts = _numbers("--nfe", self.nfe) if self.nfe is not None else []
        solvers = self.solvers.split(",") if self.solvers else []
        found = measured(run, counts, solvers, self.samples, self.inception, self.tokens, self.draws if self.bits else 0)
        record(run, found)
        if self.json:
            print(json.dumps(asdict(found)))
            return
        _table(found.lines())


@dataclass(frozen=True)
class Report:
    """One self-contained HTML page for a run, or for several side by side."""

    runs: Positional[tuple[str, ...]]
    """Run directories."""
    out: str = ""
    """The page; report.html in the first run's directory if not given."""

    def run(self, overrides: Overrides) -> None:
        _none(overrides, "report")
        from unveil.report.page import write
        from unveil.report.run import RunReport

        if not self.runs:
            raise UserError("runs", "none given", "name at least one run directory")
        out = Path(self.out or Path(self.runs[0]) / "report.html")
        runs = [RunReport.read(Path(run), i) for i, run in enumerate(self.runs)]
        write(runs, out)
        print(out.resolve().as_uri())


@dataclass(frozen=True)
class Prepare(WithRecipe):
    """Make the tokenizer and the token shards, or the pixels, of a recipe; interrupted and started again, it goes on."""

    workers: int = 0
    """Processes; 0 takes one per core."""

    def run(self, overrides: Overrides) -> None:
        from unveil.config import ImageDataConfig
        from unveil.corpora import prepared, prepared_images

        config = self.chosen(overrides).data
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
        if isinstance(config, ImageDataConfig):
            _table(described_images(prepared_images(config)))
            return
        _table(described(prepared(config), config))


@dataclass(frozen=True)
class Data:
    """Corpora and images: prepare, inspect."""

    verb: Annotated[Prepare, subcommand("prepare")] | Annotated[Inspect, subcommand("inspect")]

    def run(self, overrides: Overrides) -> None:
        self.verb.run(overrides)


@dataclass(frozen=True)
class Demo:
    """Train an autoregressive and a masked-diffusion model on Python's own library, and see both uncover text on one page."""

    run_dir: str = "runs/demo"
    """Where it goes; what is there is gone on with."""
    minutes: float = 7.5
    """For everything: the network and the training follow from the machine's speed."""

    def run(self, overrides: Overrides) -> None:
        _none(overrides, "demo")
        from unveil.demo import demo

        demo(Path(self.run_dir), self.minutes)


@dataclass(frozen=True)
class Plan(WithRecipe):
    """What a recipe will cost here: parameters, FLOPs, memory by part, time; and what to change where it does not fit."""

    memory: str = ""
    """The limit, such as 24GiB; this machine's memory if not given."""

    def run(self, overrides: Overrides) -> None:
        from unveil.plan import advice, described, machine_memory, parse_bytes, plan, size

        limit = parse_bytes(self.memory) if self.memory else machine_memory()
        costs = plan(self.chosen(overrides))
        _table(described(costs, limit))
        if change := advice(costs, limit):
            raise UserError("--memory", f"{size(costs.total)} do not fit into {size(limit)}", change)


@dataclass(frozen=True)
class Doctor:
    """Versions, devices and measured peaks; for a run: its weights, shapes, and bits per byte on a sample."""

    path: Positional[str] = ""
    """A run directory or a folder with an exported model."""

    def run(self, overrides: Overrides) -> None:
        _none(overrides, "doctor")
        from unveil import doctor

        _table(doctor.checkpoint(self.path) if self.path else doctor.machine())


VERBS = (Train, Sample, Chat, Evaluate, Report, Data, Demo, Plan, Doctor)


def _sampler(overrides: Overrides) -> dict[str, str]:
    for key, _ in overrides:
        if not key.startswith("sampler."):
            raise UserError(f"--{key}", "only sampler settings can change once a model is trained", "write --sampler.NAME VALUE")
    return {key.removeprefix("sampler.").replace("-", "_"): value for key, value in overrides}


def _none(overrides: Overrides, verb: str) -> None:
    if overrides:
        raise UserError(f"--{overrides[0][0]}", f"`unveil {verb}` takes no settings of a recipe", "leave it out")


def _numbers(field: str, text: str, count: int | None = None) -> list[int]:
    """``3,8`` to whole numbers."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts) or (count is not None and len(parts) != count):
        wanted = "whole numbers" if count is None else f"{count} whole numbers"
        raise UserError(field, f"got {text!r}", f"give {wanted} with commas between them")
    return [int(part) for part in parts]


@contextlib.contextmanager
def _memory_answered(recipe: Any) -> Iterator[None]:
    """Turn a failed allocation into the line that ``unveil plan`` would give."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search(r"out of memory|can't allocate memory|not enough memory", str(error)):
            raise
        from unveil.plan import out_of_memory

        raise out_of_memory(recipe) from None


def _table(rows: Iterable[tuple[str, str]]) -> None:
    for name, value in rows:
        print(f"{name:<22} {value}", flush=True)
