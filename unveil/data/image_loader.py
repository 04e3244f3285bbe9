"""Batches of images: training images with their augmentation and noise, and held-out images in order.

Image (of latents a draw), augmentation and noise of a sample depend on the run's seed and on the sample's global index alone; see
``unveil.data.ahead``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from unveil.config import ImageDataConfig
from unveil.data.ahead import Ahead, Noising, State
from unveil.data.augment import augmented, parameters
from unveil.data.images import Images, batch_of
from unveil.data.noise import generator
from unveil.data.pixels import PreparedImages
from unveil.errors import UserError

Array = np.ndarray[Any, Any]


class ImageSample(NamedTuple):
    sample_id: int
    """Counts images over the whole run, from 0."""
    epoch: int
    item: int
    """Of the image in its store."""


class ImageLoader(Ahead[Images]):
    """Micro-batches ``(Images, noise)`` of ``config.batch`` images without end, for one rank.

    Every epoch is a permutation of the training images of its own; a batch may hold the end of one and the beginning of the next.
    ``noise`` holds what the family drew, an array per image stacked along the first axis. Raises UserError where ``labelled`` and the
    images have no labels.
    """

    def __init__(
        self,
        prepared: PreparedImages,
        config: ImageDataConfig,
        seed: int,
        family: Noising,
        rank: int = 0,
        world: int = 1,
        labelled: bool = False,
    ) -> None:
        if labelled:
            _with_labels(prepared)
        super().__init__(_Plan(prepared, config, seed, family, rank, world, labelled), config.workers)


class _Plan:
    """All that a worker needs to build any batch."""

    def __init__(
        self, prepared: PreparedImages, config: ImageDataConfig, seed: int, family: Noising, rank: int, world: int, labelled: bool
    ) -> None:
        self.prepared, self.train = prepared, prepared.parts["train"]
        self.config, self.seed, self.family, self.rank, self.world, self.labelled = config, seed, family, rank, world, labelled

    def planner(self) -> ImageOrder:
        return ImageOrder(self.train, self.config.batch, self.seed)

    def shape(self) -> State:
        augment = [self.config.augment.probability, *self.config.augment.kinds]
        encoded = [rows.key for rows in (self.prepared.latents, self.prepared.embeddings) if rows is not None]
        images = [len(self.train), *self.prepared.store.shape, *encoded]
        return {"seed": self.seed, "batch": self.config.batch, "images": images, "augment": augment}

    def build(self, samples: list[ImageSample]) -> tuple[Any, dict[str, Array]]:
        images, done, draws = [], [], []
        augments, drawn = parameters(self.config.augment) > 0, self.prepared.latents is not None
        for sample_id, epoch, item in samples:
            x = self.prepared.values(item, generator(self.seed, epoch, sample_id, "latent") if drawn else None)
            if augments:
                x, vector = augmented(x, self.config.augment, generator(self.seed, epoch, sample_id, "augment"))
                done.append(vector)
            images.append(x)
            draws.append(self.family.draw(sample_id, epoch, 1, generator(self.seed, epoch, sample_id, "draw")))
        items = [s.item for s in samples]
        labels = self.prepared.store.labels[items].tolist() if self.labelled else []
        noise = {name: np.concatenate([d[name] for d in draws]) for name in draws[0]}
        return (images, [s.sample_id for s in samples], labels, done, _embeddings(self.prepared, items)), noise

    def finish(self, content: Any) -> Images:
        return batch_of(*content)


class ImageOrder:
    """The order of training: a number is all of its state."""

    def __init__(self, train: Array, batch: int, seed: int) -> None:
        self._train, self._batch, self._seed = train, batch, seed
        self._next = 0
        self._current: tuple[int, Array] | None = None

    def next(self) -> list[ImageSample]:
        first, self._next = self._next, self._next + self._batch
        return [self._sample(sample_id) for sample_id in range(first, self._next)]

    def _sample(self, sample_id: int) -> ImageSample:
        epoch, place = divmod(sample_id, len(self._train))
        if self._current is None or self._current[0] != epoch:
            self._current = epoch, generator(self._seed, epoch, 0, "order").permutation(len(self._train))
        return ImageSample(sample_id, epoch, int(self._train[self._current[1][place]]))

    def state(self) -> State:
        return {"next_id": self._next}

    def restore(self, state: State) -> None:
        self._next = int(state["next_id"])


def held_out_images(prepared: PreparedImages, config: ImageDataConfig, limit: int = 0, labelled: bool = False) -> Iterator[Images]:
    """The held-out images in the order of the source, not augmented, in batches of ``config.batch``; sample ids count from 0.

    ``limit`` takes only the first so many, 0 all. Raises UserError where nothing is held out, or ``labelled`` and there are no labels.
    """
    index = prepared.parts["validation"][: limit or None]
    if not len(index):
        raise UserError("data.hold_out", f"{config.hold_out} holds none of {len(prepared.store)} images out", "set it to 10")
    if labelled:
        _with_labels(prepared)
    for start in range(0, len(index), config.batch):
        part = index[start : start + config.batch]
        labels = prepared.store.labels[part].tolist() if labelled else []
        nothing = np.zeros(parameters(config.augment), dtype=np.float32)
        augmentation = [nothing] * len(part) if len(nothing) else []
        images = [prepared.values(int(i)) for i in part]
        yield batch_of(images, range(start, start + len(part)), labels, augmentation, _embeddings(prepared, part))


def _embeddings(prepared: PreparedImages, items: Sequence[int] | Array) -> list[Array]:
    return [] if prepared.embeddings is None else [prepared.embeddings.row("embedding", int(i)) for i in items]


def _with_labels(prepared: PreparedImages) -> None:
    if missing := int((prepared.store.labels < 0).sum()):
        problem = f"{missing:,} of {len(prepared.store):,} images have no label, and the model is conditioned on classes"
        raise UserError("data.labels", problem, "give labels, or set objective.conditional to false")
