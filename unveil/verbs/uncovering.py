"""Verbs that uncover: sample, chat."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unveil.errors import UserError
from unveil.verbs.shared import OfModel, Overrides, memory_answered, numbers, sampler_settings


@dataclass(frozen=True)
class Sample(OfModel):
    """Uncover text or images. How: --sampler.steps 32 --sampler.temperature 0.7, or --sampler.kind heun --sampler.steps 18."""

    prompt: str | None = None
    """What to go on from; nothing begins a document. Of images what they show, in words."""
    infill: str | None = None
    """A text with gaps, written <mask>, or <mask:12> for 12 tokens."""
    num: int | None = None
    """Number of texts (1 if not given), of images (16) or of points (2000)."""
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
        settings = sampler_settings(overrides)
        from unveil.image_run import ImageRun
        from unveil.watch import printable, watch

        run = self.loaded().with_sampler(**settings)
        if run.recipe.family == "streams":
            raise UserError(self.path, "is a run on streams, which are followed, not sampled", f"write `unveil stream {self.path}`")
        if isinstance(run, ImageRun):
            with memory_answered(None):
                self._images(run)
            return
        for name in ("label", "between", "inpaint", "hole", "invert"):
            if getattr(self, name) is not None:
                raise UserError(f"--{name}", "is for images, this is a run of text", "leave it out")
        sampler = run.recipe.sampler
        with memory_answered(None):
            num = 1 if self.num is None else self.num
            snapshots = run.sample(self.prompt, infill=self.infill, num=num, seed=self.seed)
            if self.watch:
                watch(snapshots, getattr(sampler, "steps", 0) or sampler.length)
                return
            *_, last = snapshots
        text = "\n\n--------\n\n".join([last.text] if last.single else last.text)
        print(printable(text) if sys.stdout.isatty() else text)

    def _images(self, run: Any) -> None:
        from unveil.plane import POINTS_SHOWN
        from unveil.watch import watch_images

        if self.infill is not None:
            raise UserError("--infill", "is for text, this is a run of images", "leave it out")
        if sum(value is not None for value in (self.between, self.inpaint, self.invert)) > 1:
            raise UserError("--between", "given with --inpaint or --invert", "ask for one of them")
        num = (POINTS_SHOWN if run.points else 16) if self.num is None else self.num
        told = {"label": self.label, "prompt": self.prompt}
        if self.between is not None:
            snapshots = run.interpolate(*numbers("--between", self.between, 2), num=8 if self.num is None else num, **told)
        elif self.inpaint is not None:
            if self.hole is None:
                raise UserError("--inpaint", "given without --hole", "say which part to make anew: --hole left,top,right,bottom")
            hole = numbers("--hole", self.hole, 4)
            snapshots = run.inpaint(run.image(self.inpaint), hole, num=num, seed=self.seed, **told)
        elif self.invert is not None:
            known = run.image(self.invert)
            snapshots = run.reconstruct(known, **told)
        else:
            snapshots = run.sample(num, seed=self.seed, **told)
        if self.watch:
            last = watch_images(snapshots)
        else:
            *_, last = snapshots
        if self.invert is not None:
            print(
                f"largest difference from what was given: {abs(last.x[0] - known).max():.3f}, where values go from -1 to 1", file=sys.stderr
            )
        out = Path(self.out or Path(self.path) / "samples.png")
        out.write_bytes(last.png(8 if self.between is not None else 0))
        print(out.resolve().as_uri())


@dataclass(frozen=True)
class Chat(OfModel):
    """Talk with a model, in its own chat template where it has one. An empty line ends."""

    seed: int = 0

    def run(self, overrides: Overrides) -> None:
        settings = sampler_settings(overrides)
        from unveil.chat import talk
        from unveil.text_run import TextRun

        run = self.loaded().with_sampler(**settings)
        if not isinstance(run, TextRun):
            raise UserError(self.path, "is no run of text, it does not talk", "give one of text")
        talk(run, self.seed)
