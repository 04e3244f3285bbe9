"""``sprites``: videos in which only motion tells the class, 64 x 64 RGB at 24 frames a second, drawn as they are asked for.

One sprite acts and one distracts; shape, colour, size and the texture behind them are drawn apart from what happens. The world is a torus
in place and in size: who leaves at the left comes in at the right, who has grown full starts small. So place and size are uniform at any
moment of any class, and a single frame tells nothing, not even that anything happens. Two classes are one up to their middle: both set out
along the diagonal, one goes back and the other stays.

All of the drawing is in integers, so that a video is the same on every machine.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from unveil.data.noise import generator
from unveil.data.split import Split

SIDE = 64
FRAME_RATE = 24
CHUNK = 6
CHUNKS = 240
"""Of a video: a minute."""
VIDEOS: dict[Split, int] = {"train": 200, "validation": 40, "test": 50}
CLASSES = (
    "background",
    "left",
    "right",
    "up",
    "down",
    "clockwise",
    "counter-clockwise",
    "grow",
    "shrink",
    "out and back",
    "out and stay",
)
ONE = 256
"""Steps of a pixel: places are in these."""
WORLD = SIDE * ONE
SPEED = 3 * ONE // 2
"""Of all that moves, a frame."""
RADII = (4, 5, 6, 7, 8, 9, 10, 11)
"""Pixels, around the circle of sizes."""
TURN = 32
"""Frames of an orbit, of a radius at which it has the speed of all."""

Array = np.ndarray[Any, Any]


class Video(NamedTuple):
    """``frames`` uint8 ``[CHUNK x chunks, 64, 64, 3]``, ``labels`` int64 ``[chunks]``."""

    frames: Array
    labels: Array


class Path(NamedTuple):
    """Of a sprite, per frame: its place, in 1/256 pixel, and its size, in frames around the circle of sizes."""

    x: Array
    y: Array
    size: Array


def sprites(part: Split, index: int, seed: int = 0, chunks: int = CHUNKS) -> Video:
    """The video of this part and number. Of ``VIDEOS`` there are so many; any number is its own video."""
    rng = generator(seed, 0, index, f"sprites {part}")
    labels, path = _acted(rng, chunks)
    frames = np.broadcast_to(_texture(rng), (len(path.x), SIDE, SIDE, 3)).copy()
    for shown in (_walk(rng, len(path.x)), path):  # what acts is in front
        mask = _mask(shown, int(rng.integers(0, 3)))
        frames[mask] = rng.integers(128, 256, 3, dtype=np.uint8)
    return Video(frames, labels)


def static(video: Video) -> Video:
    """The control: of each chunk its last frame, six times. Whatever a detector makes of one such chunk alone is chance; over several
    chunks, places still move."""
    last = video.frames[CHUNK - 1 :: CHUNK]
    return Video(np.repeat(last, CHUNK, 0), video.labels)


def _acted(rng: np.random.Generator, chunks: int) -> tuple[Array, Path]:
    """Actions of 8 to 20 chunks between gaps of 6 to 24; a place and a size go on from where they were."""
    labels: list[Array] = []
    steps: list[Array] = []
    action = False
    while sum(map(len, labels)) < chunks:
        length = 2 * int(rng.integers(4, 11)) if action else int(rng.integers(6, 25))
        label = int(rng.integers(1, len(CLASSES))) if action else 0
        labels.append(np.full(length, label, dtype=np.int64))
        steps.append(_steps(rng, label, length * CHUNK))
        action = not action
    moved = np.concatenate(steps)[: chunks * CHUNK]
    return np.concatenate(labels)[:chunks], _from(rng, moved)


def _walk(rng: np.random.Generator, frames: int) -> Path:
    return _from(rng, _steps(rng, 0, frames))


def _from(rng: np.random.Generator, steps: Array) -> Path:
    """From a uniform beginning, by ``steps`` ``[N, 3]`` around the torus."""
    start = np.array([rng.integers(0, WORLD), rng.integers(0, WORLD), rng.integers(0, len(RADII) * CHUNK)])
    x, y, size = (start + np.cumsum(steps, 0)).T
    return Path(x % WORLD, y % WORLD, size % (len(RADII) * CHUNK))


def _steps(rng: np.random.Generator, label: int, frames: int) -> Array:
    """What place and size change by in each frame, int64 ``[frames, 3]``."""
    steps = np.zeros((frames, 3), dtype=np.int64)
    diagonal = _heading(np.full(frames, TURN // 8))
    match CLASSES[label]:
        case "left" | "right" | "up" | "down" as towards:
            steps[:, 0 if towards in ("left", "right") else 1] = -SPEED if towards in ("left", "up") else SPEED
        case "clockwise" | "counter-clockwise" as sense:
            turned = rng.integers(0, TURN) + np.arange(frames) * (1 if sense == "clockwise" else -1)
            steps[:, :2] = _heading(turned)
        case "grow" | "shrink" as sense:
            steps[:, 2] = 1 if sense == "grow" else -1
        case "out and back":
            steps[:, :2] = np.where(np.arange(frames)[:, None] < frames // 2, diagonal, -diagonal)
        case "out and stay":
            steps[: frames // 2, :2] = diagonal[: frames // 2]
        case _:
            # headings, rests and changes of size of a third of a second: what actions consist of, and no action
            spans = -(-frames // 8)
            heading, kind = rng.integers(0, TURN, spans).repeat(8)[:frames], rng.integers(0, 4, spans).repeat(8)[:frames]
            change = rng.choice((-1, 1), spans).repeat(8)[:frames]
            steps[:, :2] = np.where((kind >= 2)[:, None], _heading(heading), 0)
            steps[:, 2] = np.where(kind == 1, change, 0)
    return steps


def _heading(turns: Array) -> Array:
    """``[N, 2]`` of the one speed, in the direction of so many ``TURN``-ths of a turn, clockwise on the screen."""
    angles = 2 * np.pi * np.arange(TURN) / TURN
    table = np.round(SPEED * np.stack([np.cos(angles), np.sin(angles)], 1)).astype(np.int64)
    return table[turns % TURN]


def _texture(rng: np.random.Generator) -> Array:
    """Dark squares of a side of its own under grain, uint8 ``[64, 64, 3]``: no frame of another moment differs in it."""
    side = int(rng.integers(4, 17))
    count = -(-SIDE // side)
    squares = rng.integers(0, 80, (count, count, 3), dtype=np.uint8).repeat(side, 0).repeat(side, 1)[:SIDE, :SIDE]
    return squares + rng.integers(0, 32, (SIDE, SIDE, 1), dtype=np.uint8)


def _mask(path: Path, shape: int) -> Array:
    """Where the sprite is, bool ``[N, 64, 64]``: a square, a disc or a diamond, across the edges of the torus."""
    pixels = np.arange(SIDE, dtype=np.int32) * ONE + ONE // 2
    half = np.int32(WORLD // 2)
    dx, dy = (np.abs((pixels - at[:, None].astype(np.int32) + half) % WORLD - half) for at in (path.x, path.y))
    radius = (np.array(RADII, dtype=np.int32) * ONE)[path.size // CHUNK][:, None, None]
    dy, dx = dy[:, :, None], dx[:, None, :]
    if shape == 0:
        return np.maximum(dy, dx) <= radius
    if shape == 1:
        return dy * dy + dx * dx <= radius * radius
    return dy + dx <= radius
