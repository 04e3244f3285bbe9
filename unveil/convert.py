"""Models from one form to another, each with its card: images as a folder of diffusers and back, text as transformers reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from unveil import cards
from unveil import recipe as recipes
from unveil.adapters import lora
from unveil.config import AdapterConfig
from unveil.errors import UserError
from unveil.image_run import ImageRun
from unveil.interop import deepseek, diffusers, text
from unveil.nn import mtp
from unveil.run import load
from unveil.text.chat import chat_template
from unveil.text_run import TextRun
from unveil.training import final

Form = Literal["unveil", "diffusers", "hf", "hf-fp8"]


def convert(source: str | Path, destination: str | Path, to: Form | None = None, say: Callable[[str], object] = lambda line: None) -> Path:
    """Write the model of ``source`` in the other form (or in the form ``to``); returns the folder, which is made here. ``say`` is told what
    the other form has no place for and its models do without.

    Raises:
        UserError: as ``unveil.load``; the destination exists; the model has that form already, or is what the other form has no
            class, no scheduler or no setting for.
    """
    source, destination = Path(source), Path(destination)
    if destination.exists():
        raise UserError(str(destination), "exists", "choose another name, or remove it first")
    theirs = diffusers.recognised(source)
    run = load(source)
    ours = not theirs and not text.recognised(source) and not (isinstance(run, TextRun) and run.recipe.adapter.rank)
    if (to == "diffusers" and theirs) or (to == "unveil" and ours):
        raise UserError("--to", f"'{to}' is the form that {source} has already", "copy it, or leave --to out for the other form")
    if isinstance(run, TextRun):
        return _write_text(run, destination, to, say)
    if not isinstance(run, ImageRun) or to in ("hf", "hf-fp8"):
        raise UserError("--to", f"'{to}' is a form for models of text, this is one of images", "leave it out, or take diffusers")
    if theirs:
        _write_final(run, destination)
    else:
        _write_pipeline(run, destination)
    cards.write(destination, cards.of_images(run, destination))
    return destination


def _write_text(run: TextRun, folder: Path, to: Form | None, say: Callable[[str], object]) -> Path:
    """An adapter is merged into its base."""
    if to == "diffusers":
        raise UserError("--to", f"'{to}' is a form for models of images, this is one of text", "leave it out, or take hf")
    trained = run
    if run.recipe.adapter.rank:
        lora.merge(run.model)
        training = replace(run.recipe.training, initial="")
        run = replace(run, recipe=replace(run.recipe, adapter=AdapterConfig(), training=training))
    if to == "unveil":
        folder.mkdir(parents=True)
        run.tokenizer.save(folder / "tokenizer.json")
        final.write(folder, run.model, {"vocabulary": run.tokenizer.vocabulary.size, "recipe": recipes.tables(run.recipe)})
        return folder
    kind = text.write(folder, run.recipe, run.tokenizer, run.model, to == "hf-fp8")  # type: ignore[arg-type]
    if (count := mtp.parameters(run.model)) and kind != deepseek.KIND:
        say(f"model.mtp: its {count:,} parameters are left out, the layout has none; without them nothing drafts")
    chat_template(run.folder).save(folder)
    cards.write(folder, cards.of_text(trained, folder.name, kind))
    return folder


def _write_final(run: ImageRun, folder: Path) -> None:
    config = {"shape": list(run.shape), "classes": list(run.classes), "recipe": recipes.tables(run.recipe)}
    final.write(folder, run.model, config)
    run.encoders.save(folder)


def _write_pipeline(run: ImageRun, folder: Path) -> None:
    _, height, width = run.shape
    size = height if height == width else (height, width)
    model: Any = run.model
    beside: dict[str, Any] = {"autoencoder": run.encoders.autoencoder, "labels": run.classes}
    diffusers.save(folder, model.denoiser, size, sampler=run.recipe.sampler, **beside)
