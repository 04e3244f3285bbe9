"""Recipes in and out of TOML, checked key by key against the dataclasses of ``unveil.config``.

A recipe file states what differs from the defaults. It may stand on another with ``base = "NAME"`` (a packaged recipe, or a file
beside it): tables are merged, anything else replaces; where the family differs, ``objective`` and ``sampler`` are not inherited.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar

from unveil.config import (
    FORMAT_VERSION,
    RECIPES,
    AdapterConfig,
    AnyRecipe,
    AutoregressiveRecipe,
    BlockConfig,
    DiscreteRecipe,
    DiTConfig,
    GaussianConfig,
    GaussianRecipe,
    ImageDataConfig,
    LatentConfig,
    NoiseConfig,
    PathConfig,
    Recipe,
    ScheduleConfig,
    ScoreConfig,
    StreamsRecipe,
    TextDataConfig,
    TokenizerConfig,
    TransformerConfig,
    UNetConfig,
    YarnConfig,
)
from unveil.errors import UserError, nearest
from unveil.schema import build, check_ranges, join, override

R = TypeVar("R", bound=Recipe)
A = TypeVar("A", AutoregressiveRecipe, DiscreteRecipe, GaussianRecipe, AnyRecipe)
PACKAGED = Path(__file__).parent / "recipes"
_CHOICES = "give a recipe file, a run directory or one of the names that `unveil train --help` lists"
OWN_SECTIONS = ("objective", "sampler")


def names() -> list[str]:
    """The packaged recipes."""
    return sorted(path.stem for path in PACKAGED.glob("*.toml"))


def load(name: str) -> Any:
    """The recipe of a file, of a run directory or of that packaged name; its type is its family's. Paths in a file are relative to it.

    Raises UserError.
    """
    return parse(_read(name, ()), name)


def with_overrides(recipe: A, overrides: Iterable[tuple[str, Any]]) -> A:
    """The recipe with ``("training.steps", "100")`` and the like on top, through the same checks. Raises UserError.

    A text given for what is no text is read as TOML. Paths are relative to the working directory.
    """
    tree = tomllib.loads(dumps(recipe))
    for key, value in overrides:
        override(tree, type(recipe), key.replace("-", "_"), value)
    _anchor(tree, Path.cwd())
    return parse(tree)


def parse(tree: Mapping[str, Any], where: str = "the recipe") -> Any:
    """A recipe from nested tables, every key, type and range checked. Raises UserError."""
    tree = dict(tree)
    version = tree.pop("format", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise UserError(
            "format", f"{where} has format {version!r}, this unveil reads {FORMAT_VERSION}", "use the unveil version that wrote it"
        )
    family = tree.get("family")
    if family not in RECIPES:
        problem = f"no family named in {where}" if family is None else f"{family!r} in {where} is no family"
        raise UserError("family", problem, nearest(str(family), RECIPES) if family else 'add family = "..." (' + ", ".join(RECIPES) + ")")
    return checked(build(RECIPES[family], tree, ""))


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


def dumps(recipe: Recipe) -> str:
    """TOML of every setting, in the order of the dataclasses; ``parse`` gives the same recipe back."""
    import tomli_w

    return tomli_w.dumps({"format": FORMAT_VERSION, **tables(recipe)})


def tables(recipe: Recipe) -> dict[str, Any]:
    """Every setting as nested tables, without what is not set: TOML has no word for it."""

    def stated(tree: dict[str, Any]) -> dict[str, Any]:
        return {key: stated(value) if isinstance(value, dict) else value for key, value in tree.items() if value is not None}

    return stated(dataclasses.asdict(recipe))


def with_data(recipe: A, path: str) -> A:
    """The recipe on a person's own data: other settings stay, of a text's first source too. ``path`` is a file, a folder or ``hub:ID``."""
    if isinstance(recipe, GaussianRecipe):
        return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, **_image_source(path)))
    if isinstance(recipe, StreamsRecipe):
        return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, kind="folder", path=str(Path(path).resolve())))
    first = recipe.data.sources[0]
    kind: Literal["text", "jsonl", "parquet", "hub", "chat", "preference"] = _source_kind(path)
    if first.kind in ("chat", "preference"):
        if kind != "jsonl":
            raise UserError("--data", f"{path!r} is no JSONL, and this recipe learns from conversations", "give a file NAME.jsonl")
        kind = first.kind
    source = dataclasses.replace(first, kind=kind, path=path.removeprefix("hub:") if kind == "hub" else str(Path(path).resolve()))
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, sources=(source,)))


def differences(ours: Recipe, theirs: Recipe) -> list[tuple[str, Any, Any]]:
    """``(setting, ours, theirs)`` for every setting that differs; a family comes alone, since all else follows from it."""
    if ours.family != theirs.family:
        return [("family", ours.family, theirs.family)]
    a, b = dict(_flat(dataclasses.asdict(ours), "")), dict(_flat(dataclasses.asdict(theirs), ""))
    return [(key, a.get(key), b.get(key)) for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]


def _flat(value: Any, key: str) -> Iterable[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        yield key, value
        return
    for name, item in items:
        yield from _flat(item, join(key, str(name)))


def _image_source(path: str) -> dict[str, Any]:
    """Settings of ``data`` for images at a path; of IDX files in a folder the training images, with the labels beside them."""
    if path.startswith("hub:"):
        return {"kind": "hub", "path": path.removeprefix("hub:"), "labels": ""}
    files = _files(path, "a folder of images, an IDX file, Parquet or hub:ID")
    idx = sorted((p for p in files if "images-idx3-ubyte" in p.name), key=lambda p: (not p.name.startswith("train"), p))
    if idx:
        labels = idx[0].with_name(idx[0].name.replace("images-idx3", "labels-idx1"))
        return {"kind": "idx", "path": str(idx[0].resolve()), "labels": str(labels.resolve()) if labels.exists() else ""}
    kind = "parquet" if any(p.suffix == ".parquet" for p in files) else "folder"
    return {"kind": kind, "path": str(Path(path).resolve()), "labels": ""}


def _files(path: str, wanted: str) -> list[Path]:
    place = Path(path)
    if not place.exists():
        raise UserError("--data", f"no file or folder {path!r}", f"give {wanted}")
    return [place] if place.is_file() else [p for p in sorted(place.rglob("*")) if p.is_file()]


def _source_kind(path: str) -> Literal["text", "jsonl", "parquet", "hub"]:
    if path.startswith("hub:"):
        return "hub"
    suffixes = {suffix for p in _files(path, "a text file, a folder, JSONL, Parquet or hub:ID") for suffix in p.suffixes}
    return "parquet" if ".parquet" in suffixes else "jsonl" if ".jsonl" in suffixes else "text"


# Reading ---------------------------------------------------------------------------------------------------------------------


def _read(name: str, seen: tuple[str, ...]) -> dict[str, Any]:
    path = Path(name).expanduser()
    if path.is_dir():
        path = path / "recipe.toml"
        if not path.is_file():
            raise UserError("recipe", f"the folder {name!r} has no recipe.toml", _CHOICES)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise UserError("recipe", f"no file {name!r}", _CHOICES)
        text, folder = path.read_bytes(), path.resolve().parent
    elif name in names():
        text, folder = (PACKAGED / f"{name}.toml").read_bytes(), None
    else:
        raise UserError("recipe", f"no recipe {name!r}", nearest(name, names()))
    try:
        tree = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(str(name), f"is not TOML ({error})", "correct that line") from None
    if folder is not None:
        _anchor(tree, folder)
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str) or name in seen:
        raise UserError("base", f"got {base!r} in {name}", "name a packaged recipe or another file")
    beside = folder is not None and (folder / base).exists()
    under = _read(str(folder / base) if beside and folder is not None else base, (*seen, name))
    if tree.get("family", under.get("family")) != under.get("family"):
        under = {key: value for key, value in under.items() if key not in OWN_SECTIONS}
    return _merged(under, tree)


def _anchor(tree: dict[str, Any], folder: Path) -> None:
    """Make the paths of a recipe file absolute; a wrong shape is left for the checker to name."""
    data, objective, training = tree.get("data"), tree.get("objective"), tree.get("training")
    if isinstance(training, dict) and isinstance(base := training.get("initial"), str) and base and not base.startswith("hub:"):
        training["initial"] = str(folder / Path(base).expanduser())
    if isinstance(objective, dict) and isinstance(objective.get("teacher"), str) and objective["teacher"]:
        objective["teacher"] = str(folder / Path(objective["teacher"]).expanduser())
    if not isinstance(data, dict):
        return
    for key in ("autoencoder", "text_encoder", "template"):
        if isinstance(data.get(key), str) and data[key]:
            data[key] = str(folder / Path(data[key]).expanduser())
    sources, tokenizer = data.get("sources"), data.get("tokenizer")
    tables = [s for s in sources if isinstance(s, dict) and s.get("kind") != "hub"] if isinstance(sources, list) else []
    images = [data] if data.get("kind") in ("idx", "folder", "parquet") else []
    for table in [*tables, *images, tokenizer if isinstance(tokenizer, dict) else {}]:
        for key in ("path", "labels") if data.get("kind") == "idx" else ("path",):
            if isinstance(table.get(key), str) and table[key]:
                table[key] = str(folder / Path(table[key]).expanduser())


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        result[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result
