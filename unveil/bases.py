"""Networks that others stand on: the weights of a folder, ours or another library's, and the adapters that belong on them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unveil.adapters import lora
from unveil.adapters.bits import Weights, fill
from unveil.adapters.fingerprint import Fingerprint
from unveil.config import TextRecipe
from unveil.errors import UserError
from unveil.interop import text
from unveil.interop.tensors import Shards, Some
from unveil.training import final

FIELD = "training.initial"
_CLIP = "clip."
"""State of training that block diffusion keeps beside its weights."""


def weights_of(path: Path) -> Mapping[str, Tensor]:
    """The weights of a model of text by our names, read when they are asked for.

    Raises UserError where there is none, where it is damaged, and for an adapter, which is no network by itself.
    """
    if text.recognised(path):
        return text.named(path)
    folder = path / "final" if (path / "final").is_dir() else path
    if (folder / lora.CONFIG).is_file():
        raise UserError(str(path), "is an adapter, no network by itself", f"merge it first: unveil convert {path} NEW --to unveil")
    if not (folder / final.WEIGHTS).is_file():
        raise UserError(str(path), "holds no model", "give a run that was trained to its end, or a folder with a model of text")
    found = Shards([folder / final.WEIGHTS])
    return Some(found, [name for name in found if not name.startswith(_CLIP)])


def fingerprint(path: Path) -> str:
    """The hash of a model's weights, the same for a run and for what it was exported as."""
    seen, source = Fingerprint(), weights_of(path)
    for name in source:
        seen.see(name, source[name])
    return seen.value()


def built(build: Callable[[], nn.Module], path: Path, kind: Weights, seen: Fingerprint | None = None) -> nn.Module:
    """The network that ``build`` makes, with the weights of a folder in the dtype in which they lie there, or in few bits.

    Raises UserError for weights that do not belong to it.
    """
    with torch.device("meta"):
        network = build()
    fill(network, weights_of(path), kind, str(path), seen)
    return network


def started(build: Callable[[], nn.Module], recipe: TextRecipe) -> nn.Module:
    """A recipe's base with a fresh adapter. Raises UserError for a base that is another than when its training began."""
    seen = Fingerprint()
    network = built(build, Path(recipe.training.initial), recipe.adapter.weights, seen)
    _same(seen.value(), recipe, FIELD, recipe.training.initial)
    lora.wrap(network, recipe.adapter)
    return network


def adapted(build: Callable[[], nn.Module], folder: Path, recipe: TextRecipe, kind: Weights, base: Path | None = None) -> nn.Module:
    """The adapter that lies in ``folder`` on its base, or on ``base``.

    Raises UserError where the base has gone or is another, and as ``lora.load``.
    """
    where = base or base_of(folder, recipe)
    seen = Fingerprint()
    network = built(build, where, kind, seen)
    _same(seen.value(), recipe, str(folder), str(where))
    lora.load(folder, network)
    return network


def base_of(folder: Path, recipe: TextRecipe) -> Path:
    """Where the base of an adapter lies: as it lay beside it, so that both can be moved together, or else where it was trained.

    Raises UserError where neither is there.
    """
    beside = lora.base(folder)
    places = [folder / beside] if beside else []
    places.append(Path(recipe.training.initial))
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        remedy = "put it back, or name it: unveil sample BASE --adapter " + str(folder)
        raise UserError(str(folder), f"is an adapter, and its base '{recipe.training.initial}' is gone", remedy)
    return Path(os.path.normpath(found))


def save(folder: Path, network: nn.Module, recipe: TextRecipe, config: Mapping[str, Any]) -> None:
    """What a finished run leaves in ``folder``: its network, or the adapter with the way to its base; and ``config``."""
    if not recipe.adapter.rank:
        final.write(folder, network, config)
        return
    try:
        beside = os.path.relpath(Path(recipe.training.initial).resolve(), folder.resolve())
    except ValueError:  # another drive
        beside = recipe.training.initial
    final.write_config(folder, config)
    lora.save(folder, network, beside)


def _same(found: str, recipe: TextRecipe, field: str, base: str) -> None:
    if recipe.adapter.base and found != recipe.adapter.base:
        problem = f"the adapter belongs on weights {recipe.adapter.base}, those of '{base}' are {found}"
        raise UserError(field, problem, "give the base that it was trained on")
