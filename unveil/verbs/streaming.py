"""The verb that follows streams: stream."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unveil.errors import UserError
from unveil.verbs.shared import OfRun, Overrides, sampler_settings


@dataclass(frozen=True)
class Stream(OfRun):
    """Follow streams with a trained detector: what begins and what ends, as JSON lines, while it happens."""

    source: str = ""
    """A folder of features, as `unveil` keeps them; the run's own held-out streams if not given."""
    part: str = "validation"
    """Of the source: train, validation or test."""
    num: int = 1
    """How many streams at once."""
    out: str = ""
    """File for the lines, beside the terminal."""

    def run(self, overrides: Overrides) -> None:
        settings = sampler_settings(overrides)
        from unveil.data.split import SPLITS
        from unveil.data.stream_features import open_recordings
        from unveil.run import load
        from unveil.stream_run import StreamRun, line

        if self.part not in SPLITS:
            raise UserError("--part", f"got {self.part!r}", f"choose one of {', '.join(SPLITS)}")
        run = load(self.path).with_sampler(**settings)
        if not isinstance(run, StreamRun):
            raise UserError(self.path, "is no run on streams", "give a run of the family streams")
        found = open_recordings(Path(self.source)) if self.source else run.recordings()
        if (theirs := (found.about.extractor, found.about.digest)) != (own := (run.about.extractor, run.about.digest)):
            raise UserError("--source", f"has features of {theirs[0]} ({theirs[1]}), the model knows {own[0]} ({own[1]})", "extract those")
        part = found.parts[self.part]
        if not 0 < self.num <= len(part):
            raise UserError("--num", f"got {self.num}, the part '{self.part}' has {len(part)} streams", "ask for some of them")
        lines = []
        for event in run.events(part[: self.num]):
            lines.append(line(event, run.about))
            print(lines[-1], end="", flush=True)
        if self.out:
            Path(self.out).write_text("".join(lines), encoding="utf-8")
