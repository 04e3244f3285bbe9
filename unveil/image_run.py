"""Runs of images: sampled with any solver, by class, and judged by distances and bits per dimension."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unveil.config import GaussianRecipe, GaussianSamplerConfig, ImageDataConfig
from unveil.data.image_loader import held_out_images
from unveil.data.images import normalised
from unveil.data.pictures import Unreadable, pictures
from unveil.data.pixels import PreparedImages, prepare_images
from unveil.encoders import Encoders
from unveil.errors import UserError, nearest
from unveil.evaluation.features import Features, of_classifier, of_inception
from unveil.evaluation.fidelity import Fidelity, fidelity
from unveil.evaluation.points import Sliced, sliced
from unveil.evaluation.seeds import over_seeds
from unveil.families import images
from unveil.family import ImageRequest
from unveil.gaussian.family import Gaussian
from unveil.gaussian.interpolation import slerp
from unveil.gaussian.sampling import OPTIONS
from unveil.image_snapshots import ImageSnapshot as ImageSnapshot
from unveil.image_snapshots import uncovered
from unveil.image_training import ImageTraining as ImageTraining
from unveil.plane import PLANE
from unveil.trained import Run
from unveil.training import final

BATCH = 250
"""Images sampled at a time where many are wanted."""
Distance = Fidelity | Sliced

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class BitsPerDim:
    """Held-out bits per value of an 8-bit image: an upper bound in expectation."""

    bits: float
    stderr: float
    """Over the images, the draws included."""
    images: int


@dataclass(frozen=True)
class Straightness:
    """The mean over samples of what ``gaussian.rectified.Transported`` holds: 0 where every path is a straight line."""

    value: float
    stderr: float
    samples: int


@dataclass(frozen=True)
class ImageRun(Run):
    """A trained model of images with all that belongs to it. ``shape`` is what the network sees, pixels or latents; ``classes`` are the
    names of the labels, empty where it has none."""

    path: Path
    folder: Path
    recipe: GaussianRecipe
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    model: nn.Module
    encoders: Encoders = field(default_factory=Encoders)
    _known: dict[tuple[str, str], Features] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def read(path: Path, folder: Path, recipe: GaussianRecipe, config: dict[str, Any]) -> ImageRun:
        """From its folder, the weights on the CPU. Raises UserError for what is missing, damaged or does not belong together."""
        try:
            channels, height, width = (int(n) for n in config["shape"])
            classes = tuple(str(name) for name in config["classes"])
        except (KeyError, TypeError, ValueError):
            problem = "is corrupted: 'shape' and 'classes' of the images are not in it"
            raise UserError(str(folder / final.CONFIG), problem, "copy final/ from where it was trained") from None
        encoders = Encoders.of(recipe.data, folder)
        model = images(recipe, (channels, height, width), len(classes), encoders.embedding).build()
        final.read(folder, model)
        return ImageRun(path, folder, recipe, (channels, height, width), classes, model, encoders)

    def with_sampler(self, **settings: Any) -> ImageRun:
        """As ``Run.with_sampler``; another solver leaves the options of the one before behind, another path its grid."""
        now, plain = self.recipe.sampler, GaussianSamplerConfig()
        gone = [name for name in OPTIONS if settings.get("kind", now.kind) != now.kind]
        gone += [name for name in ("grid", "rho", "n_min", "n_max", "shift") if settings.get("path", now.path) != now.path]
        sampler = replace(now, **{name: getattr(plain, name) for name in gone})
        return super(ImageRun, replace(self, recipe=replace(self.recipe, sampler=sampler))).with_sampler(**settings)

    @property
    def points(self) -> bool:
        """Whether these are points in the plane."""
        return self.shape == PLANE

    @cached_property
    def family(self) -> Gaussian:
        return images(self.recipe, self.shape, len(self.classes), self.encoders.embedding)

    def sample(
        self, num: int = 16, *, label: str | int | None = None, prompt: str | None = None, seed: int = 0, **sampler: Any
    ) -> Iterator[ImageSnapshot]:
        """Uncover images; yields a snapshot after every step of the solver, the last of them final.

        Args:
            num: how many.
            label: the class of all of them, by name or number; None leaves it open.
            prompt: what all of them show, in words; None leaves it open.
            seed: of the first; the next ones have the seeds after it. An image is the same alone and in any batch.
            sampler: settings of the recipe's sampler section, for this call.

        Raises:
            UserError: at once, for a setting that does not exist, a solver that cannot be, a class that the model does not know, or words
                where it knows none.
        """
        if num < 1:
            raise UserError("num", f"got {num}", "ask for at least one image")
        run = self.with_sampler(**sampler) if sampler else self
        told = self._told(label, prompt)
        return run._uncover([ImageRequest(self.shape, seed + i, **told) for i in range(num)])

    def interpolate(
        self, first: int, second: int, num: int = 8, *, label: str | int | None = None, prompt: str | None = None
    ) -> Iterator[ImageSnapshot]:
        """The images of ``num`` latents on the arc between those of two seeds, both ends included; as ``sample``.

        Raises UserError for fewer than two.
        """
        if num < 2:
            raise UserError("num", f"got {num}", "ask for at least two images, the ends")
        ends = self.family.latents([first, second])
        share = torch.linspace(0, 1, num, dtype=torch.float64)
        latents = slerp(ends[:1].expand(num, -1, -1, -1), ends[1:].expand(num, -1, -1, -1), share).numpy()
        told = self._told(label, prompt)
        return self._uncover([ImageRequest(self.shape, first, latent=latent, **told) for latent in latents])

    def inpaint(
        self,
        known: Array,
        hole: Sequence[int],
        num: int = 16,
        *,
        label: str | int | None = None,
        prompt: str | None = None,
        seed: int = 0,
        **sampler: Any,
    ) -> Iterator[ImageSnapshot]:
        """Ways to fill a hole in an image, as ``sample``.

        Args:
            known: what ``image`` gives, float32 ``[C, H, W]``.
            hole: left, top, right and bottom in pixels, right and bottom not included.

        Raises:
            UserError: a hole that is none or leaves the image, a solver that cannot inpaint.
        """
        factor, (_, height, width) = self.encoders.factor, self.encoders.pixels(self.shape)
        left, top, right, bottom = hole
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            problem = f"got {left},{top},{right},{bottom} for images of {width} x {height} pixels"
            raise UserError("--hole", problem, "give left,top,right,bottom within the image")
        if any(edge % factor for edge in hole):
            problem = f"got {left},{top},{right},{bottom}, a latent is {factor} x {factor} pixels"
            raise UserError("--hole", problem, f"give multiples of {factor}")
        left, top, right, bottom = (edge // factor for edge in hole)
        _, height, width = self.shape
        mask = np.ones((height, width), dtype=np.bool_)
        mask[top:bottom, left:right] = False
        run = self.with_sampler(**sampler) if sampler else self
        told = self._told(label, prompt)
        return run._uncover([ImageRequest(self.shape, seed + i, known=known, mask=mask, **told) for i in range(num)])

    def reconstruct(self, image: Array, *, label: str | int | None = None, prompt: str | None = None) -> Iterator[ImageSnapshot]:
        """From what ``image`` gives ``[C, H, W]`` to its noise by the sampler's steps run backwards, and back; as ``sample``.

        Raises UserError for a solver that draws noise.
        """
        told = self._told(label, prompt)
        x = torch.from_numpy(image)[None].to(next(self.model.parameters()).device)
        latent = self.family.invert(self.model, x, [told["label"]], [told["embedding"]])
        return self._uncover([ImageRequest(self.shape, 0, latent=latent[0].cpu().numpy(), **told)])

    def _uncover(self, requests: Sequence[ImageRequest]) -> Iterator[ImageSnapshot]:
        return uncovered(self.family, self.model, requests, self.encoders.decode)

    def image(self, name: str) -> Array:
        """An image file, or the held-out image of that number, as the network sees it: float32 ``[C, H, W]`` in [-1, 1], or its latents.

        Raises UserError for what is no image of the run's shape.
        """
        if name.isdecimal():
            prepared = self._prepared()
            held = prepared.parts["validation"]
            if int(name) >= len(held):
                raise UserError("image", f"got {name}, {len(held)} are held out", "give a smaller number, or a file")
            return prepared.values(int(held[int(name)])).copy()
        if self.points:
            raise UserError("image", f"got '{name}', this is a run of points", "give the number of a held-out one")
        channels, height, width = self.encoders.pixels(self.shape)
        found = next(pictures(ImageDataConfig(kind="folder", path=name, mode="grey" if channels == 1 else "rgb")))
        if isinstance(found, Unreadable):
            raise UserError(name, f"cannot be read as an image ({found.reason})", "give another file")
        if found.pixels.shape != (height, width, channels):
            problem = f"is {found.pixels.shape[1]} x {found.pixels.shape[0]} pixels, the model's are {width} x {height}"
            raise UserError(name, problem, "scale it first")
        return self.encoders.encode(normalised(found.pixels))

    def generate(
        self, num: int = 16, *, label: str | int | None = None, prompt: str | None = None, seed: int = 0, **sampler: Any
    ) -> Tensor:
        """The final images of ``sample``, ``[N, C, H, W]`` in [-1, 1], made some at a time."""
        run = self.with_sampler(**sampler) if sampler else self
        done = []
        for start in range(0, num, BATCH):
            *_, last = run.sample(min(BATCH, num - start), label=label, prompt=prompt, seed=seed + start)
            done.append(self.encoders.decode(torch.from_numpy(last.x)))
        return torch.cat(done)

    def label(self, name: str | int | None) -> int | None:
        """The number of a class. Raises UserError for one that there is not."""
        if name is None or isinstance(name, int):
            return name
        if not self.classes:
            raise UserError(
                "label", f"got {name!r}, the model knows no classes", "leave it out, or train with --objective.conditional true"
            )
        if name not in self.classes and name.isdecimal() and int(name) < len(self.classes):
            return int(name)
        if name not in self.classes:
            raise UserError("label", f"got {name!r}", nearest(name, self.classes))
        return self.classes.index(name)

    def _told(self, label: str | int | None, prompt: str | None) -> dict[str, Any]:
        """What the network is told of an image, for its request."""
        return {"label": self.label(label), "embedding": self.encoders.embed(prompt)}

    def evaluate(self, limit: int | None = None, draws: int | None = None, seed: int = 0) -> BitsPerDim:
        """Held-out bits per dimension, by the probability flow.

        Args:
            limit: how many images at the most, 0 for all; None takes the recipe's.
            draws: of dequantisation and probe per image; None takes the recipe's.

        Raises:
            UserError: nothing is held out, or the data are gone; latents and points, which have no such measure.
        """
        if self.encoders.autoencoder is not None:
            problem = "this run makes latents, and the decoder gives images no density that theirs could be carried to"
            raise UserError("--bits", problem, "compare by distances, which are between decoded images")
        if self.points:
            raise UserError("--bits", "this run makes points, which have no 256 levels to be coded in", "compare by distances")
        config = self.recipe.evaluation
        labelled = self.recipe.objective.conditional
        batches = held_out_images(self._prepared(labelled), self.recipe.data, config.tokens if limit is None else limit, labelled)
        found = [self.family.log_likelihood(self.model, batch, config.draws if draws is None else draws, seed)[0] for batch in batches]
        bits = -torch.cat(found) / (math.log(2) * math.prod(self.shape))
        return BitsPerDim(float(bits.mean()), float(bits.std() / math.sqrt(len(bits))) if len(bits) > 1 else math.nan, len(bits))

    def distance(self, samples: int | None = None, inception: str = "", seed: int = 0, family: Gaussian | None = None) -> Distance:
        """How far what is made is from what is real: ``fidelity`` of images, ``evaluation.points.sliced`` of points to held-out ones."""
        if not self.points:
            return self.fidelity(samples, inception, seed, family)
        prepared = self._prepared()
        if not len(prepared.parts["validation"]):
            raise UserError("data.hold_out", f"{self.recipe.data.hold_out} holds no points out to compare with", "set it to 10")
        train, held = (np.stack([prepared.values(int(i)).reshape(2) for i in prepared.parts[part]]) for part in ("train", "validation"))
        count = (self.recipe.evaluation.samples if samples is None else samples) or len(held)
        return sliced(self._with(family).generate(count, seed=seed).flatten(1).numpy(), held, train)

    def fidelity(self, samples: int | None = None, inception: str = "", seed: int = 0, family: Gaussian | None = None) -> Fidelity:
        """Distances of generated images to the training images (at most as many of these as are generated, from the first).

        Args:
            samples: how many to generate; None takes the recipe's.
            inception: the file of Inception's weights; empty takes a small classifier of the same images.
        """
        prepared = self._source()
        train = prepared.parts["train"]
        count = (self.recipe.evaluation.samples if samples is None else samples) or len(train)
        features = self._features(prepared, inception)
        real = torch.from_numpy(normalised(np.stack([prepared.store[int(i)] for i in train[: max(count, 1000)]])))
        return fidelity(self._with(family).generate(count, seed=seed), real, features)

    def straightness(self, samples: int = 256, steps: int = 100, seed: int = 0) -> Straightness:
        """How far the flow's trajectories are from straight lines (Liu et al. 2023), over samples told nothing, or of the classes in turn
        where the network must be told one; see ``gaussian.rectified.transport``."""
        seeds = range(seed, seed + samples)
        labels = [i % len(self.classes) for i in seeds] if self.classes and not self.recipe.model.null_class else []
        noise, device = self.family.latents(seeds), next(self.model.parameters()).device
        found = torch.cat(
            [
                self.family.transport(self.model, noise[i : i + BATCH].to(device), steps, labels[i : i + BATCH]).straightness_B.cpu()
                for i in range(0, samples, BATCH)
            ]
        )
        return Straightness(float(found.mean()), float(found.std() / math.sqrt(samples)), samples)

    def against_evaluations(
        self,
        counts: Sequence[int],
        solvers: Sequence[str] = (),
        samples: int | None = None,
        inception: str = "",
        seed: int = 0,
        seeds: int = 1,
    ) -> list[tuple[str, int, Distance]]:
        """(solver, network evaluations, distance) for each solver at each number of evaluations, the same seeds for all; see ``distances``.

        Raises UserError for a solver that there is not, and for fewer evaluations than one needs.
        """
        rows = []
        for solver in solvers or (self.recipe.sampler.kind,):
            for count in counts:
                family = self.family.with_evaluations(self.model, count, solver)
                rows.append((solver, family.evaluations(self.model), self.distances(samples, inception, seed, seeds, family)))
        return rows

    def distances(
        self, samples: int | None = None, inception: str = "", seed: int = 0, seeds: int = 1, family: Gaussian | None = None
    ) -> Distance:
        """``distance`` as its mean over ``seeds`` disjoint sets of generated samples, the standard errors then over these."""
        first = self.distance(samples, inception, seed, family)
        return over_seeds([first, *(self.distance(samples, inception, seed + i * first.samples, family) for i in range(1, seeds))])

    def _features(self, prepared: PreparedImages, inception: str) -> Features:
        """Read or trained once, however many distances are asked for."""
        key = (str(prepared.folder), inception)
        if key not in self._known:
            self._known[key] = of_inception(inception) if inception else of_classifier(prepared)
        return self._known[key]

    def _prepared(self, labelled: bool = False) -> PreparedImages:
        return self.encoders.prepared(self._source(labelled))

    def _source(self, labelled: bool = False) -> PreparedImages:
        """The data before any encoder; ``labelled`` with the classes of the run."""
        if self.recipe.data.kind == "folder" and not self.recipe.data.path:
            problem = "this model came without the images that it was trained on"
            raise UserError("--data", problem, "give such images to `unveil evaluate`, a file instead of a number to `unveil sample`")
        prepared = prepare_images(self.recipe.data)
        if prepared.shape != self.encoders.pixels(self.shape) or (labelled and prepared.classes != self.classes):
            raise UserError("data.path", "the images differ in shape or classes from those that the model was trained on", "restore those")
        return prepared

    def _with(self, family: Gaussian | None) -> ImageRun:
        if family is None:
            return self
        return replace(self, recipe=replace(self.recipe, sampler=family.sampler))
