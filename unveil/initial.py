"""Training that goes on from another run's weights: to other data, or from autoregression to diffusion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from unveil import bases
from unveil import recipe as recipes
from unveil.config import AutoregressiveRecipe, BlockConfig, TextRecipe, TokenizerConfig
from unveil.errors import UserError
from unveil.interop import text
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
    _check_stages(recipe, theirs)
    model = replace(theirs.model, **{name: getattr(recipe.model, name) for name in OWN})
    tokenizer = TokenizerConfig(kind="file", path=str((folder / "tokenizer.json").resolve()))
    training = replace(recipe.training, initial=str(Path(recipe.training.initial).resolve()))
    adapter = recipe.adapter
    if adapter.rank and not adapter.base:
        adapter = replace(adapter, base=bases.fingerprint(Path(training.initial)))
    return replace(recipe, model=model, data=replace(recipe.data, tokenizer=tokenizer), training=training, adapter=adapter)


def _check_stages(recipe: TextRecipe, theirs: TextRecipe) -> None:
    """That the training does not begin with seeing less than the weights were trained to see."""
    if isinstance(recipe, AutoregressiveRecipe) or isinstance(theirs, AutoregressiveRecipe):
        return
    ours, path = recipe.objective, recipe.training.initial
    if ours.anneal:
        raise UserError("objective.anneal", f"{ours.anneal} begins causal, and '{path}' saw what follows already", "set it to 0")
    seen = theirs.objective.block if isinstance(theirs.objective, BlockConfig) else theirs.data.context
    if isinstance(ours, BlockConfig) and ours.growth and ours.growth[0] < seen:
        problem = f"begins with blocks of {ours.growth[0]}, and '{path}' was trained to see {seen} tokens at once"
        raise UserError("objective.growth", problem, f"begin with {seen} or more, or leave it out")


def give(recipe: TextRecipe, model: nn.Module) -> None:
    """Copy the weights of the recipe's ``training.initial`` into ``model``. Raises UserError where they do not fit one to one."""
    folder, theirs = _source(recipe.training.initial)
    assign(weights(TextRun.read(folder, folder, theirs).model), weights(model), str(folder))


def spent(recipe: TextRecipe) -> float:
    """FLOPs of the training that the recipe begins with, and of what that began with; 0 where it begins with nothing."""
    if not recipe.training.initial:
        return 0.0
    folder, theirs = _source(recipe.training.initial)
    tokens = theirs.training.steps * theirs.training.packs * theirs.data.packing_length
    return TextRun.read(folder, folder, theirs).flops_per_token * tokens + spent(theirs)


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
