"""The matrices of the blocks in 8 or 4 bits, by ``torchao``; embedding, head, norms and biases stay as they are.

``int8`` rounds each row of a matrix to whole numbers of [-128, 127] times a float32 scale of its own, symmetrically: about 8 bits a weight.
``nf4`` is the normal float of QLoRA (Dettmers et al. 2023): each 64 weights share a scale, the scales themselves are rounded to 8 bits in
groups of up to 256, and a weight is one of 16 quantiles of a normal distribution: about 4.1 bits. Both are stored so and multiplied in the
dtype of the activations; nothing is rounded but the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from unveil.adapters.extra import library
from unveil.adapters.fingerprint import Fingerprint
from unveil.adapters.normal_float import rounded
from unveil.errors import UserError
from unveil.nn.linear import Linear
from unveil.nn.modulation import Tell
from unveil.nn.quantised import Quantised
from unveil.training.weights import check, weights

Weights = Literal["full", "int8", "nf4"]
FIELD = "--weights"
GROUP, SCALES = 64, 256
"""Weights that share a scale, and scales that share one, of ``nf4``."""

BYTES = {"int8": 1.0, "nf4": 0.5 + 1 / GROUP}
"""Of a weight, but for the few bytes of a row or of 16,384 weights."""


def matrices(network: nn.Module) -> Iterator[tuple[str, Linear | Quantised]]:
    """The matrices of the blocks by their full name, but for those that tell a noise level."""
    for name, module in network.named_modules():
        if name.startswith("blocks.") and isinstance(module, Linear | Quantised) and not isinstance(module, Tell):
            yield name, module


def stored(weight: Tensor, kind: Weights, name: str = "weight") -> Tensor:
    """A matrix in few bits. Raises UserError, with its ``name``, for one that ``nf4`` does not divide."""
    wide = weight.detach().float()
    groups, rest = divmod(wide.numel(), GROUP)
    if kind == "nf4" and rest:
        raise UserError(FIELD, f"'nf4' wants matrices of a multiple of {GROUP} weights, {name} has {wide.numel()}", "take int8")
    if kind == "nf4":
        return rounded(wide.contiguous(), GROUP, math.gcd(groups, SCALES), FIELD)
    quantization = library("torchao.quantization", FIELD)
    return quantization.Int8Tensor.from_hp(wide, quantization.PerRow())


def fill(network: nn.Module, source: Mapping[str, Tensor], kind: Weights, where: str, seen: Fingerprint | None = None) -> None:
    """Give a network that was built on the meta device its weights, one at a time: what is dense is at most one matrix more.

    Args:
        source: weights by the network's names, read when they are asked for. They keep the dtype in which they lie there.
        kind: of the matrices of the blocks.
        where: the source's name for messages.
        seen: is shown every weight as it was before it was rounded.

    Raises:
        UserError: a weight is missing, left over or misshapen, or cannot be held in few bits.
    """
    wanted = {name: tensor for name, tensor in weights(network).items() if tensor.is_meta}
    check({name: wanted.get(name, torch.empty(0, device="meta")) for name in source}, wanted, where)  # the names alone: nothing is read
    first = {id(p): name for name, p in network.named_parameters()}
    tied = [(name, first[id(p)]) for name, p in network.named_parameters(remove_duplicate=False) if first[id(p)] != name]
    buffers = dict(network.named_buffers())
    few = {f"{name}.weight": (name, module) for name, module in matrices(network)} if kind != "full" else {}
    for name, tensor in wanted.items():
        value = source[name]
        check({name: value}, {name: tensor}, where)
        if seen is not None:
            seen.see(name, value)
        if name in few:
            path, module = few[name]
            put(network, path, Quantised(stored(value, kind, name), getattr(module, "bias", None), module.muon_slices))
        elif name in buffers:
            put(network, name, value.clone())
        else:
            put(network, name, nn.Parameter(value.clone(), requires_grad=False))
    for name, other in tied:
        put(network, name, network.get_parameter(other))
    for name, buffer in list(network.named_buffers()):
        if buffer.is_meta:  # counts, which no file holds
            put(network, name, torch.zeros(buffer.shape, dtype=buffer.dtype))


def put(network: nn.Module, name: str, part: nn.Module | Tensor) -> None:
    """Set a module, a parameter or a buffer by its full name."""
    place, _, last = name.rpartition(".")
    setattr(network.get_submodule(place), last, part)
