"""Recipes in and out of TOML, checked key by key against the dataclasses of ``unveil.config``.

A recipe file states what differs from the defaults. It may stand on another with ``base = "NAME"`` (a packaged recipe, or a file
beside it): tables are merged, anything else replaces; where the family differs, ``objective`` and ``sampler`` are not inherited.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from unveil.config import (
    FORMAT_VERSION,
    RECIPES,
    MaskedConfig,
    Range,
    Recipe,
    ScheduleConfig,
    SourceConfig,
    TextDataConfig,
    TextRecipe,
    TokenizerConfig,
    TransformerConfig,
)
from unveil.errors import UserError, nearest

R = TypeVar("R", bound=Recipe)
PACKAGED = Path(__file__).parent / "recipes"
_CHOICES = "give a recipe file, a run directory or one of the names that `unveil train --help` lists"
OWN_SECTIONS = ("objective", "sampler")


def names() -> list[str]:
    """The packaged recipes."""
    return sorted(path.stem for path in PACKAGED.glob("*.toml"))


def load(name: str) -> TextRecipe:
    """The recipe of a file, of a run directory or of that packaged name. Paths in a file are relative to it. Raises UserError."""
    return parse(_read(name, ()), name)


def with_overrides(recipe: TextRecipe, overrides: Iterable[tuple[str, Any]]) -> TextRecipe:
    """The recipe with ``("training.steps", "100")`` and the like on top, through the same checks. Raises UserError.

    A text given for what is no text is read as TOML. Paths are relative to the working directory.
    """
    tree = tomllib.loads(dumps(recipe))
    for key, value in overrides:
        _override(tree, type(recipe), key.replace("-", "_"), value)
    _anchor(tree, Path.cwd())
    return parse(tree)


def parse(tree: Mapping[str, Any], where: str = "the recipe") -> TextRecipe:
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
    return checked(_build(RECIPES[family], tree, ""))


def checked(recipe: R) -> R:
    """The recipe itself, once every range holds and its settings fit together. Raises UserError."""
    _ranges(recipe, "")
    for section in (getattr(recipe, f.name) for f in dataclasses.fields(recipe)):
        match section:
            case TextDataConfig(context=context, packing_length=pack) if pack < context:
                raise UserError("data.packing_length", f"{pack} is less than data.context = {context}", "raise it")
            case TextDataConfig(validation=validation, test=test) if validation + test >= 1:
                raise UserError("data.validation", f"{validation} and data.test = {test} leave nothing to train on", "lower them")
            case TextDataConfig(sources=()):
                raise UserError("data.sources", "is empty", "name at least one source")
            case TextDataConfig(tokenizer=TokenizerConfig(kind="file", path="")):
                raise UserError("data.tokenizer.path", "is empty", "give the path of a tokenizer.json")
            case TransformerConfig(width=width, heads=heads) if width % (2 * heads):
                raise UserError("model.heads", f"{heads} do not cut model.width = {width} into even parts", "choose a divisor")
            case TransformerConfig(heads=heads, kv_heads=kv_heads) if kv_heads and heads % kv_heads:
                raise UserError("model.kv_heads", f"{kv_heads} does not divide model.heads = {heads}", "choose a divisor, or 0")
            case MaskedConfig(t_min=t_min, t_max=t_max) if t_min >= t_max:
                raise UserError("objective.t_min", f"{t_min} is not below objective.t_max = {t_max}", "lower it")
            case ScheduleConfig(kind="wsd", warmup=warmup, decay=decay) if warmup + decay > 1:
                raise UserError("schedule.decay", f"{decay} and schedule.warmup = {warmup} are more than the whole run", "lower them")
    return recipe


def dumps(recipe: Recipe) -> str:
    """TOML of every setting, in the order of the dataclasses; ``parse`` gives the same recipe back."""
    import tomli_w

    return tomli_w.dumps({"format": FORMAT_VERSION, **dataclasses.asdict(recipe)})


def with_data(recipe: TextRecipe, path: str) -> TextRecipe:
    """The recipe on a person's own text: the first source's other settings stay. ``path`` is a file, a folder or ``hub:ID``."""
    first, kind = recipe.data.sources[0], _source_kind(path)
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
        yield from _flat(item, _join(key, str(name)))


def _source_kind(path: str) -> Literal["text", "jsonl", "parquet", "hub"]:
    if path.startswith("hub:"):
        return "hub"
    place = Path(path)
    if not place.exists():
        raise UserError("--data", f"no file or folder {path!r}", "give a text file, a folder, JSONL, Parquet or hub:ID")
    files = [place] if place.is_file() else [p for p in sorted(place.rglob("*")) if p.is_file()]
    suffixes = {suffix for p in files for suffix in p.suffixes}
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
    data = tree.get("data")
    if not isinstance(data, dict):
        return
    sources, tokenizer = data.get("sources"), data.get("tokenizer")
    tables = [s for s in sources if isinstance(s, dict) and s.get("kind") != "hub"] if isinstance(sources, list) else []
    for table in [*tables, tokenizer if isinstance(tokenizer, dict) else {}]:
        if isinstance(table.get("path"), str) and table["path"]:
            table["path"] = str(folder / Path(table["path"]).expanduser())


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        result[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def _override(tree: dict[str, Any], hint: Any, key: str, value: Any) -> None:
    """Put ``value`` at ``key`` (``training.steps``, ``data.sources.0.path``) of a recipe's whole tree."""
    node: Any = tree
    *sections, last = key.split(".")
    for part in sections:
        if isinstance(node, list):
            if not part.isdecimal() or int(part) >= len(node):
                raise UserError(f"--{key}", f"no item {part!r}", f"give a number below {len(node)}")
            node = node[int(part)]
            continue
        if part not in node:
            raise UserError(f"--{key}", f"no section {part!r}", nearest(part, [k for k, v in tree.items() if isinstance(v, dict)]))
        node, hint = node[part], _hints(hint)[part]
        hint = get_args(hint)[0] if get_origin(hint) is tuple else hint
        if not isinstance(node, dict | list):
            raise UserError(f"--{key}", f"{part!r} is a value, not a section", "leave out what follows it")
    if isinstance(node, list):
        raise UserError(f"--{key}", f"{sections[-1]!r} is a list", f"name an item: --{'.'.join(sections)}.0.{last}")
    node[last] = _value(value, _hints(hint).get(last)) if isinstance(value, str) else list(value) if isinstance(value, tuple) else value


def _value(text: str, wanted: Any) -> Any:
    """``text`` as TOML; as it stands where that fails or a text is wanted; a lone text is a list of one where a list is."""
    try:
        value = text if wanted is str or get_origin(wanted) is Literal else tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    return [value] if get_origin(wanted) is tuple and isinstance(value, str) else value


# Checking --------------------------------------------------------------------------------------------------------------------


def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _build(cls: Any, table: Any, key: str) -> Any:
    if not isinstance(table, dict):
        raise UserError(key, f"got {table!r}, wanted a table of settings", f"write [{key}] above them")
    hints = _hints(cls)
    for name in table:
        if name not in hints:
            raise UserError(_join(key, name), "no such setting", nearest(name, hints))
    return cls(**{name: _convert(hints[name], value, _join(key, name)) for name, value in table.items()})


def _convert(hint: Any, value: Any, key: str) -> Any:
    origin = get_origin(hint)
    if origin is Annotated:
        return _convert(get_args(hint)[0], value, key)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, key)
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong(key, value, "a list")
        return tuple(_convert(get_args(hint)[0], item, _join(key, str(i))) for i, item in enumerate(value))
    if origin is Literal:
        if value not in get_args(hint):
            raise UserError(key, f"got {value!r}", nearest(str(value), get_args(hint)))
        return value
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise _wrong(key, value, {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[hint])
    return value


def _wrong(key: str, value: Any, wanted: str) -> UserError:
    return UserError(key, f"got {value!r}", f"give {wanted}")


def _ranges(section: Any, key: str) -> None:
    for name, hint in _hints(type(section)).items():
        value, at = getattr(section, name), _join(key, name)
        if dataclasses.is_dataclass(value):
            _ranges(value, at)
        elif get_origin(hint) is Annotated:
            _in_range(value, get_args(hint)[1], at)
        elif isinstance(value, tuple):
            for i, item in enumerate(value):
                if isinstance(item, SourceConfig):
                    _ranges(item, _join(at, str(i)))


def _in_range(value: float, wanted: Range, key: str) -> None:
    low, high, is_open = wanted
    if math.isfinite(value) and low <= value <= high and not (is_open and value == low):
        return
    start = f"a number above {low:g}" if is_open else f"at least {low:g}"
    raise UserError(key, f"got {value}", f"give {start}" + (f" and at most {high:g}" if math.isfinite(high) else ""))


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
