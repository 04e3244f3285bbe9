"""Low-rank adapters (Hu et al. 2021) on our matrices, by ``peft``: its layers, its files, its merging."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.adapters.bits import matrices, put
from unveil.adapters.extra import library
from unveil.config import AdapterConfig
from unveil.errors import UserError, nearest
from unveil.nn.linear import Linear
from unveil.nn.quantised import Quantised
from unveil.training.weights import assign

FIELD = "adapter.rank"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAME = "default"
_PREFIX = "base_model.model."
"""What ``peft`` puts before the names of the network that it wraps."""


def wrap(network: nn.Module, config: AdapterConfig) -> None:
    """Put a fresh adapter on the matrices of the blocks, in place; it alone is trained from here on. B begins at 0, so nothing changes yet.

    Raises UserError for a target that no matrix has as its name.
    """
    names = {name.rpartition(".")[2] for name, _ in matrices(network)}
    for target in config.targets:
        if target not in names:
            raise UserError("adapter.targets", f"{target!r} names no matrix of the blocks", nearest(target, names))
    peft = library("peft", FIELD)
    chosen = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=sorted(config.targets or names)
    )
    _inject(network, chosen)


def _inject(network: nn.Module, chosen: Any) -> None:
    """In float32 or wider, whatever the base has: masters, as everywhere."""
    chosen._register_custom_module({Linear: _layer(), Quantised: _layer()})
    network.requires_grad_(False)
    library("peft", FIELD).inject_adapter_in_model(chosen, network, adapter_name=_NAME)
    for parameter in _named(network).values():
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))


@cache
def _layer() -> type[nn.Module]:
    """A class of ``peft``'s for our matrices; ``peft`` is imported when the first adapter is made."""
    lora = library("peft.tuners.lora.layer", FIELD)

    class Adapted(lora.Linear):  # type: ignore[misc, name-defined]
        """``W x + (alpha / rank) B A dropout(x)`` in the dtype of ``x``, with what our networks ask of a ``Linear``."""

        def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
            weight: Any = module.weight
            return weight.shape[1], weight.shape[0]

        def forward(self, x: Tensor, rows: slice | None = None) -> Tensor:
            out: Tensor = self.base_layer(x, rows)
            for a, b, dropout, scale in self._active():
                up = b if rows is None else b[rows]
                out = out + F.linear(F.linear(dropout(x), a.to(x.dtype)), up.to(x.dtype)) * scale
            return out

        def matrix(self, dtype: torch.dtype) -> Tensor:
            found: Tensor = self.base_layer.matrix(dtype)
            for a, b, _, scale in self._active():
                found = found + (b @ a).to(dtype) * scale
            return found

        def _active(self) -> list[tuple[Tensor, Tensor, nn.Module, float]]:
            if self.disable_adapters or self.merged:
                return []
            return [
                (self.lora_A[name].weight, self.lora_B[name].weight, self.lora_dropout[name], self.scaling[name])
                for name in self.active_adapters
                if name in self.lora_A
            ]

    return Adapted


def merge(network: nn.Module) -> None:
    """Add every adapter to its matrix and take the wrapping off, in place. A matrix in few bits first becomes what it stands for: so the
    network computes what it did."""
    for name, module in list(network.named_modules()):
        if isinstance(module, _layer()):
            held: Any = module
            if isinstance(held.base_layer, Quantised):
                held.base_layer = held.base_layer.unpacked()
            held.merge()
            put(network, name, held.base_layer)
    del network.peft_config


def save(folder: Path, network: nn.Module, base: str | None = None) -> None:
    """Write the adapter as ``peft`` reads it; ``base`` is the path from here to the network that it belongs on."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen: Any = network.peft_config
    chosen = replace(chosen[_NAME], base_model_name_or_path=base, inference_mode=True)
    chosen.save_pretrained(str(folder))
    partial = folder / f".{WEIGHTS}.partial"
    save_file({name: p.detach().cpu().contiguous() for name, p in _named(network).items()}, partial, metadata={"format": "pt"})
    os.replace(partial, folder / WEIGHTS)


def base(folder: Path) -> str:
    """The path from a folder to the base of its adapter, as ``save`` wrote it; empty where none is named."""
    try:
        named = json.loads((folder / CONFIG).read_bytes())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):  # ``load`` will say what is wrong
        return ""
    return named if isinstance(named, str) else ""


def load(folder: Path, network: nn.Module) -> None:
    """Put the adapter of a folder on ``network``, in place; nothing is trained.

    Raises UserError for files that are missing or damaged, for a kind of adapter that is not computed here, and for one that does not fit.
    """
    peft = library("peft", FIELD)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(str(folder / name), "is missing", "give a folder that `unveil train` or peft wrote an adapter into")
    try:
        chosen = peft.PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(str(folder / CONFIG), f"is corrupted ({error})", "copy it again from where it was trained") from None
    if chosen.peft_type != "LORA":
        raise UserError(str(folder / CONFIG), f"peft_type is {str(chosen.peft_type)!r}, and only LORA is computed here", "take a LoRA")
    try:
        found = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(str(folder / WEIGHTS), f"is truncated or corrupted ({error})", "copy it again from where it was trained") from None
    try:
        _inject(network, chosen)
    except ValueError as error:
        problem = f"fits no matrix of this network ({str(error).splitlines()[0]})"
        raise UserError(str(folder / CONFIG), problem, "use it with the network it was trained on") from None
    layers: list[Any] = [module for module in network.modules() if isinstance(module, _layer())]
    if any(layer.lora_variant for layer in layers):
        raise UserError(str(folder / CONFIG), "describes a variant of LoRA that is not computed here", "train a plain one")
    assign(found, {name: p.detach() for name, p in _named(network).items()}, str(folder / WEIGHTS))
    network.requires_grad_(False)


def _named(network: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters by ``peft``'s names in files."""
    own = {name: p for name, p in network.named_parameters() if f".{_NAME}." in name}
    return {_PREFIX + name.replace(f".{_NAME}.", "."): p for name, p in own.items()}
