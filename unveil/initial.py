"""Training that goes on from a run's weights, or from those of another library's folder: to other data, or from autoregression to
diffusion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from unveil import bases
from unveil import recipe as recipes
from unveil.config import (
    AutoregressiveRecipe,
    BlockConfig,
    DiscreteRecipe,
    MTPConfig,
    NextTokenConfig,
    ScoreConfig,
    TextRecipe,
    TokenizerConfig,
)
from unveil.errors import UserError
from unveil.interop import text
from unveil.nn.layout import BlockCausal, Layout
from unveil.text.chat import chat_template
from unveil.text_run import TextRun
from unveil.training import final
from unveil.training.weights import assign, weights

FIELD = "training.initial"
OWN = ("shift", "window", "dropout", "init", "init_std")
"""Settings of a network that say nothing of its weights: the new recipe's hold."""


class _Source(NamedTuple):
    folder: Path
    recipe: TextRecipe
    tokenizer: TokenizerConfig
    layout: Layout | None
    """Of another library's network: who sees whom, as it was trained."""


def adopted(recipe: Any) -> Any:
    """The recipe with the network, the tokenizer, the chat template and what ends a turn of the model that it begins with, if it names one.

    Raises UserError for a recipe that is not of text, for what is no model of text, and for an objective that the model contradicts.
    """
    if not recipe.training.initial:
        return recipe
    if not isinstance(recipe, TextRecipe):
        raise UserError(FIELD, f"given, and a recipe of the family {recipe.family!r} cannot begin with a run's weights", "leave it out")
    source = _source(recipe.training.initial)
    if source.layout is not None:
        _check_objective(recipe, source)
    _check_stages(recipe, source)
    own = {name: getattr(recipe.model, name) for name in OWN}
    if isinstance(recipe, DiscreteRecipe):
        own["mtp"] = MTPConfig()
        if isinstance(source.recipe, DiscreteRecipe):
            own["shift"] = source.recipe.model.shift  # it was trained so
    data = replace(recipe.data, tokenizer=source.tokenizer)
    if not data.template and chat_template(source.folder).source:
        data = replace(data, template=str(source.folder.resolve()))
    sampler: Any = recipe.sampler
    if not sampler.stop:
        sampler = replace(sampler, stop=source.recipe.sampler.stop)
    training = replace(recipe.training, initial=str(Path(recipe.training.initial).resolve()))
    adapter = recipe.adapter
    if adapter.rank and not adapter.base:
        adapter = replace(adapter, base=bases.fingerprint(Path(training.initial)))
    model = replace(source.recipe.model, **own)
    return replace(recipe, model=model, data=data, sampler=sampler, training=training, adapter=adapter)


def _check_stages(recipe: TextRecipe, source: _Source) -> None:
    """That the training does not begin with seeing less than the weights were trained to see."""
    theirs = source.recipe
    if isinstance(recipe, AutoregressiveRecipe) or isinstance(theirs, AutoregressiveRecipe):
        return
    ours, path = recipe.objective, recipe.training.initial
    if ours.anneal:
        raise UserError("objective.anneal", f"{ours.anneal} begins causal, and '{path}' saw what follows already", "set it to 0")
    seen = theirs.objective.block if isinstance(theirs.objective, BlockConfig) else theirs.data.context
    if isinstance(source.layout, BlockCausal):
        seen = source.layout.block
    if isinstance(ours, BlockConfig) and ours.growth and ours.growth[0] < seen:
        problem = f"begins with blocks of {ours.growth[0]}, and '{path}' was trained to see {seen} tokens at once"
        raise UserError("objective.growth", problem, f"begin with {seen} or more, or leave it out")


def give(recipe: TextRecipe, model: nn.Module) -> None:
    """Copy the weights of the recipe's ``training.initial`` into ``model``. Raises UserError where they do not fit one to one."""
    folder, theirs, _, layout = _source(recipe.training.initial)
    found = weights(TextRun.read(folder, folder, theirs).model if layout is None else text.read(folder).model)
    if not recipe.model.mtp.depths:
        found = {name: tensor for name, tensor in found.items() if not name.startswith("mtp.")}
    assign(found, weights(model), str(folder))


def spent(recipe: TextRecipe) -> float:
    """FLOPs of the training that the recipe begins with, and of what that began with; 0 where it begins with nothing, or with what was
    trained elsewhere."""
    if not recipe.training.initial:
        return 0.0
    folder, theirs, _, layout = _source(recipe.training.initial)
    if layout is not None:
        return 0.0
    tokens = theirs.training.steps * theirs.training.packs * theirs.data.packing_length
    return TextRun.read(folder, folder, theirs).flops_per_token * tokens + spent(theirs)


def _source(path: str) -> _Source:
    """The folder that holds a model's weights, and what is known of it. Raises UserError."""
    root = Path(path)
    if text.recognised(root):
        found = text.described(root)
        v = found.tokenizer.vocabulary
        specials = (v.size, v.start, v.end, v.mask, v.prefix, v.suffix, v.middle)
        tokenizer = replace(found.recipe.data.tokenizer, specials=specials, opens=found.tokenizer.opens)
        return _Source(root, found.recipe, tokenizer, found.model.layout)
    folder = root / "final" if (root / "final").is_dir() else root
    if not (folder / final.CONFIG).is_file():
        raise UserError(FIELD, f"'{path}' is no finished run", "give a run that was trained to its end, or a model's folder")
    theirs = recipes.parse(final.read_config(folder).get("recipe", {}))
    if not isinstance(theirs, TextRecipe):
        raise UserError(FIELD, f"'{path}' is a run of the family {theirs.family!r}", "give one of text")
    tokenizer = replace(theirs.data.tokenizer, kind="file", path=str((folder / "tokenizer.json").resolve()))
    return _Source(folder, theirs, tokenizer, None)


def _check_objective(recipe: TextRecipe, source: _Source) -> None:
    """That another library's network can be trained so: its folder says how it was trained. Raises UserError."""
    objective, path, layout = recipe.objective, recipe.training.initial, source.layout
    _, _, _, mask, prefix, *_ = source.tokenizer.specials
    if isinstance(objective, NextTokenConfig):
        if isinstance(source.recipe, DiscreteRecipe):
            problem = f"'autoregressive', the network of '{path}' sees what follows"
            raise UserError("family", problem, "take a recipe of discrete diffusion, llada-sft say")
        if objective.fim_rate and prefix == -1:
            raise UserError("objective.fim_rate", f"{objective.fim_rate:g}, the tokenizer of '{path}' has no tokens for it", "set it to 0")
        return
    if mask == -1:
        raise UserError(FIELD, f"the tokenizer of '{path}' has no mask token", "begin with a masked model, or with a run")
    if isinstance(objective, ScoreConfig) and objective.chain == "uniform":
        raise UserError("objective.chain", f"'uniform' has no masks, which the network of '{path}' was trained with", "take 'absorb'")
    if isinstance(layout, BlockCausal):
        if not isinstance(objective, BlockConfig):
            problem = f"'{objective.kind}' reads whole texts, the network of '{path}' blocks of {layout.block}"
            raise UserError("objective.kind", problem, f"take --objective.kind block --objective.block {layout.block}")
        if objective.block != layout.block:
            problem = f"is {objective.block}, the network of '{path}' reads blocks of {layout.block}"
            raise UserError("objective.block", problem, f"take --objective.block {layout.block}")
