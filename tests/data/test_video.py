from __future__ import annotations

import importlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unveil.data.sprites import sprites
from unveil.data.video import chunks, frames, write_video
from unveil.errors import UserError

av = pytest.importorskip("av")
Array = np.ndarray[Any, Any]


def grey(levels: Any, side: int = 32) -> list[Array]:
    return [np.full((side, side, 3), level, dtype=np.uint8) for level in levels]


def written(path: Path, times: list[Fraction], levels: list[int], side: int = 32, codec: str = "mpeg4") -> Path:
    """A file whose frames have these timestamps, in seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24)
        stream.height = stream.width = side
        stream.pix_fmt, stream.bit_rate = "yuvj420p" if codec == "mjpeg" else "yuv420p", 4_000_000
        stream.codec_context.time_base = Fraction(1, 240)
        for time, picture in zip(times, grey(levels, side), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = int(time * 240), Fraction(1, 240)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def levels_of(path: Path, rate: float = 24.0) -> list[int]:
    """Grey levels as read, to the nearest ten."""
    return [int(np.round(frame.mean(), -1)) for frame in frames(path, rate)]


def test_frames_come_back_in_order(tmp_path: Path) -> None:
    video = sprites("test", 0, chunks=4)
    write_video(tmp_path / "a.mp4", video.frames)
    found = np.stack(list(frames(tmp_path / "a.mp4")))
    assert found.shape == video.frames.shape
    error = np.abs(found.astype(int) - video.frames[:, None].astype(int)[:, 0]).mean((1, 2, 3))
    other = np.abs(found[12:].astype(int) - video.frames[:-12].astype(int)).mean((1, 2, 3))
    assert error.max() < 12 and (error[12:] < other).all()


def test_a_rate_that_changes_changes_nothing(tmp_path: Path) -> None:
    """A tenth of a second each at first, then a twentieth: at 20 a second a frame is told twice, and then once."""
    times = [Fraction(i, 10) for i in range(4)] + [Fraction(4, 10) + Fraction(i, 20) for i in range(4)]
    path = written(tmp_path / "a.mkv", times, [20, 40, 60, 80, 100, 120, 140, 160])
    assert levels_of(path, 20.0) == [20, 20, 40, 40, 60, 60, 80, 80, 100, 120, 140, 160]
    assert levels_of(path, 10.0) == [20, 40, 60, 80, 100, 140]


def test_dropped_frames_are_held(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mkv", [Fraction(i, 24) for i in (0, 1, 5, 6)], [20, 60, 120, 200])
    assert levels_of(path) == [20, 60, 60, 60, 60, 120, 200]


def test_what_comes_later_moves_no_frame(tmp_path: Path) -> None:
    times = [Fraction(i, 30) for i in range(30)]
    whole = written(tmp_path / "whole.mkv", times, [8 * i for i in range(30)])
    for cut in (7, 13, 20):
        part = written(tmp_path / f"{cut}.mkv", times[:cut], [8 * i for i in range(cut)])
        seen = levels_of(part)
        assert seen == levels_of(whole)[: len(seen)] and len(seen) == (cut - 1) * 24 // 30 + 1


def test_a_chunk_ends_with_its_sixth_frame_and_a_part_is_none() -> None:
    pulled: list[int] = []

    def pictures() -> Any:
        for i, picture in enumerate(grey(range(20))):
            pulled.append(i)
            yield picture

    found = chunks(pictures())
    first = next(found)
    assert first.shape == (6, 32, 32, 3) and first[-1, 0, 0, 0] == 5 and pulled == list(range(6))  # not a frame ahead
    assert [int(c[-1, 0, 0, 0]) for c in found] == [11, 17]


def test_a_resolution_that_changes_is_refused(tmp_path: Path) -> None:
    parts = [written(tmp_path / f"{side}.mjpeg", [Fraction(i, 24) for i in range(3)], [50] * 3, side, "mjpeg") for side in (32, 48)]
    (tmp_path / "both.mjpeg").write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(UserError, match="changes from 32 x 32 to 48 x 48 pixels at 0"):
        list(frames(tmp_path / "both.mjpeg"))


def test_what_cannot_be_decoded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        list(frames(tmp_path / "none.mp4"))
    (tmp_path / "text.mp4").write_text("no video", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be decoded"):
        list(frames(tmp_path / "text.mp4"))
    write_video(tmp_path / "a.mp4", grey(range(0, 240, 10)))
    whole = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut\.mp4: (cannot be decoded|has no video)"):  # which, its FFmpeg decides
        list(frames(tmp_path / "cut.mp4"))
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(UserError, match="has no video"):
        list(frames(tmp_path / "sound.wav"))


def test_without_pyav_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"pip install 'unveil\[video\]'"):
        next(frames(tmp_path / "a.mp4"))
