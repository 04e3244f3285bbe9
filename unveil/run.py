"""A run: trained from a recipe into a directory, and loaded from there to be sampled and evaluated."""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unveil import bases, initial
from unveil import recipe as recipes
from unveil.adapters import lora
from unveil.adapters.bits import Weights, fill
from unveil.config import AnyRecipe, GaussianRecipe, StreamsRecipe, TextRecipe
from unveil.encoders import Encoders
from unveil.environment import device, environment
from unveil.errors import UserError
from unveil.image_run import ImageRun, ImageTraining
from unveil.interop import diffusers, foreign, hub, text
from unveil.stream_run import StreamRun, StreamTraining
from unveil.text_run import TextRun, TextTraining
from unveil.trained import Run, Split, Training
from unveil.training import checkpoint, final, precision
from unveil.training.loop import Trainer
from unveil.training.parallel import World

__all__ = ["Run", "Split", "load", "peak_memory", "train"]

FREE_ON_RESUME = ("training.log_every", "training.save_every", "training.keep", "training.threads", "data.workers", "data.cache")
"""Settings that a resumed run may change: what it learns does not depend on them."""


def load(path: str | Path, weights: Weights | None = None, adapter: str | Path | None = None) -> Run:
    """A finished run from its directory, or from a folder that holds its ``final/``, a pipeline of diffusers or another's language model.

    ``hub:ID`` is such a folder of the Hugging Face hub, fetched if it is not here yet. Nothing else is read.

    Args:
        weights: of text: how the matrices of the blocks are held, ``full``, ``int8`` or ``nf4``; as a run was trained if not given.
        adapter: of text: an adapter to put on it, the run directory of one or a folder of ``peft``'s.

    Raises UserError for what is no run, for a file that is missing, damaged or of another version, and for a tokenizer, weights or an
    adapter that do not belong to the network.
    """
    path = hub.fetched(str(path)) if str(path).startswith(hub.PREFIX) else Path(path)
    if adapter is not None and (run := _with_adapter(path, Path(adapter), weights)) is not None:
        return run
    if text.recognised(path):
        found = text.read(path, None if weights in (None, "full") else lambda network, source: fill(network, source, weights, str(path)))
        return _ready(_adapted(TextRun(path, path, found.recipe, found.tokenizer, found.model), adapter))
    if diffusers.recognised(path):
        _only_text(path, weights, adapter)
        return _ready(_foreign(path))
    folder = path / "final" if (path / "final").is_dir() else path
    if not (folder / final.CONFIG).is_file():
        if not path.exists():
            folder_or = "give a run directory, or a folder with an exported model"
            named = not path.is_absolute() and len(path.parts) == 2
            raise UserError(str(path), "no such run", folder_or + (f"; of the hub it is hub:{path.as_posix()}" if named else ""))
        if (path / "recipe.toml").is_file():
            raise UserError(str(path), "this run is not finished, it has no final/", f"go on with `unveil train {path} --resume`")
        raise UserError(str(path), "is no run directory and holds no exported model", "give the directory that `unveil train` made")
    recipe, config = _recorded(folder)
    if isinstance(recipe, TextRecipe):
        return _ready(_adapted(TextRun.read(path, folder, recipe, weights), adapter))
    _only_text(path, weights, adapter)
    if isinstance(recipe, GaussianRecipe):
        return _ready(ImageRun.read(path, folder, recipe, config))
    return _ready(StreamRun.read(path, folder, recipe, config))


def _recorded(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The recipe that a folder was made by, and all that its ``config.json`` says."""
    config = final.read_config(folder)
    tree = config.get("recipe")
    if not isinstance(tree, dict):
        raise UserError(str(folder / final.CONFIG), "is corrupted: 'recipe' is not in it", "copy final/ from where it was trained")
    return recipes.parse(tree), config


def _with_adapter(path: Path, adapter: Path, weights: Weights | None) -> Run | None:
    """An adapter of ours on the model of ``path``, with its own recipe and tokenizer; None for one that ``peft`` alone wrote."""
    folder = adapter / "final" if (adapter / "final").is_dir() else adapter
    if not (folder / lora.CONFIG).is_file():
        raise UserError("--adapter", f"'{adapter}' holds no adapter", "give the run directory of one, or a folder with adapter_config.json")
    if not (folder / final.CONFIG).is_file():
        return None
    return _ready(TextRun.read(adapter, folder, _recorded(folder)[0], weights, path))


def _adapted(run: TextRun, adapter: str | Path | None) -> TextRun:
    """With a folder of ``peft``'s on it, if there is one."""
    if adapter is not None:
        if run.recipe.adapter.rank:
            raise UserError("--adapter", f"given, and '{run.path}' is an adapter itself", "give the base")
        lora.load(Path(adapter), run.model)
    return run


def _only_text(path: Path, weights: Weights | None, adapter: str | Path | None) -> None:
    for name, given in (("--weights", weights), ("--adapter", adapter)):
        if given is not None:
            raise UserError(name, f"is for text, and {path} is another kind of run", "leave it out")


def _foreign(path: Path) -> ImageRun:
    """A pipeline of diffusers. Raises UserError as ``interop.foreign.read``."""
    found = foreign.read(path)
    encoders = Encoders.of(found.recipe.data)
    channels, _, width = encoders.pixels(found.shape)
    data = dataclasses.replace(found.recipe.data, size=width, mode="grey" if channels == 1 else "rgb")
    return ImageRun(path, path, dataclasses.replace(found.recipe, data=data), found.shape, found.classes, found.model, encoders)


def _ready(run: Run) -> Run:
    """The run on its device and in its dtype, for use."""
    run.model.to(device())
    precision.apply(run.model, precision.compute_dtype(run.recipe.training.dtype, device()))
    run.model.eval()
    return run


def train(recipe: AnyRecipe | str, directory: str | Path, resume: bool = False, console: bool = True) -> Run:
    """Train a recipe (or the recipe of that name or file) into a run directory, and load the result.

    Args:
        directory: made here. ``resume`` goes on with what it holds; a run that is finished is loaded as it is.
        console: show progress.

    Raises:
        UserError: the directory holds something and ``resume`` is not asked for, or it holds a run of another recipe; whatever the
            data, the recipe or the disk have wrong.
    """
    directory = Path(directory)
    chosen: Any = recipes.with_overrides(recipes.load(recipe), []) if isinstance(recipe, str) else recipes.checked(recipe)
    chosen = initial.adopted(chosen)
    world = World.join()
    if world.rank == 0:
        chosen = _claim(chosen, directory, resume)
    world.barrier()
    shown = console and world.rank == 0
    work: Training = _training(chosen, directory, shown)
    torch.manual_seed(chosen.seed)
    adapter = isinstance(chosen, TextRecipe) and chosen.adapter.rank > 0
    model = bases.started(work.build, chosen) if adapter else work.build()
    if chosen.training.initial and not adapter and not checkpoint.steps(directory / "checkpoints"):
        initial.give(chosen, model)
    model = model.to(device())
    loader = work.loader(world.rank, world.size)
    scores: dict[str, Any] = {"evaluate": work.evaluate} if work.scores else {}
    trainer = Trainer(work.family, model, loader, chosen, directory, sample=work.sample, console=console, **scores)
    trainer.fit(resume)
    if world.rank == 0:
        done = dataclasses.replace(chosen, training=dataclasses.replace(chosen.training, steps=trainer.steps))
        with trainer.averaged() as averaged:
            _export(directory, done, averaged, work)
    world.barrier()
    run = load(directory)
    if world.rank == 0:
        _write_evidence(run, work, trainer)
    return run


def _training(recipe: Any, directory: Path, shown: bool) -> Training:
    match recipe:
        case GaussianRecipe():
            return ImageTraining(recipe, directory, shown)
        case StreamsRecipe():
            return StreamTraining(recipe, directory, shown)
    return TextTraining(recipe, directory, shown)


# A run directory -------------------------------------------------------------------------------------------------------------


def _claim(recipe: Any, directory: Path, resume: bool) -> Any:
    """Begin a run directory, or check that the one that is there holds a run of this recipe; the recipe to train."""
    path = directory / "recipe.toml"
    if directory.exists() and not directory.is_dir():
        raise UserError(str(directory), "is a file", "choose another name with --run-dir")
    if directory.is_dir() and any(directory.iterdir()):
        if not resume:
            raise UserError(str(directory), "exists", "go on with --resume, or choose another name with --run-dir")
        if not path.is_file():
            raise UserError(str(directory), "holds no run: there is no recipe.toml", "choose another name with --run-dir")
        before = recipes.load(str(path))
        for key, now, then in recipes.differences(recipe, before):
            # a base may have moved: what it is, its hash says
            free = (key == "training.steps" and recipe.training.minutes) or (key == "training.initial" and recipe.adapter.rank)
            if key not in FREE_ON_RESUME and not free:
                raise UserError(key, f"{now!r} now, {then!r} in {path}", "resume with the recipe the run began with, or start another run")
    directory.mkdir(parents=True, exist_ok=True)
    _write(path, recipes.dumps(recipe))
    _write(directory / "environment.json", json.dumps(environment(), indent=2) + "\n")
    return recipe


def _export(directory: Path, recipe: AnyRecipe, model: nn.Module, work: Training) -> None:
    folder = directory / "final"
    folder.mkdir(exist_ok=True)
    config = {**work.export(folder), "recipe": recipes.tables(recipe)}
    if isinstance(recipe, TextRecipe):
        bases.save(folder, model, recipe, config)
    else:
        final.write(folder, model, config)
    _write(directory / "recipe.toml", recipes.dumps(recipe))


def _write(path: Path, text: str) -> None:
    """Whole or not at all: a killed run must find its recipe again."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def _write_evidence(run: Run, work: Training, trainer: Trainer) -> None:
    found = work.evidence(run)
    measured = {
        "peak_flops": precision.peak_flops(trainer.dtype, trainer.device),
        "tokens": trainer.tokens,
        "seconds": trainer.seconds,
        "memory_bytes": peak_memory(),
    }
    dataclasses.replace(found, costs={**found.costs, **measured}).save(run.path)


def peak_memory() -> int:
    """The most bytes that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
