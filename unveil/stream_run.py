"""Runs on streams: what goes on in a video now and next, told chunk by chunk, and scored against what could be known."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from unveil.config import StreamsRecipe
from unveil.data.stream_features import About, Recording, Recordings, open_recordings
from unveil.data.stream_loader import StreamLoader, held_out_windows
from unveil.data.synth_stream import chain, synth_stream
from unveil.errors import UserError
from unveil.evaluation.loss import held_out_loss
from unveil.families import streams
from unveil.family import Curve, StreamRequest, StreamRow, Table
from unveil.metrics.detection import anticipation, per_frame
from unveil.metrics.events import detection_delay
from unveil.metrics.filtering import forward_filter, windowed_filter
from unveil.metrics.references import chance
from unveil.report.evidence import Evidence, Headline
from unveil.streams.events import Event, Events
from unveil.streams.family import OnlineDetection
from unveil.trained import Run, Split
from unveil.training import final

THRESHOLD = 0.5
"""Probability at which an action counts as noticed."""
FOLLOWED = 4
"""Streams told in ``samples/``."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Detection:
    """How well the present and the chunks ahead are told, as shares of 1."""

    map: float
    """Per-frame mean average precision over all chunks."""
    classes: Sequence[float]
    """Of each class, the background left out."""
    chance: float
    anticipation: Sequence[float]
    """mAP at 1, 2, ... chunks ahead."""
    delay: float
    """Median chunks from an action's first to the first that reaches ``THRESHOLD``, of those noticed."""
    missed: float
    chunks: int
    single: float | None = None
    """The best that can be told from one chunk alone, where the data say."""
    ceiling: float | None = None
    """The best that can be told at all."""

    def lines(self) -> Iterator[tuple[str, str]]:
        """Name and figure, for a table."""
        yield "mAP", f"{self.map:.2%} over {self.chunks:,} chunks (chance {self.chance:.2%})"
        if self.ceiling is not None and self.single is not None:
            yield "ceiling", f"{self.ceiling:.2%}, reached to {self.map / self.ceiling:.1%}; from one chunk alone {self.single:.2%}"
        if self.anticipation:
            yield "chunks ahead", ", ".join(f"{value:.1%}" for value in self.anticipation)
        yield "noticed", f"after {self.delay:g} chunks (median); {self.missed:.1%} of the actions never reach {THRESHOLD:g}"


@dataclass(frozen=True)
class StreamRun(Run):
    """A trained detector with what its features and classes are."""

    path: Path
    folder: Path
    recipe: StreamsRecipe
    about: About
    width: int
    model: nn.Module

    @staticmethod
    def read(path: Path, folder: Path, recipe: StreamsRecipe, config: dict[str, Any]) -> StreamRun:
        """From its folder, the weights on the CPU. Raises UserError for what is missing, damaged or does not belong together."""
        try:
            told = config["about"]
            about = About(**{**told, "classes": tuple(told["classes"]), "ignored": tuple(told["ignored"])})
            width = int(config["features"])
        except (KeyError, TypeError, ValueError):
            problem = "is corrupted: 'about' and 'features' of the streams are not in it"
            raise UserError(str(folder / final.CONFIG), problem, "copy final/ from where it was trained") from None
        model = streams(recipe, width, about).build()
        final.read(folder, model)
        return StreamRun(path, folder, recipe, about, width, model)

    @cached_property
    def family(self) -> OnlineDetection:
        return streams(self.recipe, self.width, self.about)

    def sample(self, features: Sequence[Array]) -> Iterator[list[StreamRow]]:
        """Follow streams, features ``[L, F]`` each; yields what the newest chunk of every stream that goes on shows.

        Raises UserError at once, for features of another width.
        """
        state = self.family.begin(self.model, [StreamRequest(np.asarray(each, dtype=np.float32)) for each in features])

        def steps() -> Iterator[list[StreamRow]]:
            while state.live:
                yield self.family.step(self.model, state).rows

        return steps()

    def events(self, recordings: Sequence[Recording]) -> Iterator[Event]:
        """What begins and ends in these streams, as it is noticed."""
        told = Events(self.recipe.sampler.start, self.recipe.sampler.stop)
        for rows in self.sample([each.features_TF for each in recordings]):
            names = [recordings[row.request].name for row in rows]
            yield from told.update(names, np.stack([row.present for row in rows]))
            yield from told.close([name for name, row in zip(names, rows, strict=True) if row.final])

    def recordings(self) -> Recordings:
        """The streams that it was trained on. Raises UserError where they are gone, or others."""
        found = recordings_of(self.recipe)
        if asdict(found.about) != asdict(self.about) or found.width != self.width:
            raise UserError("data.path", "the features or classes differ from those that the model was trained on", "restore those")
        return found

    def evaluate(self, split: Split = "validation") -> Detection:
        """Every chunk of the part's streams, told as a stream is. Raises UserError where the data are gone or the part is empty."""
        found = self.recordings()
        if not found.parts[split]:
            raise UserError("--split", f"no stream is in the part '{split}'", "assign some to it")
        return judged(self, found, split)


def recordings_of(recipe: StreamsRecipe) -> Recordings:
    """A recipe's streams. Raises UserError for data that there are not."""
    if recipe.data.kind == "synth-stream":
        return synth_stream()
    if recipe.data.kind == "folder":
        return open_recordings(Path(recipe.data.path))
    raise UserError("data.kind", f"'{recipe.data.kind}' are videos without features", "extract features into a folder first")


def judged(run: StreamRun, recordings: Recordings, split: Split) -> Detection:
    """Metrics of a part's streams, beside what could be known where the data say."""
    part, ignored = recordings.parts[split], run.about.ignored
    boundaries = np.cumsum([0, *(len(each.labels_T) for each in part)])
    truth = np.eye(len(run.about.classes))[np.concatenate([each.labels_T for each in part])]
    scores = np.zeros(truth.shape)
    ahead = np.zeros((len(truth), run.recipe.model.horizon, truth.shape[1]))
    for rows in run.sample([each.features_TF for each in part]):
        for row in rows:
            at = boundaries[row.request] + row.chunk
            scores[at] = row.present
            if run.recipe.sampler.futures:
                ahead[at] = row.future
    found = per_frame(scores, truth, ignored)
    delays = detection_delay(scores, truth, boundaries, THRESHOLD, ignored)
    horizons = anticipation(ahead, truth, boundaries, ignored) if run.recipe.sampler.futures else []
    known: dict[str, float] = {}
    if run.recipe.data.kind == "synth-stream":
        features = np.stack([each.features_TF for each in part])
        for name, told in (("single", windowed_filter(chain(), features, 1)), ("ceiling", forward_filter(chain(), features))):
            known[name] = per_frame(told[:, :, 0].reshape(truth.shape), truth, ignored).mean
    return Detection(
        found.mean,
        [float(value) for value in found.classes[1:]],
        per_frame(chance(truth), truth, ignored).mean,
        [each.mean for each in horizons],
        delays.median,
        delays.missed,
        len(truth),
        **known,
    )


def record(run: StreamRun, found: Detection) -> None:
    """Put what was found into the run's evidence, where ``unveil report`` takes it from."""
    if not (run.path / "recipe.toml").is_file():
        return
    rows = [[name, value] for name, value in zip(run.about.classes[1:], found.classes, strict=True) if value == value]
    views: list[Curve | Table] = [Table("Average precision by class", ["class", "average precision"], rows)]
    if found.anticipation:
        chunks = list(range(len(found.anticipation) + 1))
        lines = {"mAP": [found.map, *found.anticipation]}
        views.append(Curve("Now and next", chunks, lines, "chunks ahead", "mean average precision", "Quality"))
    best = "" if found.ceiling is None else f"; the best possible is {found.ceiling:.1%}"
    note = f"Per-frame mean average precision over {found.chunks:,} chunks; chance is {found.chance:.1%}{best}."
    Evidence.load(run.path).with_views(*views, headline=Headline(100 * found.map, "% mAP", note)).save(run.path)


class StreamTraining:
    """A recipe's streams, family and scores, as ``unveil.run.train`` asks for them."""

    def __init__(self, recipe: StreamsRecipe, directory: Path, shown: bool) -> None:
        self.recipe, self.directory = recipe, directory
        self.recordings = recordings_of(recipe)
        self.family = streams(recipe, self.recordings.width, self.recordings.about)

    @property
    def scores(self) -> bool:
        return bool(self.recordings.parts["validation"])

    def build(self) -> nn.Module:
        return self.family.build()

    def loader(self, rank: int, world: int) -> StreamLoader:
        recipe, model = self.recipe, self.recipe.model
        return StreamLoader(self.recordings, recipe.data, recipe.seed, self.family, model.steps, model.horizon, rank, world)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The loss on held-out windows."""
        config, limit = self.recipe.model, self.recipe.evaluation.tokens
        batches = held_out_windows(self.recordings, "validation", self.recipe.data, config.steps, config.horizon, limit)
        found = held_out_loss(self.family, model, batches)
        return {name: found[name] for name in ("present", "future") if name in found}

    def sample(self, model: nn.Module, step: int) -> None:
        """The events of a few held-out streams, as JSON lines."""
        folder = self.directory / "samples"
        folder.mkdir(exist_ok=True)
        part = self.recordings.parts["validation"][:FOLLOWED]
        run = StreamRun(self.directory, self.directory, self.recipe, self.recordings.about, self.recordings.width, model)
        lines = [line(event, run.about) for event in run.events(part)]
        (folder / f"step-{step:08d}.jsonl").write_text("".join(lines), encoding="utf-8")

    def export(self, folder: Path) -> dict[str, Any]:
        return {"about": asdict(self.recordings.about), "features": self.recordings.width}

    def evidence(self, run: StreamRun) -> Evidence:
        return Evidence(views=self.family.views(run), costs={"parameters": run.parameters()})


def line(event: Event, about: About) -> str:
    """An event as a line of JSON; times in seconds."""
    told = {
        "stream": str(event.stream),
        "event": event.kind,
        "class": about.classes[event.label],
        "time": event.chunk / about.rate,
        "began": event.began / about.rate,
        "score": round(event.score, 4),
        "peak": round(event.peak, 4),
    }
    return json.dumps(told) + "\n"
