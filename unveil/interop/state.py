"""Weights under other people's names: which of theirs make up each of ours, in which layout, both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unveil.errors import UserError
from unveil.training.weights import check, weights


@dataclass(frozen=True)
class Layout:
    """How one of their tensors becomes rows of ours, and back."""

    read: Callable[[Tensor], Tensor]
    write: Callable[[Tensor], Tensor]


SAME = Layout(lambda theirs: theirs, lambda ours: ours)
KERNEL = Layout(lambda theirs: theirs.permute(0, 2, 3, 1), lambda ours: ours.permute(0, 3, 1, 2))
"""``[out, in, rows, columns]`` in a convolution of torch's, ``[out, rows, columns, in]`` in ours."""

PIXEL = Layout(lambda theirs: theirs[..., 0, 0], lambda ours: ours[..., None, None])
"""A kernel of 1 x 1, which is a matrix."""


@dataclass(frozen=True)
class Part:
    """One parameter of ours: the rows of ``theirs``, one after the other.

    ``rows`` says how many are each one's where there are several; none are given if they are equally many. Where ``stacked`` is E, there
    is a matrix for each of E experts, ``[E, F, D]``, which is taken as ``[E F, D]``.
    """

    ours: str
    theirs: tuple[str, ...]
    layout: Layout = SAME
    rows: tuple[int, ...] = ()
    stacked: int = 0

    def pieces(self, ours: Tensor) -> Sequence[Tensor]:
        """Of our parameter, the rows of each of ``theirs``, as views."""
        flat = ours.flatten(0, 1) if self.stacked else ours
        return flat.split(self.rows or len(flat) // len(self.theirs))


class Renamed(Mapping[str, Tensor]):
    """Their weights under our names, each put together when it is asked for."""

    def __init__(self, parts: Sequence[Part], found: Mapping[str, Tensor]) -> None:
        self._parts, self._found = {part.ours: part for part in parts}, found

    def __getitem__(self, name: str) -> Tensor:
        part = self._parts[name]
        rows = torch.cat([part.layout.read(self._found[theirs]) for theirs in part.theirs])
        return rows.unflatten(0, (part.stacked, -1)) if part.stacked else rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def pair(ours: str, theirs: str, layout: Layout = SAME) -> list[Part]:
    """Weight and bias of one module; ``layout`` is the weight's."""
    return [Part(f"{ours}.weight", (f"{theirs}.weight",), layout), Part(f"{ours}.bias", (f"{theirs}.bias",))]


def joined(ours: str, theirs: Sequence[str], rows: Sequence[int] = ()) -> list[Part]:
    """Weights and biases of several matrices that are one of ours."""
    return [Part(f"{ours}.{kind}", tuple(f"{name}.{kind}" for name in theirs), SAME, tuple(rows)) for kind in ("weight", "bias")]


def exported(network: nn.Module, parts: Sequence[Part]) -> dict[str, Tensor]:
    """Their state dict, as views of our weights."""
    ours, state = weights(network), dict[str, Tensor]()
    for part in parts:
        state |= {name: part.layout.write(piece) for name, piece in zip(part.theirs, part.pieces(ours[part.ours]), strict=True)}
    return state


def renamed(network: nn.Module, parts: Sequence[Part], found: Mapping[str, Tensor], source: str) -> Renamed:
    """Their weights under our names, after every name and shape is checked. Raises UserError for the first that does not fit."""
    try:
        check(found, exported(network, parts), source)
    except UserError as error:
        remedy = "take config.json and weights of the same model, both whole"
        raise UserError(error.field, f"{error.problem}, by the config.json beside it", remedy) from None
    return Renamed(parts, found)


def imported(network: nn.Module, parts: Sequence[Part], found: Mapping[str, Tensor], source: str) -> None:
    """Copy their weights into ours, one at a time. Raises UserError as ``renamed``."""
    renamed(network, parts, found, source)
    ours = weights(network)
    for part in parts:
        for name, piece in zip(part.theirs, part.pieces(ours[part.ours]), strict=True):
            piece.copy_(part.layout.read(found[name]))
