"""Batches of noise and data that belong together, as a flow coupled them, in the place of images and fresh noise."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from unveil.data.ahead import Ahead, Noising, State
from unveil.data.image_loader import ImageOrder, ImageSample
from unveil.data.images import Images, batch_of
from unveil.data.noise import generator

Array = np.ndarray[Any, Any]


class Coupled(NamedTuple):
    noise: Array
    """Float32 ``[N, C, H, W]``, standard normal."""
    data: Array
    """What became of it."""
    labels: Array
    """Under which class, ``[N]``; of length 0 without classes."""


class CoupledLoader(Ahead[Images]):
    """Micro-batches as of ``ImageLoader``: a permutation of the pairs every epoch. Of a family's noise ``eps`` is the pair's own."""

    def __init__(self, pairs: Coupled, batch: int, seed: int, family: Noising, rank: int = 0, world: int = 1, workers: int = 0) -> None:
        super().__init__(_Plan(pairs, batch, seed, family, rank, world), workers)


class _Plan:
    """All that a worker needs to build any batch."""

    def __init__(self, pairs: Coupled, batch: int, seed: int, family: Noising, rank: int, world: int) -> None:
        self.pairs, self.batch, self.seed, self.family, self.rank, self.world = pairs, batch, seed, family, rank, world

    def planner(self) -> ImageOrder:
        return ImageOrder(np.arange(len(self.pairs.data)), self.batch, self.seed)

    def shape(self) -> State:
        return {"seed": self.seed, "batch": self.batch, "pairs": list(self.pairs.data.shape)}

    def build(self, samples: list[ImageSample]) -> tuple[Any, dict[str, Array]]:
        items = [s.item for s in samples]
        draws = [self.family.draw(s.sample_id, s.epoch, 1, generator(self.seed, s.epoch, s.sample_id, "draw")) for s in samples]
        noise = {name: np.concatenate([d[name] for d in draws]) for name in draws[0]}
        labels = self.pairs.labels[items].tolist() if len(self.pairs.labels) else []
        return (self.pairs.data[items], [s.sample_id for s in samples], labels), {**noise, "eps": self.pairs.noise[items]}

    def finish(self, content: Any) -> Images:
        return batch_of(*content)
