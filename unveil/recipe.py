"""Recipes in and out of TOML, checked key by key against the dataclasses of ``unveil.config``.

A recipe file states what differs from the defaults. It may stand on another with ``base = "NAME"`` (a packaged recipe, or a file
beside it): tables are merged, anything else replaces; where the family differs, ``objective`` and ``sampler`` are not inherited.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from unveil.checks import checked as checked
from unveil.config import (
    FORMAT_VERSION,
    RECIPES,
    AnyRecipe,
    AutoregressiveRecipe,
    DiscreteRecipe,
    GaussianRecipe,
    Recipe,
    StreamsRecipe,
)
from unveil.errors import UserError, nearest
from unveil.schema import build, join, override

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
