"""Batches of images: the one form in which images reach a family. N images, C channels, H x W pixels, A augmentation parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

LEVELS = 256


@dataclass(frozen=True)
class Images:
    """N images in [-1, 1], float32. ``labels_N`` are classes (int64), ``augmentation_NA`` what was done to each image (float32; zeros
    are nothing), ``embedding_NE`` what its caption says (float32), ``sample_ids_N`` global sample indices."""

    x_NCHW: Tensor
    sample_ids_N: Tensor
    labels_N: Tensor | None = None
    augmentation_NA: Tensor | None = None
    embedding_NE: Tensor | None = None

    unit: ClassVar[str] = "images"

    @property
    def size(self) -> int:
        """What the trainer counts: images."""
        return len(self.x_NCHW)

    def split(self) -> list[Images]:
        """One batch per image."""
        return [self._each(lambda value, i=i: value[i : i + 1]) for i in range(self.size)]

    def to(self, device: torch.device | str) -> Images:
        return self._each(lambda value: value.to(device))

    def _each(self, change: Any) -> Images:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: change(value) for name, value in values.items() if value is not None})


def normalised(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """uint8 ``[..., H, W, C]`` to float32 ``[..., C, H, W]`` in [-1, 1]: level k becomes 2 k / 255 - 1."""
    return np.ascontiguousarray(np.moveaxis(pixels, -1, -3), dtype=np.float32) / np.float32(127.5) - np.float32(1)


def levels(x: Tensor) -> Tensor:
    """Values in [-1, 1] to the nearest of 256 levels, uint8; what lies outside is clipped."""
    return ((x.double() + 1) * ((LEVELS - 1) / 2)).round_().clamp_(0, LEVELS - 1).to(torch.uint8)


def batch_of(
    images: Sequence[np.ndarray[Any, Any]],
    sample_ids: Sequence[int],
    labels: Sequence[int],
    augmentation: Sequence[Any] = (),
    embeddings: Sequence[Any] = (),
) -> Images:
    """Float images ``[C, H, W]`` and what belongs to them; empty labels, augmentation or embeddings mean that there are none."""
    return Images(
        torch.from_numpy(np.stack(images)),
        torch.tensor(list(sample_ids), dtype=torch.int64),
        torch.tensor(list(labels), dtype=torch.int64) if len(labels) else None,
        torch.from_numpy(np.stack(augmentation).astype(np.float32)) if len(augmentation) else None,
        torch.from_numpy(np.stack(embeddings)) if len(embeddings) else None,
    )
