from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unveil.data.stream_features import About, Recording, Segment, chunk_labels, open_recordings, write_recordings
from unveil.errors import UserError

ABOUT = About(("background", "jump", "throw", "unsure"), (3,), 24.0, 6, "resnet", "abc")


def recording(name: str, length: int = 5, width: int = 4) -> Recording:
    rng = np.random.default_rng(length)
    return Recording(name, rng.standard_normal((length, width)).astype(np.float32), rng.integers(0, 4, length))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_recordings(tmp_path, ABOUT, [("train", recording("a/b", 5)), ("test", recording("c", 7)), ("train", recording("d", 6))])
    return tmp_path


def test_what_is_written_is_read(folder: Path) -> None:
    found = open_recordings(folder)
    assert found.about == ABOUT and found.width == 4 and found.about.rate == 4
    assert [[r.name for r in found.parts[part]] for part in ("train", "validation", "test")] == [["a/b", "d"], [], ["c"]]
    for one, length in zip((*found.parts["train"], *found.parts["test"]), (5, 6, 7), strict=True):
        wanted = recording(one.name, length)
        assert one.features_TF.dtype == np.float16 and not one.features_TF.flags.owndata
        assert np.array_equal(one.features_TF, wanted.features_TF.astype(np.float16)) and np.array_equal(one.labels_T, wanted.labels_T)
    sent = pickle.dumps(found)
    assert len(sent) < 500 and np.array_equal(pickle.loads(sent).parts["test"][0].labels_T, found.parts["test"][0].labels_T)


def test_damage_is_found(folder: Path) -> None:
    manifest, first, second = folder / "streams.json", folder / "00000.arrow", folder / "00002.arrow"
    good, stream = manifest.read_text(encoding="utf-8"), first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(UserError, match="made from other data"):
        open_recordings(folder)
    at = stream.index(recording("a/b").features_TF.astype(np.float16).tobytes())
    first.write_bytes(stream[:at] + bytes([stream[at] ^ 1]) + stream[at + 1 :])
    with pytest.raises(UserError, match="checksum"):
        open_recordings(folder)
    first.unlink()
    with pytest.raises(UserError, match="truncated or damaged"):
        open_recordings(folder)
    first.write_bytes(stream)
    for changed, problem in (
        ({"format": 9}, "has format 9"),
        ({"extractor": "another"}, "made from other data"),
        ({"streams": [{"name": "a"}]}, "is damaged"),
    ):
        manifest.write_text(json.dumps(json.loads(good) | changed), encoding="utf-8")
        with pytest.raises(UserError, match=problem):
            open_recordings(folder)
    manifest.write_text(good[:50], encoding="utf-8")
    with pytest.raises(UserError, match="is damaged"):
        open_recordings(folder)
    manifest.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        open_recordings(folder)


@pytest.mark.parametrize(
    ("streams", "problem"),
    [
        ([], "was given no stream"),
        ([recording("a"), recording("a")], "names two streams"),
        ([recording("a"), recording("b", width=5)], "b: 5 features a chunk, the streams before it have 4"),
        ([recording("a")._replace(labels_T=np.zeros(4, np.int64))], r"features \[5, 4\] and labels \[4\]"),
        ([recording("a")._replace(labels_T=np.full(5, 4))], "label 4 is none of the 4 classes"),
        ([recording("a")._replace(features_TF=np.full((5, 4), 1e6))], "not finite in float16"),
    ],
)
def test_streams_that_do_not_fit_are_refused(tmp_path: Path, streams: list[Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        write_recordings(tmp_path, ABOUT, (("train", one) for one in streams))
    assert not (tmp_path / "streams.json").exists()


def test_a_segment_has_every_chunk_it_touches() -> None:
    def made(*segments: tuple[float, float, str]) -> list[int]:
        return chunk_labels([Segment(*one) for one in segments], 10, ABOUT).tolist()

    assert made((0.3, 0.9, "jump")) == [0, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert made((0.25, 0.75, "jump")) == made((0.25 + 1e-9, 0.75 + 1e-9, "jump")) == [0, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert made((2.0, 99.0, "throw")) == [0] * 8 + [2, 2] and made((9.0, 99.0, "throw")) == [0] * 10
    assert made((1.0, 2.0, "throw"), (0.0, 1.5, "jump")) == [1, 1, 1, 1, 2, 2, 2, 2, 0, 0]  # the later one has the overlap
    assert made((0.5, 2.5, "unsure"), (0.0, 1.0, "jump")) == [1, 1, 1, 1, 3, 3, 3, 3, 3, 3]  # ignored gives way
    assert chunk_labels([Segment(0.3, 0.9, "jump")], 4, replace(ABOUT, chunk=12)).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("segment", "problem"),
    [
        (Segment(0, 1, "jmp"), "did you mean 'jump'"),
        (Segment(2, 2, "jump"), "no span"),
        (Segment(-1, 2, "jump"), "no span"),
        (Segment(float("nan"), 2, "jump"), "no span"),
        (Segment(0, float("inf"), "jump"), "no span"),
    ],
)
def test_segments_that_are_none_are_refused(segment: Segment, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        chunk_labels([segment], 10, ABOUT)
