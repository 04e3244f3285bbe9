"""Runs of images: sampled with any solver, by class, and judged by distances and bits per dimension."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unveil import corpora
from unveil.config import GaussianRecipe, ImageDataConfig
from unveil.data.image_loader import ImageLoader, held_out_images
from unveil.data.images import levels, normalised
from unveil.data.pictures import Unreadable, pictures
from unveil.data.pixels import PreparedImages, prepare_images
from unveil.data.png import png, tiled
from unveil.errors import UserError, nearest
from unveil.evaluation.features import Features, of_classifier, of_inception
from unveil.evaluation.fidelity import Fidelity, fidelity
from unveil.evaluation.loss import held_out_loss
from unveil.families import images
from unveil.family import ImageGrid, ImageRequest, ImageRow
from unveil.gaussian.family import Gaussian
from unveil.gaussian.interpolation import slerp
from unveil.report.evidence import Evidence
from unveil.trained import Run
from unveil.training import final

SHOWN = 64
"""Images drawn for the page and for ``samples/``."""
FRAMES = 24
"""Steps of a trajectory on the page, at the most."""
BATCH = 250
"""Images sampled at a time where many are wanted."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ImageSnapshot:
    """All images of a call of ``ImageRun.sample`` after a step; rows that were done before it stand as they ended."""

    step: int
    rows: Sequence[ImageRow]

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
        """The same as uint8 ``[N, H, W, C]``."""
        return levels(torch.from_numpy(self.denoised)).movedim(1, -1).numpy()

    def png(self, columns: int = 0) -> bytes:
        """All images on one sheet, as a PNG file; as many columns as rows unless told otherwise."""
        return png(self.sheet(columns))

    def sheet(self, columns: int = 0) -> Array:
        return tiled(self.images, columns or math.ceil(math.sqrt(len(self.rows))))


@dataclass(frozen=True)
class BitsPerDim:
    """Held-out bits per value of an 8-bit image: an upper bound in expectation."""

    bits: float
    stderr: float
    """Over the images, the draws included."""
    images: int


@dataclass(frozen=True)
class ImageRun(Run):
    """A trained model of images with all that belongs to it. ``classes`` are the names of the labels, empty where it has none."""

    path: Path
    folder: Path
    recipe: GaussianRecipe
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    model: nn.Module

    @staticmethod
    def read(path: Path, folder: Path, recipe: GaussianRecipe, config: dict[str, Any]) -> ImageRun:
        """From its folder, the weights on the CPU. Raises UserError for what is missing, damaged or does not belong together."""
        try:
            channels, height, width = (int(n) for n in config["shape"])
            classes = tuple(str(name) for name in config["classes"])
        except (KeyError, TypeError, ValueError):
            problem = "is corrupted: 'shape' and 'classes' of the images are not in it"
            raise UserError(str(folder / final.CONFIG), problem, "copy final/ from where it was trained") from None
        model = images(recipe, (channels, height, width), len(classes)).build()
        final.read(folder, model)
        return ImageRun(path, folder, recipe, (channels, height, width), classes, model)

    @cached_property
    def family(self) -> Gaussian:
        return images(self.recipe, self.shape, len(self.classes))

    def sample(self, num: int = 16, *, label: str | int | None = None, seed: int = 0, **sampler: Any) -> Iterator[ImageSnapshot]:
        """Uncover images; yields a snapshot after every step of the solver, the last of them final.

        Args:
            num: how many.
            label: the class of all of them, by name or number; None leaves it open.
            seed: of the first; the next ones have the seeds after it. An image is the same alone and in any batch.
            sampler: settings of the recipe's sampler section, for this call.

        Raises:
            UserError: at once, for a setting that does not exist, a solver that cannot be, or a class that the model does not know.
        """
        if num < 1:
            raise UserError("num", f"got {num}", "ask for at least one image")
        run = self.with_sampler(**sampler) if sampler else self
        number = self.label(label)
        return run._uncover([ImageRequest(self.shape, seed + i, number) for i in range(num)])

    def interpolate(self, first: int, second: int, num: int = 8, *, label: str | int | None = None) -> Iterator[ImageSnapshot]:
        """The images of ``num`` latents on the arc between those of two seeds, both ends included; as ``sample``.

        Raises UserError for fewer than two.
        """
        if num < 2:
            raise UserError("num", f"got {num}", "ask for at least two images, the ends")
        ends = self.family.latents([first, second])
        share = torch.linspace(0, 1, num, dtype=torch.float64)
        latents = slerp(ends[:1].expand(num, -1, -1, -1), ends[1:].expand(num, -1, -1, -1), share).numpy()
        number = self.label(label)
        return self._uncover([ImageRequest(self.shape, first, number, latent) for latent in latents])

    def inpaint(
        self, known: Array, hole: Sequence[int], num: int = 16, *, label: str | int | None = None, seed: int = 0, **sampler: Any
    ) -> Iterator[ImageSnapshot]:
        """Ways to fill a hole in an image, as ``sample``.

        Args:
            known: float32 ``[C, H, W]`` in [-1, 1].
            hole: left, top, right and bottom in pixels, right and bottom not included.

        Raises:
            UserError: a hole that is none or leaves the image, a solver that cannot inpaint.
        """
        left, top, right, bottom = hole
        _, height, width = self.shape
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            problem = f"got {left},{top},{right},{bottom} for images of {width} x {height} pixels"
            raise UserError("--hole", problem, "give left,top,right,bottom within the image")
        mask = np.ones((height, width), dtype=np.bool_)
        mask[top:bottom, left:right] = False
        run = self.with_sampler(**sampler) if sampler else self
        number = self.label(label)
        return run._uncover([ImageRequest(self.shape, seed + i, number, known=known, mask=mask) for i in range(num)])

    def reconstruct(self, image: Array, *, label: str | int | None = None) -> Iterator[ImageSnapshot]:
        """From an image ``[C, H, W]`` to its noise by the sampler's steps run backwards, and back; as ``sample``.

        Raises UserError for a solver that draws noise.
        """
        number = self.label(label)
        latent = self.family.invert(self.model, torch.from_numpy(image)[None].to(next(self.model.parameters()).device), [number])
        return self._uncover([ImageRequest(self.shape, 0, number, latent[0].cpu().numpy())])

    def _uncover(self, requests: Sequence[ImageRequest]) -> Iterator[ImageSnapshot]:
        kind = self.family
        state = kind.begin(self.model, requests)

        def steps() -> Iterator[ImageSnapshot]:
            rows: dict[int, ImageRow] = {}
            while state.live:
                snapshot = kind.step(self.model, state)
                rows |= {row.request: row for row in snapshot.rows}
                yield ImageSnapshot(snapshot.step, [rows[i] for i in range(len(requests))])

        return steps()

    def image(self, name: str) -> Array:
        """An image file, or the held-out image of that number, as float32 ``[C, H, W]`` in [-1, 1].

        Raises UserError for what is no image of the run's shape.
        """
        if name.isdecimal():
            prepared = self._prepared()
            held = prepared.parts["validation"]
            if int(name) >= len(held):
                raise UserError("image", f"got {name}, {len(held)} are held out", "give a smaller number, or a file")
            return normalised(prepared.store[int(held[int(name)])])
        found = next(pictures(ImageDataConfig(kind="folder", path=name, mode="grey" if self.shape[0] == 1 else "rgb")))
        if isinstance(found, Unreadable):
            raise UserError(name, f"cannot be read as an image ({found.reason})", "give another file")
        channels, height, width = self.shape
        if found.pixels.shape != (height, width, channels):
            problem = f"is {found.pixels.shape[1]} x {found.pixels.shape[0]} pixels, the model's are {width} x {height}"
            raise UserError(name, problem, "scale it first")
        return normalised(found.pixels)

    def generate(self, num: int = 16, *, label: str | int | None = None, seed: int = 0, **sampler: Any) -> Tensor:
        """The final images of ``sample``, ``[N, C, H, W]`` in [-1, 1], made some at a time."""
        run = self.with_sampler(**sampler) if sampler else self
        done = []
        for start in range(0, num, BATCH):
            *_, last = run.sample(min(BATCH, num - start), label=label, seed=seed + start)
            done.append(torch.from_numpy(last.x))
        return torch.cat(done)

    def label(self, name: str | int | None) -> int | None:
        """The number of a class. Raises UserError for one that there is not."""
        if name is None or isinstance(name, int):
            return name
        if not self.classes:
            raise UserError(
                "label", f"got {name!r}, the model knows no classes", "leave it out, or train with --objective.conditional true"
            )
        if name not in self.classes:
            raise UserError("label", f"got {name!r}", nearest(name, self.classes))
        return self.classes.index(name)

    def evaluate(self, limit: int | None = None, draws: int | None = None, seed: int = 0) -> BitsPerDim:
        """Held-out bits per dimension, by the probability flow.

        Args:
            limit: how many images at the most, 0 for all; None takes the recipe's.
            draws: of dequantisation and probe per image; None takes the recipe's.

        Raises:
            UserError: nothing is held out, or the data are gone.
        """
        config = self.recipe.evaluation
        batches = held_out_images(
            self._prepared(), self.recipe.data, config.tokens if limit is None else limit, self.recipe.objective.conditional
        )
        found = [self.family.log_likelihood(self.model, batch, config.draws if draws is None else draws, seed)[0] for batch in batches]
        bits = -torch.cat(found) / (math.log(2) * math.prod(self.shape))
        return BitsPerDim(float(bits.mean()), float(bits.std() / math.sqrt(len(bits))) if len(bits) > 1 else math.nan, len(bits))

    def fidelity(self, samples: int | None = None, inception: str = "", seed: int = 0, family: Gaussian | None = None) -> Fidelity:
        """Distances of generated images to the training images (at most as many of these as are generated, from the first).

        Args:
            samples: how many to generate; None takes the recipe's.
            inception: the file of Inception's weights; empty takes a small classifier of the same images.
        """
        prepared = self._prepared()
        train = prepared.parts["train"]
        count = (self.recipe.evaluation.samples if samples is None else samples) or len(train)
        features: Features = of_inception(inception) if inception else of_classifier(prepared)
        real = torch.from_numpy(normalised(np.stack([prepared.store[int(i)] for i in train[: max(count, 1000)]])))
        return fidelity(self._with(family).generate(count, seed=seed), real, features)

    def against_evaluations(
        self, counts: Sequence[int], solvers: Sequence[str] = (), samples: int | None = None, inception: str = "", seed: int = 0
    ) -> list[tuple[str, int, Fidelity]]:
        """(solver, network evaluations, fidelity) for each solver at each number of evaluations, the same seeds for all.

        Raises UserError for a solver that there is not, and for fewer evaluations than one needs.
        """
        rows = []
        for solver in solvers or (self.recipe.sampler.kind,):
            for count in counts:
                family = self.family.with_evaluations(self.model, count, solver)
                rows.append((solver, family.evaluations(self.model), self.fidelity(samples, inception, seed, family)))
        return rows

    def _prepared(self) -> PreparedImages:
        prepared = prepare_images(self.recipe.data)
        if prepared.shape != self.shape or (self.recipe.objective.conditional and prepared.classes != self.classes):
            raise UserError("data.path", "the images have changed since the run was trained", "restore them")
        return prepared

    def _with(self, family: Gaussian | None) -> ImageRun:
        if family is None:
            return self
        return replace(self, recipe=replace(self.recipe, sampler=family.sampler))


class ImageTraining:
    """A recipe's images, family and scores, as ``unveil.run.train`` asks for them."""

    def __init__(self, recipe: GaussianRecipe, directory: Path, shown: bool) -> None:
        self.recipe, self.directory = recipe, directory
        self.prepared = corpora.prepared_images(recipe.data, shown)
        self.classes = self.prepared.classes if recipe.objective.conditional else ()
        self.family = images(recipe, self.prepared.shape, len(self.classes))

    @property
    def scores(self) -> bool:
        return len(self.prepared.parts["validation"]) > 0

    def loader(self, rank: int, world: int) -> ImageLoader:
        recipe = self.recipe
        return ImageLoader(self.prepared, recipe.data, recipe.seed, self.family, rank, world, recipe.objective.conditional)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The loss on held-out images."""
        config = self.recipe.evaluation
        batches = held_out_images(self.prepared, self.recipe.data, config.tokens, self.recipe.objective.conditional)
        found = held_out_loss(self.family, model, batches, config.draws, self.recipe.seed)
        return {name: found[name] for name in ("loss", "vlb") if name in found}

    def sample(self, model: nn.Module, step: int) -> None:
        *_, last = ImageRun(self.directory, self.directory, self.recipe, self.prepared.shape, self.classes, model).sample(SHOWN)
        folder = self.directory / "samples"
        folder.mkdir(exist_ok=True)
        (folder / f"step-{step:08d}.png").write_bytes(last.png())

    def export(self, folder: Path) -> dict[str, Any]:
        return {"shape": list(self.prepared.shape), "classes": list(self.classes)}

    def evidence(self, run: ImageRun) -> Evidence:
        snapshots = list(run.sample(SHOWN))
        return Evidence(
            views=[samples(snapshots[-1]), trajectory(snapshots), *self.family.views(run)],
            costs={"parameters": run.parameters(), "flops_per_image": run.model.flops_per_sample()},  # type: ignore[operator]
        )


def samples(snapshot: ImageSnapshot) -> ImageGrid:
    """The images of a snapshot for a page."""
    return _grid("Samples", [snapshot], "Made from noise, not chosen.")


def trajectory(snapshots: Sequence[ImageSnapshot]) -> ImageGrid:
    """What the network made out of the noise, step by step, at ``FRAMES`` steps at the most; the first and the last are among them."""
    places = sorted({round(i * (len(snapshots) - 1) / (FRAMES - 1)) for i in range(FRAMES)})
    note = "The image that the network makes out at each step: first the mean of all images, then one of them."
    return _grid("Images out of noise", [snapshots[i] for i in places], note)


def _grid(title: str, snapshots: Sequence[ImageSnapshot], note: str) -> ImageGrid:
    sheets = [snapshot.sheet() for snapshot in snapshots]
    height, width, _ = sheets[0].shape
    coded = [base64.b64encode(png(sheet)).decode() for sheet in sheets]
    return ImageGrid(title, coded, [f"step {snapshot.step}" for snapshot in snapshots], width, height, note)
