"""The demo's second part: digits out of noise, in the few minutes that are left, on the same page.

One network is told which digit it makes; what it learned is shown by making every digit, turning one into another, and mending halves.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unveil import recipe as recipes
from unveil.config import GaussianRecipe
from unveil.data.images import normalised
from unveil.data.pixels import prepare_images
from unveil.data.png import png, tiled
from unveil.family import Curve, ImageGrid, ImageRequest
from unveil.gaussian.interpolation import slerp
from unveil.gaussian.sampling import grid_of
from unveil.image_run import ImageRun
from unveil.image_snapshots import ImageSnapshot, uncovered
from unveil.quality import measured, record
from unveil.report.evidence import Evidence
from unveil.run import load, train

DIGITS = "digits"
NEEDED = {"sklearn": "scikit-learn", "PIL": "pillow"}
SPARE = 55.0
"""Seconds beside the training steps, on two cores: the classifier, the samples that are compared."""
EACH = 6
"""Images of a class, and ways to mend a half."""
BETWEEN = 12
"""Images from one latent to the other."""
COUNTS, SOLVERS, COMPARED = (10, 20, 50), ("heun", "dpmpp-2m", "ddim"), 400

Array = np.ndarray[Any, Any]


def missing() -> str:
    """What must be installed for this part, empty where nothing is."""
    return " ".join(package for module, package in NEEDED.items() if find_spec(module) is None)


def recipe(minutes: float) -> GaussianRecipe:
    """``edm-digits``, told the class, trained for what is left of so many minutes. Compiling a network this small takes as long."""
    packaged = recipes.load("edm-digits")
    training = replace(packaged.training, minutes=max(minutes - SPARE / 60, 0.2), compile="off", evaluate_every=250, sample_every=0, keep=1)
    return replace(packaged, training=training, objective=replace(packaged.objective, conditional=True))


def digits(directory: Path, asked: GaussianRecipe) -> None:
    """Train and show; what the directory holds already is not done again."""
    if not (directory / "evidence.json").exists():
        train(asked, directory, resume=True)
    evidence = Evidence.load(directory)
    if evidence.headline:
        return
    run = load(directory)
    assert isinstance(run, ImageRun)
    if "Every digit out of noise" not in {view.title for view in evidence.views}:
        kept = [view for view in evidence.views if isinstance(view, Curve)]
        replace(evidence, views=[*pictures(run), *kept]).save(directory)
    record(run, measured(run, COUNTS, SOLVERS, COMPARED, "", None, 0))


def pictures(run: ImageRun) -> list[ImageGrid]:
    """Every class out of noise with real images below, the way from one latent to another, and halves made anew."""
    return [_classes(run), _between(run), _halves(run)]


def _classes(run: ImageRun) -> ImageGrid:
    labels = [label for _ in range(EACH) for label in range(len(run.classes))]
    snapshots = list(_made(run, [ImageRequest(run.shape, seed, label) for seed, label in enumerate(labels)]))
    prepared = prepare_images(run.recipe.data)
    train = prepared.parts["train"]
    known = np.array([prepared.store.labels[int(i)] for i in train])
    real = [prepared.store[int(train[np.flatnonzero(known == label)[row]])] for row in range(2) for label in range(len(run.classes))]
    columns = len(run.classes)

    def sheet(images: Array) -> Array:
        """The network's rows, a line, and two rows of real images."""
        ours, theirs = tiled(images, columns), tiled(np.stack(real), columns)
        return np.concatenate([ours, np.full((3, *ours.shape[1:]), 128, np.uint8), theirs])

    places = grid_of(run.recipe.sampler, run.family.path).instants
    labelled = [f"step {s.step} of {len(snapshots)}, noise {at.sigma / at.alpha:.3g}" for s, at in zip(snapshots, places, strict=False)]
    note = (
        "What the network makes out at each step, every column told its digit: first the mean of all images of that digit, then "
        f"{EACH} different ones. The two rows at the bottom are real, from the training images. Nothing is chosen."
    )
    return _grid("Every digit out of noise", [sheet(s.images) for s in snapshots], labelled, note)


def _between(run: ImageRun) -> ImageGrid:
    rows = []
    share = torch.linspace(0, 1, BETWEEN, dtype=torch.float64)
    for label in range(len(run.classes)):
        first, last = run.family.latents([2 * label, 2 * label + 1]).split(1)
        latents = slerp(first.expand(BETWEEN, -1, -1, -1), last.expand(BETWEEN, -1, -1, -1), share).numpy()
        *_, end = _made(run, [ImageRequest(run.shape, 0, label, latent) for latent in latents])
        rows.append(end.images)
    note = "A row is one digit: the noise of one seed turned by equal angles into that of another, and what each becomes."
    return _grid("From one digit to another", [tiled(np.concatenate(rows), BETWEEN)], [""], note)


def _halves(run: ImageRun) -> ImageGrid:
    prepared = prepare_images(run.recipe.data)
    held = prepared.parts["validation"][: len(run.classes)]
    mending = run.with_sampler(kind="ancestral", steps=50)
    _, height, width = run.shape
    mask = np.ones((height, width), dtype=np.bool_)
    mask[:, width // 2 :] = False
    rows = []
    for item in held:
        known, label = prepared.store[int(item)], int(prepared.store.labels[int(item)])
        asked = [ImageRequest(run.shape, seed, label, known=normalised(known), mask=mask) for seed in range(EACH)]
        *_, end = _made(mending, asked)
        covered = np.where(mask[:, :, None], known, 128).astype(np.uint8)
        rows.append(np.concatenate([np.stack([known, covered]), end.images]))
    note = f"Held-out digits, the same with the right half covered, and {EACH} ways to make that half anew, told the digit."
    return _grid("Half a digit made anew", [tiled(np.concatenate(rows), 2 + EACH)], [""], note)


def _made(run: ImageRun, requests: Sequence[ImageRequest]) -> Iterator[ImageSnapshot]:
    return uncovered(run.family, run.model, requests, run.encoders.decode)


def _grid(title: str, sheets: Sequence[Array], labels: Sequence[str], note: str) -> ImageGrid:
    height, width, _ = sheets[0].shape
    return ImageGrid(title, [base64.b64encode(png(sheet)).decode() for sheet in sheets], list(labels), width, height, note)
