"""Images in training: their loader, what they are scored by, and what the run's page shows of them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from unveil import corpora
from unveil.config import GaussianRecipe
from unveil.data.coupled import CoupledLoader
from unveil.data.image_loader import ImageLoader, held_out_images
from unveil.data.png import png
from unveil.encoders import Encoders
from unveil.evaluation.loss import held_out_loss
from unveil.families import images
from unveil.family import ImageGrid, ImageRequest, View
from unveil.image_snapshots import ImageSnapshot, uncovered
from unveil.plane import PLANE, POINTS_SHOWN, require
from unveil.plane_views import plane_views
from unveil.reflow import Teacher, pairs
from unveil.report.evidence import Evidence
from unveil.training.parallel import World

SHOWN = 64
"""Images drawn for the page and for ``samples/``."""
PAIRS = "pairs"
"""What a teacher made, in the run directory."""
FRAMES = 24
"""Steps of a trajectory on the page, at the most."""


class ImageTraining:
    """A recipe's images, family and scores, as ``unveil.run.train`` asks for them."""

    def __init__(self, recipe: GaussianRecipe, directory: Path, shown: bool) -> None:
        self.recipe, self.directory = recipe, directory
        self.encoders = Encoders.of(recipe.data)
        self.prepared = corpora.prepared_images(recipe.data, shown, self.encoders)
        self.classes = self.prepared.classes if recipe.objective.conditional else ()
        if self.points:
            require()
        self.family = images(recipe, self.prepared.shape, len(self.classes), self.encoders.embedding)
        self.reflow = recipe.objective.coupling == "reflow"
        self._shown = shown

    @property
    def points(self) -> bool:
        """Whether these are points in the plane."""
        return self.prepared.shape == PLANE

    @property
    def shown(self) -> int:
        """How many are drawn in one picture."""
        return POINTS_SHOWN if self.points else SHOWN

    @property
    def scores(self) -> bool:
        return len(self.prepared.parts["validation"]) > 0

    def build(self) -> nn.Module:
        """The network; for reflow with the teacher's weights, once the teacher's pairs are made."""
        model = self.family.build()
        if self.reflow:
            teacher = Teacher.read(self.recipe, self.prepared)
            teacher.give(model)
            world = World.join()
            if world.rank == 0:
                teacher.make(self.recipe, self.prepared, self.directory / PAIRS, self._shown)
            world.barrier()
        return model

    def loader(self, rank: int, world: int) -> ImageLoader | CoupledLoader:
        recipe = self.recipe
        if self.reflow:
            found = pairs(recipe, self.prepared, self.directory / PAIRS)
            return CoupledLoader(found, recipe.data.batch, recipe.seed, self.family, rank, world, recipe.data.workers)
        return ImageLoader(self.prepared, recipe.data, recipe.seed, self.family, rank, world, recipe.objective.conditional)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The loss on held-out images."""
        config = self.recipe.evaluation
        batches = held_out_images(self.prepared, self.recipe.data, config.tokens, self.recipe.objective.conditional)
        found = held_out_loss(self.family, model, batches, config.draws, self.recipe.seed)
        return {name: found[name] for name in ("loss", "vlb") if name in found}

    def sample(self, model: nn.Module, step: int) -> None:
        requests = [ImageRequest(self.prepared.shape, seed) for seed in range(self.shown)]
        *_, last = uncovered(self.family, model, requests, self.encoders.decode)
        folder = self.directory / "samples"
        folder.mkdir(exist_ok=True)
        (folder / f"step-{step:08d}.png").write_bytes(last.png())

    def export(self, folder: Path) -> dict[str, Any]:
        self.encoders.save(folder)
        return {"shape": list(self.prepared.shape), "classes": list(self.classes)}

    def evidence(self, run: Any) -> Evidence:
        if self.points:
            shown: list[View] = plane_views(self.family, run.model, self.prepared)
        else:
            snapshots = list(run.sample(SHOWN))
            shown = [samples(snapshots[-1]), trajectory(snapshots)]
        return Evidence(
            views=[*shown, *self.family.views(run)],
            costs={"parameters": run.parameters(), "flops_per_image": run.model.flops_per_sample()},
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
