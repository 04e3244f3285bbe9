"""Verbs that judge: evaluate, report, doctor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from unveil.errors import UserError
from unveil.verbs.shared import OfModel, Overrides, columns, no_settings, numbers, sampler_settings, table


@dataclass(frozen=True)
class Evaluate(OfModel):
    """Score a run: held-out text in bits per byte, images by their distance to real ones, streams by mean average precision."""

    split: Literal["validation", "test"] = "validation"
    tokens: int | None = None
    """How many tokens (or images) at the most; 0 takes all. The recipe's number if not given."""
    draws: int | None = None
    """Monte-Carlo draws per sequence or image."""
    nfe: str | None = None
    """Of images: network evaluations per image to compare, as 5,10,20,50."""
    solvers: str | None = None
    """Of images: solvers to compare, as heun,dpmpp-2m; the run's own if not given."""
    seeds: int = 1
    """Of images: disjoint sets of samples to take means and standard errors over."""
    straightness: bool = False
    """Of images: how straight the paths from noise to image are; 0 where one step is exact."""
    samples: int | None = None
    """Of images: how many to generate. The recipe's number if not given."""
    inception: str = ""
    """Of images: file of Inception's weights; without it a small classifier trained on the same images gives the features."""
    data: str = ""
    """Of images: real ones to compare with in the place of those of training: a folder, IDX files, Parquet or hub:ID."""
    bits: bool = False
    """Of images: bits per dimension of held-out images, beside the distances."""
    tasks: str = ""
    """Of text: task files of lm-eval over local data, as a.yaml,b.yaml. How to sample: --sampler.temperature 0."""
    reversal: str = ""
    """Of text: documents like those of training, of which the line after and the line before are asked for (LLaDA's reversal task)."""
    limit: int | None = None
    """Of tasks: documents of each at the most; of the reversal task: pairs of lines of each kind."""
    chat: bool = False
    """Of tasks: put prompts into the model's chat template."""
    batch: int = 16
    """Of tasks: texts written at a time."""
    seed: int = 0
    """Of tasks and the reversal task: of what is chosen, of the masks of likelihoods, and of the first text."""
    json: bool = False
    """Print JSON."""

    def run(self, overrides: Overrides) -> None:
        import json
        from dataclasses import asdict

        from unveil.families import EXACT
        from unveil.image_run import ImageRun
        from unveil.stream_run import StreamRun

        if self.tasks and self.reversal:
            raise UserError("--reversal", "given with --tasks", "ask for one of them")
        if self.tasks or self.reversal:
            self._asked(overrides)
            return
        no_settings(overrides, "evaluate")
        run = self.loaded()
        if isinstance(run, ImageRun):
            self._images(run)
            return
        if isinstance(run, StreamRun):
            self._streams(run)
            return
        if self.data:
            raise UserError("--data", "is for images, this is a run of text", "leave it out")
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

    def _asked(self, overrides: Overrides) -> None:
        from unveil.text_run import TextRun

        run = self.loaded()
        if not isinstance(run, TextRun):
            raise UserError("--tasks" if self.tasks else "--reversal", "is for text, this is another kind of run", "leave it out")
        run = run.with_sampler(**sampler_settings(overrides))
        if self.tasks:
            self._tasks(run)
        else:
            self._reversal(run)

    def _tasks(self, run: Any) -> None:
        import json

        from unveil import tasks

        files = [Path(name) for name in self.tasks.split(",")]
        found = tasks.evaluate(run, files, self.limit, self.draws, self.chat, self.batch, self.seed)
        place = tasks.record(run, found)
        if self.json:
            print(json.dumps(found, default=str))
            return
        table([*tasks.lines(found), ("recorded in", str(place))])

    def _reversal(self, run: Any) -> None:
        import json
        from dataclasses import asdict

        from unveil import reversal

        found = reversal.evaluate(run, self.reversal, self.limit, self.draws, self.seed)
        place = reversal.record(run, found)
        if self.json:
            print(json.dumps(asdict(found), default=str))
            return
        columns([reversal.COLUMNS, *reversal.rows(found)])
        table([*((f"left out: {count:,}", reason) for reason, count in found.left_out.items()), ("recorded in", str(place))])

    def _streams(self, run: Any) -> None:
        import json
        from dataclasses import asdict

        from unveil.stream_run import record

        found = run.evaluate(self.split)
        record(run, found)
        if self.json:
            print(json.dumps({"split": self.split, **asdict(found)}))
            return
        table(found.lines())

    def _images(self, run: Any) -> None:
        import json
        from dataclasses import asdict, replace

        from unveil import recipe as recipes
        from unveil.quality import measured, record

        if self.seeds < 1:
            raise UserError("--seeds", f"got {self.seeds}", "give 1 or more")
        if self.data:
            run = replace(run, recipe=recipes.with_data(run.recipe, self.data))
        counts = numbers("--nfe", self.nfe) if self.nfe is not None else []
        solvers = self.solvers.split(",") if self.solvers else []
        found = measured(
            run, counts, solvers, self.samples, self.inception, self.tokens, self.draws if self.bits else 0, self.seeds, self.straightness
        )
        if not self.data:  # the page speaks of the run's own images
            record(run, found)
        if self.json:
            print(json.dumps(asdict(found)))
            return
        table(found.lines())


@dataclass(frozen=True)
class Report:
    """One self-contained HTML page for a run, or for several side by side."""

    runs: Positional[tuple[str, ...]]
    """Run directories."""
    out: str = ""
    """The page; report.html in the first run's directory if not given."""
    prompt: str | None = None
    """Of text: let every run go on from this, and begin the page with how each did, side by side. How: --sampler.length 64."""
    seed: int = 0
    """Of these texts."""

    def run(self, overrides: Overrides) -> None:
        from unveil.report.page import write
        from unveil.report.run import RunReport

        if self.prompt is None:
            no_settings(overrides, "report")
        if not self.runs:
            raise UserError("runs", "none given", "name at least one run directory")
        out = Path(self.out or Path(self.runs[0]) / "report.html")
        runs = [RunReport.read(Path(run), i) for i, run in enumerate(self.runs)]
        if self.prompt is not None:
            from unveil.abreast import written

            runs = written(runs, [Path(run) for run in self.runs], self.prompt, self.seed, sampler_settings(overrides))
        write(runs, out)
        print(out.resolve().as_uri())


@dataclass(frozen=True)
class Doctor:
    """Versions, devices and measured peaks; for a run: its weights, shapes, and bits per byte on a sample."""

    path: Positional[str] = ""
    """A run directory or a folder with an exported model."""

    def run(self, overrides: Overrides) -> None:
        no_settings(overrides, "doctor")
        from unveil import doctor

        table(doctor.checkpoint(self.path) if self.path else doctor.machine())
