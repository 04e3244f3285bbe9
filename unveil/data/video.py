"""Videos as chunks of frames, by PyAV. A chunk ends at the present: no frame that comes later is in it or moves where it is cut."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from unveil.errors import UserError

CHUNK = 6
"""Frames, as in the field."""
FRAME_RATE = 24.0
_SLACK = 1e-3
"""Seconds by which a timestamp may be off: Matroska rounds them to a millisecond."""

Array = np.ndarray[Any, Any]


def frames(path: Path, frame_rate: float = FRAME_RATE) -> Iterator[Array]:
    """Frames uint8 ``[H, W, 3]`` of a file at this rate, whatever its own; see ``resampled``.

    Raises:
        UserError: PyAV is not installed; a file that cannot be opened or decoded, has no video, no timestamps or such as go back, or
            changes its resolution.
    """
    empty = True
    for frame in resampled(_decoded(path), frame_rate):
        empty = False
        yield frame
    if empty:
        raise UserError(str(path), "has no frame that can be decoded", "give a file that plays")


def resampled(timed: Iterable[tuple[float, Array]], frame_rate: float = FRAME_RATE) -> Iterator[Array]:
    """Of frames with their times in seconds, at each moment of this rate the newest one there is; moments count from the first frame.

    Where the source has fewer frames, drops some, or changes its rate on the way, a frame is told again until the next; where it has more,
    those between two moments are left out. A frame whose moment has come is told at once.
    """
    held: Array | None = None
    begin, told = 0.0, 0
    for time, frame in timed:
        if held is None:
            begin = time
        while held is not None and told / frame_rate < time - begin - _SLACK:
            yield held
            told += 1
        held = frame
        while told / frame_rate <= time - begin + _SLACK:
            yield held
            told += 1


def chunks(pictures: Iterable[Array], chunk: int = CHUNK) -> Iterator[Array]:
    """uint8 ``[chunk, H, W, 3]``, each as soon as its last frame is there. Frames that end before their chunk does are no chunk."""
    open_: list[Array] = []
    for picture in pictures:
        open_.append(picture)
        if len(open_) == chunk:
            yield np.stack(open_)
            open_ = []


def write_video(path: Path, pictures: Iterable[Array], frame_rate: int = int(FRAME_RATE)) -> None:
    """Frames uint8 ``[H, W, 3]`` of even sides to a file in the form of its suffix (MPEG-4, which every build of FFmpeg has)."""
    av = _av()
    with av.open(str(path), "w") as container:
        stream: Any = None
        for i, picture in enumerate(pictures):
            if stream is None:
                stream = container.add_stream("mpeg4", rate=frame_rate)
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, frame_rate)
            container.mux(stream.encode(frame))
        if stream is not None:
            container.mux(stream.encode())


def _decoded(path: Path) -> Iterator[tuple[float, Array]]:
    """Time in seconds and frame, in order."""
    av = _av()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(str(path), "has no video", "give a file with pictures that move")
            last, size = float("-inf"), None
            for frame in container.decode(video=0):
                if frame.time is None or frame.time <= last:
                    problem = "has a frame without a timestamp" if frame.time is None else f"goes back in time at {last:.2f} s"
                    raise UserError(str(path), problem, "write it again with FFmpeg: ffmpeg -i FILE -c copy NEW.mp4")
                size = size or (frame.width, frame.height)
                if (frame.width, frame.height) != size:
                    problem = f"changes from {size[0]} x {size[1]} to {frame.width} x {frame.height} pixels at {frame.time:.2f} s"
                    raise UserError(str(path), problem, "scale it to one size, or cut it there")
                last = float(frame.time)
                yield last, frame.to_ndarray(format="rgb24")
    except (av.error.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(str(path), f"cannot be decoded ({reason})", "give a file that plays") from error


def _av() -> Any:
    try:
        return importlib.import_module("av")
    except ImportError:
        raise UserError("av", "is not installed, and videos are read with it", "pip install 'unveil[video]'") from None
