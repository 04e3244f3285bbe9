"""Products of experts in FP8: as ``nn.grouped``'s, each expert's rows and matrix in the tiles of ``nn.fp8``.

S rows, sorted by expert; E experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from unveil.nn import fp8
from unveil.nn.fp8 import Tiled
from unveil.nn.grouped import Plan


def grouped(x_SD: Tensor, weight_EFD: Tensor, by: Plan) -> Tensor:
    """``x @ weight[e]^T`` for the rows of each expert e, ``[S, F]`` in the dtype of x; kept for the backward are the codes of x."""
    y: Tensor = _grouped(x_SD, weight_EFD, by.ends_E)[0]
    return y


def _spans(ends_E: Tensor) -> Iterator[tuple[int, slice]]:
    """Experts that have rows, and which."""
    start = 0
    for expert, end in enumerate(ends_E.tolist()):
        if end > start:
            yield expert, slice(start, end)
        start = end


@torch.library.custom_op("unveil::grouped_fp8", mutates_args=())
def _grouped(x_SD: Tensor, weight_EFD: Tensor, ends_E: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = fp8.quantised_rows(x_SD)
    y_SF = x_SD.new_empty(len(x_SD), weight_EFD.shape[1])
    for expert, rows in _spans(ends_E):
        part = Tiled(x.codes[rows], x.scales[rows], (rows.stop - rows.start, x.sides[1]))
        y_SF[rows] = fp8.product(part, fp8.quantised_blocks(weight_EFD[expert])).to(x_SD.dtype)
    return y_SF, x.codes, x.scales


@_grouped.register_fake
def _(x_SD: Tensor, weight_EFD: Tensor, ends_E: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, tiles = x_SD.shape[0], -(-x_SD.shape[1] // fp8.TILE)
    codes_SD = x_SD.new_empty(rows, fp8.TILE * tiles, dtype=torch.float8_e4m3fn)
    return x_SD.new_empty(rows, weight_EFD.shape[1]), codes_SD, x_SD.new_empty(rows, tiles, dtype=torch.float32)


@torch.library.custom_op("unveil::grouped_fp8_backward", mutates_args=())
def _grouped_backward(grad_SF: Tensor, codes_SD: Tensor, scales_SJ: Tensor, weight_EFD: Tensor, ends_E: Tensor) -> tuple[Tensor, Tensor]:
    width = weight_EFD.shape[2]
    grad_x, grad_weight = grad_SF.new_empty(len(grad_SF), width), torch.zeros_like(weight_EFD)
    for expert, rows in _spans(ends_E):
        count = rows.stop - rows.start
        grad_x[rows] = fp8.product(fp8.quantised_rows(grad_SF[rows]), fp8.quantised_blocks(weight_EFD[expert]).T).to(grad_SF.dtype)
        kept = fp8.values(Tiled(codes_SD[rows], scales_SJ[rows], (count, width)))
        grad_weight[expert] = fp8.product(fp8.quantised_rows(grad_SF[rows].T), fp8.quantised_rows(kept.T)).to(weight_EFD.dtype)
    return grad_x, grad_weight


@_grouped_backward.register_fake
def _(grad_SF: Tensor, codes_SD: Tensor, scales_SJ: Tensor, weight_EFD: Tensor, ends_E: Tensor) -> tuple[Tensor, Tensor]:
    return grad_SF.new_empty(grad_SF.shape[0], weight_EFD.shape[2]), torch.empty_like(weight_EFD)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    _, weight_EFD, ends_E = inputs
    _, codes_SD, scales_SJ = output
    ctx.save_for_backward(codes_SD, scales_SJ, weight_EFD, ends_E)
    ctx.mark_non_differentiable(codes_SD, scales_SJ)


def _backward(ctx: Any, grad_SF: Tensor, *codes_and_scales: Any) -> tuple[Tensor, Tensor, None]:
    return *_grouped_backward(grad_SF.contiguous(), *ctx.saved_tensors), None


_grouped.register_autograd(_backward, setup_context=_keep)
