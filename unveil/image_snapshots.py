"""What a sampler has made of a batch of images so far; a later step does not change it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unveil.data.images import levels
from unveil.data.png import magnified, png, tiled
from unveil.family import ImageRequest, ImageRow
from unveil.gaussian.family import Gaussian
from unveil.plane import PLANE, raster, scatter

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ImageSnapshot:
    """All images of a call of ``ImageRun.sample`` after a step; rows that were done before it stand as they ended."""

    step: int
    rows: Sequence[ImageRow]
    decode: Callable[[Tensor], Tensor] | None = None
    """Latents to images."""

    @property
    def final(self) -> bool:
        """Whether every image is done."""
        return all(row.final for row in self.rows)

    @cached_property
    def x(self) -> Array:
        """The states ``[N, C, H, W]``, float32: noise and all; of images that are done the images, in [-1, 1]."""
        return np.stack([row.image for row in self.rows])

    @cached_property
    def denoised(self) -> Array:
        """What the network made out in this step, float32 ``[N, C, H, W]``."""
        return np.stack([row.image if row.final else row.denoised for row in self.rows])

    @property
    def images(self) -> Array:
        """The same as uint8 ``[N, H, W, C]``; of latents the images that they decode to."""
        seen = torch.from_numpy(self.denoised)
        return levels(self.decode(seen) if self.decode else seen).movedim(1, -1).cpu().numpy()

    def png(self, columns: int = 0) -> bytes:
        """All images on one sheet, as a PNG file, small ones magnified; as many columns as rows unless told otherwise."""
        return png(magnified(self.sheet(columns)))

    def sheet(self, columns: int = 0) -> Array:
        """The same as pixels, uint8 ``[H, W, C]``; points as a scatter plot."""
        if self.x.shape[1:] == PLANE:
            return scatter(self.denoised)
        return tiled(self.images, columns or math.ceil(math.sqrt(len(self.rows))))

    def thumbnail(self) -> Array:
        """The same, small enough for a terminal."""
        return raster(self.denoised) if self.x.shape[1:] == PLANE else self.sheet()


def uncovered(
    family: Gaussian, model: nn.Module, requests: Sequence[ImageRequest], decode: Callable[[Tensor], Tensor] | None = None
) -> Iterator[ImageSnapshot]:
    """A snapshot after every step of the family's sampler, the last of them final. Raises UserError at once, as ``Gaussian.begin``."""
    state = family.begin(model, requests)

    def steps() -> Iterator[ImageSnapshot]:
        rows: dict[int, ImageRow] = {}
        while state.live:
            snapshot = family.step(model, state)
            rows |= {row.request: row for row in snapshot.rows}
            yield ImageSnapshot(snapshot.step, [rows[i] for i in range(len(requests))], decode)

    return steps()
