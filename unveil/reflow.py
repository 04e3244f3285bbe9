"""Reflow from a recipe: the teacher, whose weights a student begins with, and the pairs of noise and data that it makes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import nn

from unveil import recipe as recipes
from unveil.config import GaussianRecipe
from unveil.data.coupled import Coupled
from unveil.data.noise import generator
from unveil.data.pixels import PreparedImages
from unveil.environment import device
from unveil.errors import UserError
from unveil.families import images
from unveil.gaussian.coupling import Pairs
from unveil.gaussian.family import Gaussian
from unveil.training import final
from unveil.training.weights import assign, weights

PART = 250
"""Pairs in a file: what an interruption may cost."""
FORM = ("path", "predicts", "preconditioning", "sigma_data", "time_scale")
"""Settings of the objective that say what a network's output means."""


@dataclass(frozen=True)
class Teacher:
    path: Path
    family: Gaussian
    model: nn.Module

    @staticmethod
    def read(recipe: GaussianRecipe, prepared: PreparedImages) -> Teacher:
        """The teacher that a recipe names, for a student of these images.

        Raises UserError where it is missing or damaged, of another family, shape, classes, or another form of output; and for a recipe
        whose images are augmented or come with texts, of which pairs know nothing.
        """
        path = Path(recipe.objective.teacher)
        folder = path / "final" if (path / "final").is_dir() else path
        if not (folder / final.CONFIG).is_file():
            raise UserError("objective.teacher", f"{path} is no finished run", "train it first, or give another run directory")
        config = final.read_config(folder)
        theirs = recipes.parse(config.get("recipe", {}), str(folder / final.CONFIG))
        if not isinstance(theirs, GaussianRecipe):
            raise UserError("objective.teacher", f"{path} is a run of text ({theirs.family})", "give a run of images")
        classes = list(prepared.classes) if recipe.objective.conditional else []
        for name, has, wanted in (
            ("shape", list(config.get("shape", [])), list(prepared.shape)),
            ("classes", list(config.get("classes", [])), classes),
            *((f"objective.{name}", getattr(theirs.objective, name), getattr(recipe.objective, name)) for name in FORM),
        ):
            if has != wanted:
                raise UserError("objective.teacher", f"{path} has {name} {has}, the student {wanted}", "give a teacher of the same")
        if recipe.data.captions or recipe.data.augment.probability:
            name = "captions" if recipe.data.captions else "augment.probability"
            raise UserError(f"data.{name}", "given, and reflow pairs have none", "leave it out")
        family = images(theirs, prepared.shape, len(classes))
        model = family.build()
        final.read(folder, model)
        return Teacher(path, family, model.to(device()).eval())

    def give(self, student: nn.Module) -> None:
        """Let a student begin with these weights. Raises UserError for another network."""
        assign(weights(self.model), weights(student), str(self.path))

    def make(self, recipe: GaussianRecipe, prepared: PreparedImages, folder: Path, shown: bool) -> None:
        """Make what is missing of the recipe's pairs in ``folder``; each file is there whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        config, labels = recipe.objective, pair_labels(recipe, prepared)
        missing = [(start, path) for start, path in _parts(config.pairs, folder) if not path.exists()]
        for start, path in track(missing, "pairs of noise and data", disable=not shown or not missing):
            rows = range(start, min(start + PART, config.pairs))
            noise = self.family.latents([int(generator(recipe.seed, 0, i, "pair").integers(2**62)) for i in rows]).to(device())
            told = [None if label == len(prepared.classes) else int(label) for label in labels[rows.start : rows.stop]]
            data = self.family.transport(self.model, noise, config.pair_steps, told).data
            aside = path.with_name(f".{path.name}.partial")
            Pairs(noise.cpu(), data.cpu()).save(aside)
            aside.replace(path)


def pairs(recipe: GaussianRecipe, prepared: PreparedImages, folder: Path) -> Coupled:
    """The pairs that ``Teacher.make`` left. Raises UserError for a file that is missing or damaged."""
    parts = [Pairs.load(path) for _, path in _parts(recipe.objective.pairs, folder)]
    noise, data = (torch.cat(tensors).numpy() for tensors in zip(*parts, strict=True))
    return Coupled(noise, data, pair_labels(recipe, prepared))


def pair_labels(recipe: GaussianRecipe, prepared: PreparedImages) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The class that each pair is made under, of length 0 without classes: those of training images drawn at random, and for as many as the
    recipe does not tell their class the number after the last, which stands for none."""
    config = recipe.objective
    if not config.conditional:
        return np.zeros(0, dtype=np.int64)
    rng = generator(recipe.seed, 0, 0, "pair labels")
    labels = prepared.store.labels[rng.choice(prepared.parts["train"], config.pairs)].astype(np.int64)
    untold = rng.random(config.pairs) < config.class_dropout
    return np.where(untold & recipe.model.null_class, len(prepared.classes), labels)


def _parts(count: int, folder: Path) -> list[tuple[int, Path]]:
    """The first pair of each file, and the file."""
    return [(start, folder / f"pairs-{start:08d}.safetensors") for start in range(0, count, PART)]
