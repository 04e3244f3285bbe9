"""Training that goes on from another run's weights: to other data, or from autoregression to diffusion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unveil import bases
from unveil import recipe as recipes
from unveil.adapters import lora
from unveil.config import TextRecipe, TokenizerConfig
from unveil.errors import UserError
from unveil.interop import text
from unveil.nn.layout import Causal
from unveil.nn.transformer import Transformer
from unveil.text_run import TextRun
from unveil.training import final
from unveil.training.weights import assign, weights

FIELD = "training.initial"
OWN = ("shift", "window", "dropout", "init", "init_std")
"""Settings of a network that say nothing of its weights: the new recipe's hold."""


def adopted(recipe: Any) -> Any:
    """The recipe with the network and the tokenizer of the run that it begins with, if it names one.

    Raises UserError for a recipe that is not of text, and for what is no finished run of text.
    """
    if not recipe.training.initial:
        return recipe
    if not isinstance(recipe, TextRecipe):
        raise UserError(FIELD, f"given, and a recipe of the family {recipe.family!r} cannot begin with a run's weights", "leave it out")
    folder, theirs = _source(recipe.training.initial)
    model = replace(theirs.model, **{name: getattr(recipe.model, name) for name in OWN})
    tokenizer = TokenizerConfig(kind="file", path=str((folder / "tokenizer.json").resolve()))
    adapter, training = recipe.adapter, recipe.training
    if adapter.rank:
        with torch.device("meta"):  # what is wrong is told before anything is made
            lora.targets(Transformer(model, 1, Causal()), adapter)
    if adapter.rank and not adapter.base:
        adapter = replace(adapter, base=bases.fingerprint(Path(training.initial)))
    if adapter.weights != "full":  # products of few bits break a compiled block into pieces
        training = replace(training, compile="off")
    return replace(recipe, model=model, data=replace(recipe.data, tokenizer=tokenizer), training=training, adapter=adapter)


def give(recipe: TextRecipe, model: nn.Module) -> None:
    """Copy the weights of the recipe's ``training.initial`` into ``model``. Raises UserError where they do not fit one to one."""
    folder, theirs = _source(recipe.training.initial)
    assign(weights(TextRun.read(folder, folder, theirs).model), weights(model), str(folder))


def _source(path: str) -> tuple[Path, TextRecipe]:
    """The folder that holds a run's weights, and its recipe."""
    root = Path(path)
    if text.recognised(root):
        raise UserError(FIELD, f"'{path}' is another library's folder", "begin with a run of ours: its tokenizer is ours as well")
    folder = root / "final" if (root / "final").is_dir() else root
    if not (folder / final.CONFIG).is_file():
        raise UserError(FIELD, f"'{path}' is no finished run", "give the directory of a run that was trained to its end")
    theirs = recipes.parse(final.read_config(folder).get("recipe", {}))
    if not isinstance(theirs, TextRecipe):
        raise UserError(FIELD, f"'{path}' is a run of the family {theirs.family!r}", "give one of text")
    return folder, theirs
