"""Products of rows, sorted by expert, with the matrix of their expert; and the way of tokens there and back.

Opaque operators with their own backward, so that counts that differ from pack to pack do not recompile the graph around them (their shapes
are written ``shape[0]``: ``len`` would fix a length in the graph). On a CPU a
loop over experts writes into one result, which is as fast as torch's own grouped product there and asks for no alignment; on CUDA it is
``torch.nn.functional.grouped_mm`` in bfloat16. Nothing is padded and nothing dropped.

S = T K rows: every token once for each expert that it goes to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS = 32
"""In bfloat16 on a CPU a product has a multiple of so many rows, or fewer than these."""


class Plan(NamedTuple):
    """Which row is whose."""

    order_S: Tensor
    """The place of each row among the choices ``[T, K]`` read row by row."""
    rows_S: Tensor
    """The token of each row."""
    places_TK: Tensor
    """The row of each choice."""
    ends_E: Tensor
    """Rows up to the end of each expert, int32."""


def plan(chosen_TK: Tensor, experts: int) -> Plan:
    """Sort the choices (int64, below ``experts``) by expert; those of one expert stay in the order of the tokens."""
    return Plan(*_plan(chosen_TK, experts))


def spread(x_TD: Tensor, by: Plan) -> Tensor:
    """Every token to each of its rows, ``[S, D]``."""
    return _spread(x_TD, by.rows_S, by.places_TK)


def gather(y_SD: Tensor, by: Plan) -> Tensor:
    """The sum of each token's rows, ``[T, D]``."""
    return _gather(y_SD, by.rows_S, by.places_TK)


def grouped(x_SD: Tensor, weight_EFD: Tensor, by: Plan) -> Tensor:
    """``x @ weight[e]^T`` for the rows of each expert e, ``[S, F]``."""
    return _grouped(x_SD, weight_EFD, by.ends_E)


@torch.library.custom_op("unveil::plan", mutates_args=())
def _plan(chosen_TK: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    flat_S = chosen_TK.flatten()
    order_S = flat_S.argsort(stable=True)
    places_S = torch.empty_like(order_S).scatter_(0, order_S, torch.arange(len(order_S), device=order_S.device))
    ends_E = torch.bincount(flat_S, minlength=experts).cumsum(0, dtype=torch.int32)
    return order_S, order_S // chosen_TK.shape[1], places_S.view_as(chosen_TK), ends_E


@_plan.register_fake
def _(chosen_TK: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    flat_S = chosen_TK.new_empty(chosen_TK.numel())
    return flat_S, torch.empty_like(flat_S), torch.empty_like(chosen_TK), chosen_TK.new_empty(experts, dtype=torch.int32)


@torch.library.custom_op("unveil::spread", mutates_args=())
def _spread(x_TD: Tensor, rows_S: Tensor, places_TK: Tensor) -> Tensor:
    return x_TD.index_select(0, rows_S)


@_spread.register_fake
def _(x_TD: Tensor, rows_S: Tensor, places_TK: Tensor) -> Tensor:
    return x_TD.new_empty(rows_S.shape[0], x_TD.shape[1])


@torch.library.custom_op("unveil::gather", mutates_args=())
def _gather(y_SD: Tensor, rows_S: Tensor, places_TK: Tensor) -> Tensor:
    return F.embedding_bag(places_TK, y_SD, mode="sum")


@_gather.register_fake
def _(y_SD: Tensor, rows_S: Tensor, places_TK: Tensor) -> Tensor:
    return y_SD.new_empty(places_TK.shape[0], y_SD.shape[1])


def _keep_places(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[1:])


def _spread_backward(ctx, grad):  # type: ignore[no-untyped-def]
    return _gather(grad.contiguous(), *ctx.saved_tensors), None, None


def _gather_backward(ctx, grad):  # type: ignore[no-untyped-def]
    return _spread(grad, *ctx.saved_tensors), None, None


_spread.register_autograd(_spread_backward, setup_context=_keep_places)
_gather.register_autograd(_gather_backward, setup_context=_keep_places)


def _spans(ends_E: Tensor, dtype: torch.dtype) -> Iterator[tuple[int, slice, bool]]:
    """Experts that have rows, which rows, and whether these are the expert's first.

    In bfloat16 a CPU's library writes machine code for every new shape, which takes longer than the product, and keeps some hundreds: so
    the rows of an expert are cut into a multiple of ``ROWS`` and the rest, and shapes stay few.
    """
    start = 0
    for expert, end in enumerate(ends_E.tolist()):
        cut = end if dtype != torch.bfloat16 else end - (end - start) % ROWS
        if cut > start:
            yield expert, slice(start, cut), True
        if end > cut:
            yield expert, slice(cut, end), cut == start
        start = end


def _fused(x_SD: Tensor, weight_EFD: Tensor) -> bool:
    """Whether torch's own grouped product is here, takes these (it wants rows of whole 16 bytes), and is faster than the loop."""
    aligned = weight_EFD.shape[1] % 8 == 0 and weight_EFD.shape[2] % 8 == 0
    return x_SD.is_cuda and x_SD.dtype == torch.bfloat16 and aligned and hasattr(F, "grouped_mm")


@torch.library.custom_op("unveil::grouped", mutates_args=())
def _grouped(x_SD: Tensor, weight_EFD: Tensor, ends_E: Tensor) -> Tensor:
    if _fused(x_SD, weight_EFD):
        return F.grouped_mm(x_SD, weight_EFD.mT, offs=ends_E)
    out_SF = x_SD.new_empty(len(x_SD), weight_EFD.shape[1])
    for expert, rows, _ in _spans(ends_E, x_SD.dtype):
        torch.mm(x_SD[rows], weight_EFD[expert].T, out=out_SF[rows])
    return out_SF


@_grouped.register_fake
def _(x_SD: Tensor, weight_EFD: Tensor, ends_E: Tensor) -> Tensor:
    return x_SD.new_empty(x_SD.shape[0], weight_EFD.shape[1])


@torch.library.custom_op("unveil::grouped_backward", mutates_args=())
def _grouped_backward(grad_SF: Tensor, x_SD: Tensor, weight_EFD: Tensor, ends_E: Tensor) -> tuple[Tensor, Tensor]:
    if _fused(x_SD, weight_EFD):
        return F.grouped_mm(grad_SF, weight_EFD, offs=ends_E), F.grouped_mm(grad_SF.mT, x_SD, offs=ends_E)
    grad_x, grad_weight = torch.empty_like(x_SD), torch.empty_like(weight_EFD)
    for expert, rows, first in _spans(ends_E, x_SD.dtype):
        torch.mm(grad_SF[rows], weight_EFD[expert], out=grad_x[rows])
        if first:
            torch.mm(grad_SF[rows].T, x_SD[rows], out=grad_weight[expert])
        else:
            grad_weight[expert].addmm_(grad_SF[rows].T, x_SD[rows])
    for expert in (ends_E.diff(prepend=ends_E.new_zeros(1)) == 0).nonzero().flatten().tolist():
        grad_weight[expert].zero_()
    return grad_x, grad_weight


@_grouped_backward.register_fake
def _(grad_SF: Tensor, x_SD: Tensor, weight_EFD: Tensor, ends_E: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x_SD), torch.empty_like(weight_EFD)


def _keep_operands(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    return *_grouped_backward(grad.contiguous(), *ctx.saved_tensors), None


_grouped.register_autograd(_backward, setup_context=_keep_operands)
