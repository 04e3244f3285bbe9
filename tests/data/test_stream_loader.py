from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unveil.config_streams import StreamDataConfig
from unveil.data.clips import NONE, Clips
from unveil.data.stream_features import About, Recording, Recordings, open_recordings, write_recordings
from unveil.data.stream_loader import StreamLoader, held_out_windows
from unveil.errors import UserError

STEPS, HORIZON = 7, 3
ABOUT = About(("background", "a", "b", "unsure"), (3,), 24.0, 6, "made up", "")


class Drawing:
    """Draws a number for each window."""

    def transform(self, tokens: Any, rng: np.random.Generator) -> Any:
        return tokens

    def draw(self, sample_id: int, epoch: int, length: int, rng: np.random.Generator) -> dict[str, Any]:
        return {"t": rng.random(1)}


def recording(name: str, length: int) -> Recording:
    """A chunk's features are the stream's number and its own, so that a window says where it lies."""
    rng = np.random.default_rng(length)
    features = np.stack([np.full(length, length), np.arange(length)], 1).astype(np.float32)
    return Recording(name, features, rng.integers(0, 4, length))


@pytest.fixture(scope="module")
def recordings() -> Recordings:
    train = tuple(recording(f"t{n}", n) for n in (1, 5, 30, 41))
    return Recordings(ABOUT, {"train": train, "validation": (recording("v", 12), recording("w", 9)), "test": ()})


@pytest.fixture(scope="module")
def config() -> StreamDataConfig:
    return StreamDataConfig(batch=8)


def rows(loader: Any, count: int) -> list[Any]:
    return [[{k: v.tolist() for k, v in vars(b).items() if k != "max_seqlen"}, noise["t"].tolist()] for b, noise in islice(loader, count)]


def check(window: Clips, streams: tuple[Recording, ...]) -> tuple[int, int]:
    """That a window is what its last chunk's number says, and where it lies."""
    length, present = (int(v) for v in window.features_TF[-1])
    stream = next(s for s in streams if len(s.labels_T) == length)
    assert np.array_equal(window.features_TF, stream.features_TF[max(0, present - STEPS + 1) : present + 1])
    wanted = [int(v) if v != 3 else NONE for v in stream.labels_T[present : present + HORIZON + 1]]
    assert [int(window.present_N), *window.future_NK[0].tolist()] == wanted + [NONE] * (HORIZON + 1 - len(wanted))
    return length, present


def test_an_epoch_ends_at_every_chunk_once(recordings: Recordings, config: StreamDataConfig) -> None:
    train = recordings.parts["train"]
    wanted = {(len(s.labels_T), t) for s in train for t in range(len(s.labels_T)) if s.labels_T[t] != 3}
    loader = StreamLoader(recordings, config, 0, Drawing(), STEPS, HORIZON)
    windows = [one for batch, _ in islice(loader, 2 * len(wanted) // 8 + 1) for one in batch.split()]
    epochs = [[check(one, train) for one in windows[e * len(wanted) : (e + 1) * len(wanted)]] for e in range(2)]
    assert set(epochs[0]) == set(epochs[1]) == wanted and epochs[0] != epochs[1] and len(wanted) < 77
    assert {one.max_seqlen for one in windows} == set(range(1, STEPS + 1))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing_and_it_resumes_exactly(recordings: Recordings, config: StreamDataConfig, workers: int) -> None:
    straight = rows(StreamLoader(recordings, config, 3, Drawing(), STEPS, HORIZON), 14)
    loader = StreamLoader(recordings, replace(config, workers=workers), 3, Drawing(), STEPS, HORIZON)
    assert rows(loader, 6) == straight[:6]
    again = StreamLoader(recordings, config, 3, Drawing(), STEPS, HORIZON)
    again.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    assert rows(again, 8) == straight[6:]


def test_ranks_share_one_order(recordings: Recordings, config: StreamDataConfig) -> None:
    straight = rows(StreamLoader(recordings, config, 3, Drawing(), STEPS, HORIZON), 9)
    ranks = [StreamLoader(recordings, config, 3, Drawing(), STEPS, HORIZON, rank, 3) for rank in range(3)]
    batches = [rows(loader, 3) for loader in ranks]
    assert [batches[j % 3][j // 3] for j in range(9)] == straight


def test_a_state_of_other_streams_is_refused(recordings: Recordings, config: StreamDataConfig) -> None:
    state = StreamLoader(recordings, config, 3, Drawing(), STEPS, HORIZON).state_dict()
    shorter = Recordings(ABOUT, {**recordings.parts, "test": recordings.parts["validation"]})
    for other in (
        StreamLoader(recordings, config, 4, Drawing(), STEPS, HORIZON),
        StreamLoader(recordings, config, 3, Drawing(), STEPS + 1, HORIZON),
        StreamLoader(shorter, config, 3, Drawing(), STEPS, HORIZON),
    ):
        with pytest.raises(UserError, match="resume with the recipe"):
            other.load_state_dict(state)


def test_held_out_streams_come_in_order(recordings: Recordings, config: StreamDataConfig) -> None:
    batches = list(held_out_windows(recordings, "validation", config, STEPS, HORIZON))
    assert [len(b.present_N) for b in batches] == [8, 8, 5]
    windows = [one for batch in batches for one in batch.split()]
    places = [check(one, recordings.parts["validation"]) for one in windows]
    assert places == [(12, t) for t in range(12)] + [(9, t) for t in range(9)]
    assert [int(one.sample_ids_N) for one in windows] == list(range(21))
    assert sum(len(b.present_N) for b in held_out_windows(recordings, "validation", config, STEPS, HORIZON, limit=10)) == 10
    with pytest.raises(UserError, match="no stream is in the part 'test'"):
        next(held_out_windows(recordings, "test", config, STEPS, HORIZON))


def test_mapped_streams_make_the_same_batches(recordings: Recordings, config: StreamDataConfig, tmp_path: Path) -> None:
    write_recordings(tmp_path, ABOUT, ((part, r) for part, streams in recordings.parts.items() for r in streams))
    mapped = open_recordings(tmp_path)
    assert mapped.key == recordings.key
    loaders = [StreamLoader(r, config, 3, Drawing(), STEPS, HORIZON) for r in (mapped, recordings)]
    assert rows(loaders[0], 5) == rows(loaders[1], 5)


def test_nothing_to_train_on_is_said(recordings: Recordings, config: StreamDataConfig) -> None:
    with pytest.raises(UserError, match="ignored class"):
        only = Recording("x", np.zeros((4, 2), np.float32), np.full(4, 3))
        StreamLoader(Recordings(ABOUT, {"train": (only,), "validation": (), "test": ()}), config, 0, Drawing(), STEPS, HORIZON)
