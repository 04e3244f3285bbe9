"""Batches of windows: training windows that end at any chunk, in an order of each epoch's own, and held-out streams in order.

A window is the chunks of one stream up to its present, at most ``steps`` of them: at the beginning of a stream it is shorter, and
nothing stands in for what is not there. Order and noise depend on the run's seed and on a sample's global index alone; see
``unveil.data.ahead``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch

from unveil.config_streams import StreamDataConfig
from unveil.data.ahead import Ahead, Noising, State
from unveil.data.clips import NONE, Clips
from unveil.data.noise import generator
from unveil.data.split import Split
from unveil.data.stream_features import Recording, Recordings
from unveil.errors import UserError

Array = np.ndarray[Any, Any]


class WindowSample(NamedTuple):
    sample_id: int
    """Counts windows over the whole run, from 0."""
    epoch: int
    stream: int
    present: int
    """Chunk of the stream."""


class StreamLoader(Ahead[Clips]):
    """Micro-batches ``(Clips, noise)`` of ``config.batch`` windows without end, for one rank.

    Every epoch has each training chunk as a present once, but for those of an ignored class; a batch may hold the end of one epoch and the
    beginning of the next. Chunks ahead of an ignored class, or behind the end of the stream, are ``NONE``.

    Args:
        steps: chunks of a window at the most.
        horizon: chunks ahead.

    Raises:
        UserError: nothing to train on.
    """

    def __init__(
        self,
        recordings: Recordings,
        config: StreamDataConfig,
        seed: int,
        family: Noising,
        steps: int,
        horizon: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        super().__init__(_Plan(recordings, config, seed, family, steps, horizon, rank, world), config.workers)


class _Plan:
    """All that a worker needs to build any batch."""

    def __init__(
        self,
        recordings: Recordings,
        config: StreamDataConfig,
        seed: int,
        family: Noising,
        steps: int,
        horizon: int,
        rank: int,
        world: int,
    ) -> None:
        self.recordings, self.config, self.seed, self.family = recordings, config, seed, family
        self.steps, self.horizon, self.rank, self.world = steps, horizon, rank, world
        self.streams, self.ignored = _part(recordings, "train"), recordings.about.ignored
        self.presents = [np.flatnonzero(~np.isin(s.labels_T, self.ignored)) for s in self.streams]
        if not any(len(found) for found in self.presents):
            raise UserError("data.path", "every chunk of the training streams is of an ignored class", "give streams with labels")

    def planner(self) -> WindowOrder:
        return WindowOrder(self.presents, self.config.batch, self.seed)

    def shape(self) -> State:
        windows = [self.steps, self.horizon]
        return {"seed": self.seed, "batch": self.config.batch, "windows": windows, "streams": self.recordings.key}

    def build(self, samples: list[WindowSample]) -> tuple[Any, dict[str, Array]]:
        windows = [_window(self.streams[s.stream], s.present, self.steps, self.horizon, self.ignored) for s in samples]
        draws = [
            self.family.draw(s.sample_id, s.epoch, len(w.features_TF), generator(self.seed, s.epoch, s.sample_id, "draw"))
            for s, w in zip(samples, windows, strict=True)
        ]
        return (windows, [s.sample_id for s in samples]), {name: np.concatenate([d[name] for d in draws]) for name in draws[0]}

    def finish(self, content: Any) -> Clips:
        return _clips(*content)


class WindowOrder:
    """The order of training: a number is all of its state."""

    def __init__(self, presents: Sequence[Array], batch: int, seed: int) -> None:
        self._streams = np.repeat(np.arange(len(presents)), [len(found) for found in presents])
        self._presents, self._batch, self._seed = np.concatenate(presents), batch, seed
        self._next = 0
        self._current: tuple[int, Array] | None = None

    def next(self) -> list[WindowSample]:
        first, self._next = self._next, self._next + self._batch
        return [self._sample(sample_id) for sample_id in range(first, self._next)]

    def _sample(self, sample_id: int) -> WindowSample:
        epoch, place = divmod(sample_id, len(self._presents))
        if self._current is None or self._current[0] != epoch:
            self._current = epoch, generator(self._seed, epoch, 0, "order").permutation(len(self._presents))
        window = self._current[1][place]
        return WindowSample(sample_id, epoch, int(self._streams[window]), int(self._presents[window]))

    def state(self) -> State:
        return {"next_id": self._next}

    def restore(self, state: State) -> None:
        self._next = int(state["next_id"])


def held_out_windows(
    recordings: Recordings, part: Split, config: StreamDataConfig, steps: int, horizon: int, limit: int = 0
) -> Iterator[Clips]:
    """A window for every chunk of the part's streams, in order, in batches of ``config.batch``; sample ids count chunks from 0.

    Presents of an ignored class come too, as ``NONE``, so that what is said of them lines up with the streams. ``limit`` takes only the
    first so many windows, 0 all. Raises UserError where the part has no streams.
    """
    streams, ignored = _part(recordings, part), recordings.about.ignored
    every = ((stream, present) for stream in streams for present in range(len(stream.labels_T)))
    places = islice(every, limit or None)
    done = 0
    while batch := list(islice(places, config.batch)):
        windows = [_window(stream, present, steps, horizon, ignored) for stream, present in batch]
        yield _clips(windows, range(done, done + len(batch)))
        done += len(batch)


class _Window(NamedTuple):
    features_TF: Array
    """Of at most ``steps`` chunks, in the dtype of the store."""
    ahead_K: Array
    """Labels at the present and at the chunks ahead."""


def _window(stream: Recording, present: int, steps: int, horizon: int, ignored: Sequence[int]) -> _Window:
    told = stream.labels_T[present : present + 1 + horizon]
    ahead = np.full(1 + horizon, NONE, dtype=np.int64)
    ahead[: len(told)] = np.where(np.isin(told, ignored), NONE, told)
    return _Window(stream.features_TF[max(0, present + 1 - steps) : present + 1], ahead)


def _clips(windows: Sequence[_Window], sample_ids: Sequence[int]) -> Clips:
    ahead = torch.from_numpy(np.stack([w.ahead_K for w in windows]))
    features = [torch.from_numpy(w.features_TF.astype(np.float32)) for w in windows]
    return Clips.of(features, ahead[:, 0], ahead[:, 1:], sample_ids)


def _part(recordings: Recordings, part: Split) -> tuple[Recording, ...]:
    if not (streams := recordings.parts[part]):
        raise UserError("data.path", f"no stream is in the part '{part}'", "assign some to it")
    return streams
