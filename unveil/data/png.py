"""Images to PNG files (ISO/IEC 15948) without a library: 8 bits, grey or RGB."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def png(pixels: Array) -> bytes:
    """uint8 ``[H, W, C]`` with C = 1 or 3 as a PNG file."""
    height, width, channels = pixels.shape
    rows = np.ascontiguousarray(pixels, dtype=np.uint8).reshape(height, -1)
    # each row begins with its filter: 1, the difference to the pixel on the left
    left = np.concatenate([np.zeros((height, channels), np.uint8), rows[:, :-channels]], axis=1)
    data = np.concatenate([np.ones((height, 1), np.uint8), rows - left], axis=1).tobytes()
    header = struct.pack(">2I5B", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(data, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def tiled(images: Array, columns: int, gap: int = 1) -> Array:
    """uint8 ``[N, H, W, C]`` in reading order as one image, ``columns`` wide, with ``gap`` pixels of mid-grey between them."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 128, np.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def magnified(pixels: Array, least: int = 512) -> Array:
    """Every pixel of ``[H, W, C]`` as a square of the most pixels that leave the longer side at ``least`` or below."""
    times = max(1, least // max(pixels.shape[:2]))
    return pixels.repeat(times, 0).repeat(times, 1)
