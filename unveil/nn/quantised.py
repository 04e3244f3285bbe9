"""A frozen matrix in few bits, in the place of a ``Linear`` or an ``Affine``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.nn.affine import Affine
from unveil.nn.linear import Linear


class _Product(torch.autograd.Function):
    """``x @ W^T`` that keeps W as it is stored for the way back: the dense matrix lives for one product at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return F.linear(x, weight if hasattr(weight, "qdata") else dense(weight, x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ dense(ctx.weight, grads[0].dtype), None


class Quantised(nn.Module):
    """``x @ W^T`` (with a bias, if there is one) in the dtype of ``x``, where W is stored in few bits. Only ``x`` gets a gradient.

    Args:
        weight: a tensor of ``torchao``'s that multiplies and can be made dense again, ``[fan_out, fan_in]``.
        bias: kept as it is.
        slices: as ``Linear``'s.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, slices: tuple[int, ...]) -> None:
        super().__init__()
        self.muon_slices = slices
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: Tensor, rows: slice | None = None) -> Tensor:
        """``[..., fan_out]``, or only the outputs of ``rows``: the others are computed and dropped."""
        out = _Product.apply(x, self.weight)  # type: ignore[no-untyped-call]
        out = out if self.bias is None else out + self.bias.to(x.dtype)
        return out if rows is None else out[..., rows]

    def matrix(self, dtype: torch.dtype) -> Tensor:
        return dense(self.weight, dtype)

    def unpacked(self) -> Linear:
        """The same matrix in float32, as a layer that can be changed."""
        rows, columns = self.weight.shape
        layer = (Linear if self.bias is None else Affine)(columns, rows, self.muon_slices)
        layer.weight.data = self.matrix(torch.float32)
        if self.bias is not None and isinstance(layer, Affine):
            layer.bias.data = self.bias.data.float()
        return layer

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """To a device like any module; to another dtype only the bias, for the bits are what they are."""
        weight, place = self._parameters.pop("weight"), fn(torch.empty(0)).device
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        assert weight is not None
        self.weight = nn.Parameter(weight.to(place), requires_grad=False)
        return self


def dense(weight: Any, dtype: torch.dtype) -> Tensor:
    """The numbers that a tensor in few bits stands for, in ``dtype``; another tensor's own."""
    if hasattr(weight, "qdata"):  # 8 bits
        return weight.dequantize().to(dtype)
    if hasattr(weight, "quantized_scalers"):
        return _normal_floats(weight).to(dtype)
    return weight.to(dtype)


def _normal_floats(weight: Any) -> Tensor:
    """What ``torchao`` makes of its 4-bit normal floats, a byte (two weights) at a time: several times sooner."""
    scales = weight.dequantize_scalers(weight.quantized_scalers, weight.quantization_factor, weight.scaler_block_size)
    pairs = torch.stack((weight.nf4.repeat_interleave(16), weight.nf4.repeat(16)), dim=1)
    both = pairs.index_select(0, weight.quantized_data.int()).view(-1, weight.block_size)
    return both.mul_(scales[:, None]).view(weight.shape)
