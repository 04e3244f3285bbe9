"""Convolutions of channels-last images, their masters cast to the activations' dtype at each use.

A kernel is stored as it is read, ``[out, rows, columns, in]``: its view ``[out, in, rows, columns]`` is channels-last without a copy,
while the parameter stays contiguous for the optimiser, the checkpoint and the file.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Conv(nn.Module):
    """A 3 x 3 convolution with zero padding that keeps the size, or at ``stride`` 2 halves it, rounding up.

    Args:
        fan_in, fan_out: channels.
        stride: 1 or 2.
        corner: pad below and on the right only, as DDPM's strided convolutions do (Ho et al. 2020).
    """

    def __init__(self, fan_in: int, fan_out: int, stride: int = 1, corner: bool = False) -> None:
        super().__init__()
        self.stride, self.padding, self.corner = stride, 0 if corner else 1, corner
        self.weight = nn.Parameter(torch.empty(fan_out, 3, 3, fan_in))
        self.bias = nn.Parameter(torch.empty(fan_out))

    def forward(self, x: Tensor) -> Tensor:
        if self.corner:
            x = F.pad(x, (0, 1 + x.shape[3] % 2, 0, 1 + x.shape[2] % 2))
        return F.conv2d(x, self.weight.to(x.dtype).permute(0, 3, 1, 2), self.bias.to(x.dtype), self.stride, self.padding)


def _meeting(taps: Tensor, dim: int, pixel: int) -> Tensor:
    """For the first and the second pixel of a doubled pair (new dimension ``pixel``): its three taps as they fall on two source pixels."""
    before, at, after = taps.unbind(dim)
    return torch.stack([torch.stack([before, at + after], dim), torch.stack([before + at, after], dim)], pixel)


class _Interleave(torch.autograd.Function):
    """The four kernels' results, ``[B, rows + 1, columns + 1, 2, 2, C]``, as one image ``[B, 2 rows, 2 columns, C]``.

    Pixel (2 i + a, 2 j + b) is result (a, b) at (i + a, j + b). Left to autograd, each of the four cuts would fill an array of zeros of
    the size of them all on the way back.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor) -> Tensor:
        batch, rows, columns, channels = y.shape[0], y.shape[1] - 1, y.shape[2] - 1, y.shape[-1]
        image = y.new_empty(batch, rows, 2, columns, 2, channels)
        for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
            image[:, :, a, :, b] = y[:, a : a + rows, b : b + columns, a, b]
        return image.view(batch, 2 * rows, 2 * columns, channels)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Nothing but the shape is needed, and the gradient brings it."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        pixels = grad.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        batch, rows, _, columns, _, channels = pixels.shape
        y = grad.new_zeros(batch, rows + 1, columns + 1, 2, 2, channels)
        for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
            y[:, a : a + rows, b : b + columns, a, b] = pixels[:, :, a, :, b]
        return y


class DoublingConv(Conv):
    """A 3 x 3 convolution of the image doubled by nearest neighbour, without the doubled image.

    Each of the four pixels that stand for one source pixel sees only 2 x 2 source pixels, so the taps that fall on the same one are
    added up beforehand: four kernels of 2 x 2, 16 products a source pixel where 36 stand in the definition.
    """

    def forward(self, x: Tensor) -> Tensor:
        kernels = _meeting(_meeting(self.weight, 1, 0), 3, 1).flatten(0, 2)  # [2 x 2 x out, 2, 2, in]
        y = F.conv2d(x, kernels.to(x.dtype).permute(0, 3, 1, 2), self.bias.to(x.dtype).repeat(4), padding=1)
        doubled: Tensor = _Interleave.apply(y.permute(0, 2, 3, 1).unflatten(-1, (2, 2, len(self.bias))))  # type: ignore[no-untyped-call]
        return doubled.permute(0, 3, 1, 2)
