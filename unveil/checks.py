"""Which settings of a recipe go together: what does not is refused by name, before anything is read or computed."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import TypeVar

from unveil.config import (
    AdapterConfig,
    AutoregressiveRecipe,
    BlockConfig,
    DiscreteRecipe,
    DiTConfig,
    GaussianConfig,
    ImageDataConfig,
    LatentConfig,
    NoiseConfig,
    PathConfig,
    Recipe,
    ScheduleConfig,
    ScoreConfig,
    TextDataConfig,
    TokenizerConfig,
    TransformerConfig,
    UNetConfig,
    YarnConfig,
)
from unveil.errors import UserError
from unveil.schema import check_ranges

R = TypeVar("R", bound=Recipe)


def checked(recipe: R) -> R:
    """The recipe itself, once every range holds and its settings fit together. Raises UserError."""
    check_ranges(recipe, "")
    for section in (getattr(recipe, f.name) for f in dataclasses.fields(recipe)):
        if isinstance(section, TransformerConfig):
            _check_experts(section)
        match section:
            case TextDataConfig(context=context, packing_length=pack) if pack < context:
                raise UserError("data.packing_length", f"{pack} is less than data.context = {context}", "raise it")
            case TextDataConfig(validation=validation, test=test) if validation + test >= 1:
                raise UserError("data.validation", f"{validation} and data.test = {test} leave nothing to train on", "lower them")
            case TextDataConfig(sources=()):
                raise UserError("data.sources", "is empty", "name at least one source")
            case TextDataConfig(tokenizer=TokenizerConfig(kind="file", path="")):
                raise UserError("data.tokenizer.path", "is empty", "give the path of a tokenizer.json")
            case ImageDataConfig():
                _check_images(section)
            case TransformerConfig(latent=LatentConfig(width=latent)) if latent:
                _check_latent(section)
            case TransformerConfig(yarn=YarnConfig(mscale_all=mscale)) if mscale:
                raise UserError("model.yarn.mscale_all", f"{mscale:g} without latent attention", "set it to 0, or give model.latent.width")
            case TransformerConfig(width=width, heads=heads, head_width=0) if width % (2 * heads):
                raise UserError("model.heads", f"{heads} do not cut model.width = {width} into even parts", "choose a divisor")
            case TransformerConfig(head_width=head_width) if head_width % 2:
                raise UserError("model.head_width", f"{head_width} is odd, rotary positions want pairs", "choose an even one, or 0")
            case TransformerConfig(rotary_width=turned) if turned % 2 or turned > (section.head_width or section.width // section.heads):
                problem = f"{turned} is odd, or more than a head of {section.head_width or section.width // section.heads}"
                raise UserError("model.rotary_width", problem, "choose an even one below that, or 0")
            case TransformerConfig(heads=heads, kv_heads=kv_heads) if kv_heads and heads % kv_heads:
                raise UserError("model.kv_heads", f"{kv_heads} does not divide model.heads = {heads}", "choose a divisor, or 0")
            case UNetConfig(channels=channels, attention=attention) if len(channels) != len(attention):
                raise UserError(
                    "model.attention", f"{len(attention)} levels, model.channels has {len(channels)}", "give one entry for each"
                )
            case UNetConfig(channels=channels, groups=groups) if any(width % groups for width in channels):
                raise UserError("model.groups", f"{groups} does not divide model.channels = {list(channels)}", "choose a common divisor")
            case UNetConfig(head_width=head_width) if head_width and (odd := [w for w in _attended(section) if w % head_width]):
                raise UserError("model.head_width", f"{head_width} does not divide {odd[0]} channels that attend", "choose a divisor, or 0")
            case DiTConfig(width=width, heads=heads) if width % (2 * heads):
                raise UserError("model.heads", f"{heads} do not cut model.width = {width} into even parts", "choose a divisor")
            case DiTConfig(width=width) if width % 4:
                raise UserError("model.width", f"{width} is no multiple of 4, as positions in two directions want", "choose one")
            case GaussianConfig(coupling="reflow", teacher=""):
                raise UserError("objective.teacher", "is empty, and the coupling is 'reflow'", "give the run directory of a trained flow")
            case GaussianConfig(coupling=coupling, teacher=teacher) if teacher and coupling != "reflow":
                raise UserError("objective.coupling", f"'{coupling}' with a teacher", "take 'reflow', or leave objective.teacher empty")
            case GaussianConfig(coupling=coupling, distill=distill) if distill and coupling != "reflow":
                raise UserError("objective.distill", f"{distill} with the coupling '{coupling}'", "take 'reflow', or set it to 0")
            case GaussianConfig(weighting="vlb" | "hybrid" as weighting, path=PathConfig(kind=kind)) if kind != "ddpm":
                raise UserError(
                    "objective.weighting", f"'{weighting}' with path '{kind}'", "take objective.path.kind ddpm, or 'likelihood'"
                )
            case NoiseConfig(t_min=t_min, t_max=t_max) if t_min >= t_max:
                raise UserError("objective.t_min", f"{t_min} is not below objective.t_max = {t_max}", "lower it")
            case ScoreConfig(sigma_min=low, sigma_max=high) if low >= high:
                raise UserError("objective.sigma_min", f"{low} is not below objective.sigma_max = {high}", "lower it")
            case ScheduleConfig(kind="wsd", warmup=warmup, decay=decay) if warmup + decay > 1:
                raise UserError("schedule.decay", f"{decay} and schedule.warmup = {warmup} are more than the whole run", "lower them")
    if isinstance(recipe, AutoregressiveRecipe | DiscreteRecipe):
        if any(source.kind in ("chat", "preference") for source in recipe.data.sources):
            _check_conversations(recipe)
        _check_preference(recipe)
    if isinstance(recipe, DiscreteRecipe):
        _check_discrete(recipe)
    if isinstance(recipe, AutoregressiveRecipe | DiscreteRecipe):
        _check_adapter(recipe)
    if isinstance(recipe, AutoregressiveRecipe):
        _check_ahead(recipe)
    return recipe


def _check_adapter(recipe: AutoregressiveRecipe | DiscreteRecipe) -> None:
    adapter, plain = recipe.adapter, AdapterConfig()
    if not adapter.rank:
        if adapter.weights != plain.weights:
            problem = f"'{adapter.weights}' and all weights are to be trained, which those in few bits cannot be"
            raise UserError("adapter.weights", problem, "give adapter.rank, such as 8, or take 'full'")
        for name in ("alpha", "dropout", "targets"):
            if getattr(adapter, name) != getattr(plain, name):
                problem = f"is 0, no adapter, with adapter.{name} = {getattr(adapter, name)!r}"
                raise UserError("adapter.rank", problem, f"give a rank such as 8, or leave adapter.{name} out")
        return
    if not recipe.training.initial:
        problem = f"is empty, and an adapter of rank {adapter.rank} is trained on a base"
        raise UserError("training.initial", problem, "name a trained run of text or a folder with a model")
    if recipe.optimizer.kind == "muon":
        problem = "'muon' orthogonalises whole matrices, of which an adapter has none"
        raise UserError("optimizer.kind", problem, "take adamw for adapters")
    for name, value in (("dtype", "float64"), ("compile", "on")):
        if adapter.weights != "full" and getattr(recipe.training, name) == value:
            problem = f"'{value}' with adapter.weights '{adapter.weights}'"
            raise UserError(f"training.{name}", problem, "take another, or adapter.weights full")


def _check_ahead(recipe: AutoregressiveRecipe) -> None:
    depths, context, drafted = recipe.model.mtp.depths, recipe.data.context, recipe.sampler.speculate
    if depths > context - 2:
        problem = f"{depths}, and of data.context = {context} tokens none has so many after the next one"
        raise UserError("model.mtp.depths", problem, f"take at most {context - 2}")
    if drafted and not depths:
        problem = f"{drafted} with model.mtp.depths = 0: nothing drafts"
        raise UserError("sampler.speculate", problem, "set it to 0, or train a model with --model.mtp.depths 1")
    if drafted > depths:
        raise UserError("sampler.speculate", f"{drafted} is above model.mtp.depths = {depths}", f"take at most {depths}")


def _check_conversations(recipe: AutoregressiveRecipe | DiscreteRecipe) -> None:
    """That nothing is done to them which would part question and answer."""
    if recipe.data.split != "document":
        raise UserError("data.split", f"'{recipe.data.split}' with conversations, which are held out whole", "take 'document'")
    name = "random_length" if isinstance(recipe, DiscreteRecipe) else "fim_rate"
    if share := getattr(recipe.objective, name):
        raise UserError(f"objective.{name}", f"{share:g} with conversations, which are neither cut nor rearranged", "set it to 0")


def _check_latent(model: TransformerConfig) -> None:
    """That nothing of grouped-query attention is asked of it."""
    latent = model.latent
    if latent.rotary % 2:
        raise UserError("model.latent.rotary", f"{latent.rotary} is odd, rotary positions want pairs", "choose an even one")
    if latent.value > (each := latent.plain + latent.rotary):
        raise UserError("model.latent.value", f"{latent.value} is above model.latent.plain + rotary = {each}", "lower it")
    for name in ("kv_heads", "head_width", "rotary_width", "qk_norm", "qkv_bias"):
        if getattr(model, name):
            raise UserError(f"model.{name}", f"is {getattr(model, name)} with latent attention", "leave it out, or model.latent.width 0")


def _check_experts(model: TransformerConfig) -> None:
    experts = model.experts
    if not experts.routed:
        return
    if experts.routed % experts.groups:
        problem = f"{experts.groups} do not divide model.experts.routed = {experts.routed}"
        raise UserError("model.experts.groups", problem, "choose a divisor")
    if experts.kept_groups > experts.groups:
        raise UserError("model.experts.kept_groups", f"{experts.kept_groups} of model.experts.groups = {experts.groups}", "lower it")
    left = experts.routed // experts.groups * experts.kept_groups
    if experts.top_k > left:
        problem = f"{experts.top_k} is above the {left} experts of the {experts.kept_groups} group(s) kept"
        raise UserError("model.experts.top_k", problem, "lower it, or keep more groups")
    if experts.dense >= model.depth:
        problem = f"{experts.dense} layers without experts are all of model.depth = {model.depth}"
        raise UserError("model.experts.dense", problem, "lower it")
    if model.feedforward == "gelu":
        raise UserError("model.feedforward", "'gelu', but experts are gated", "take 'swiglu'")


def _check_discrete(recipe: DiscreteRecipe) -> None:
    objective, model, context = recipe.objective, recipe.model, recipe.data.context
    if model.mtp.depths:
        raise UserError("model.mtp.depths", f"{model.mtp.depths} in a model that uncovers tokens in any order", "set it to 0")
    if objective.end_padding > context:
        raise UserError("objective.end_padding", f"{objective.end_padding} is more than data.context = {context}", "lower it")
    if model.time_conditioning and isinstance(objective, BlockConfig):
        raise UserError("model.time_conditioning", f"nothing tells it the time with objective.kind '{objective.kind}'", "set it to false")
    if isinstance(objective, BlockConfig) and model.window:
        raise UserError("model.window", f"{model.window} with blocks, which see all before them", "set it to 0")
    if objective.anneal and (model.window or isinstance(objective, BlockConfig)):
        field, what = ("model.window", model.window) if model.window else ("objective.anneal", objective.anneal)
        problem = (
            f"{what} with objective.anneal = {objective.anneal}" if model.window else f"{what} with blocks, which never see what follows"
        )
        raise UserError(field, problem, "set it to 0")
    if isinstance(objective, BlockConfig) and objective.growth:
        _check_growth(objective)
    # the sampler would say so, but not before the run's closing sample
    sampler, block = recipe.sampler, objective.block if isinstance(objective, BlockConfig) else 0
    tokens = min(sampler.length, context - 1) + (1 if block else 0)  # the start token stands in the first block
    if (size := sampler.window or block) and 0 < sampler.steps < -(-tokens // size):
        problem = f"got {sampler.steps} steps for {-(-tokens // size)} windows of {size} tokens"
        remedy = f"take at least {-(-tokens // size)} steps or a {'block' if block else 'window'} of at least {-(-tokens // sampler.steps)}"
        raise UserError("sampler.steps", problem, remedy)


def _check_growth(objective: BlockConfig) -> None:
    for small, large in pairwise((*objective.growth, objective.block)):
        if small >= large or large % small:
            problem = f"{small} is followed by {large}, which is no larger multiple of it"
            raise UserError("objective.growth", problem, "let each divide the next, and the last objective.block, as [1, 2, 4] for 8")
    if objective.clip:
        raise UserError("objective.clip", "true with objective.growth: the search is for one size of block", "set it to false")


def _check_preference(recipe: AutoregressiveRecipe | DiscreteRecipe) -> None:
    """That pairs come with what learns from them, and what learns from them with room for a pair."""
    beta, kinds = recipe.objective.preference.beta, {source.kind for source in recipe.data.sources}
    if not beta:
        if "preference" in kinds:
            raise UserError("objective.preference.beta", "is 0, and the data are pairs", "set it to 0.1, say")
        return
    if kinds != {"preference"}:
        raise UserError("data.sources.kind", f"'{min(kinds - {'preference'})}' with objective.preference", "take 'preference'")
    if isinstance(recipe, AutoregressiveRecipe):
        copies = 2
    else:
        if isinstance(recipe.objective, ScoreConfig):
            raise UserError("objective.kind", "'score' with objective.preference, which wants masks", "take 'masked' or 'block'")
        if isinstance(recipe.objective, BlockConfig) and recipe.objective.clip:
            raise UserError("objective.clip", "true with objective.preference, whose times are not drawn so", "set it to false")
        copies = 2 * recipe.objective.preference.draws
    if (room := copies * recipe.data.context) > recipe.data.packing_length:
        problem = f"{recipe.data.packing_length} holds no pair: {copies} answers of up to data.context = {recipe.data.context} tokens"
        raise UserError("data.packing_length", problem, f"raise it to {room}")


def _check_images(data: ImageDataConfig) -> None:
    if data.captions and data.kind not in ("folder", "parquet", "hub"):
        raise UserError("data.captions", f"'{data.kind}' has none", "leave it empty, or take a folder, parquet or the hub")
    if bool(data.captions) != bool(data.text_encoder):
        missing, given = ("data.text_encoder", "captions") if data.captions else ("data.captions", "text_encoder")
        raise UserError(missing, f"is empty, data.{given} is not", f"give both, or leave data.{given} empty")
    if data.kind == "toy" and data.autoencoder:
        raise UserError("data.autoencoder", "given for points, which are no images", "leave it empty")
    if data.augment.probability and (data.autoencoder or data.kind == "toy"):
        what = "latents, which are computed once" if data.autoencoder else "points, which are no images"
        raise UserError("data.augment.probability", f"{data.augment.probability} with {what}", "set it to 0")


def _attended(config: UNetConfig) -> list[int]:
    """Channels of the levels that attend, the middle's among them."""
    levels = [width for width, where in zip(config.channels, config.attention, strict=True) if where != "none"]
    return levels + ([config.channels[-1]] if "attention" in config.middle else [])
