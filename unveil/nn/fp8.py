"""FP8 arithmetic of DeepSeek-V3 (arXiv 2412.19437, section 3.3): E4M3 codes with a scale for every tile, products promoted every 128.

A row of activations or gradients has a scale for each 128 of its values, a matrix of weights one for each 128 x 128 block; scales are taken
online, from what is there. All three products of a linear layer are of such codes: forward x W^T, the gradient of x, dy W, and that of W,
dy^T x, whose tiles run along the tokens, so that what was kept of x is quantised a second time. Where a GPU multiplies them
(``nn.fp8_cuda``), the codes are the same; elsewhere the products are exact ones of the same codes, added up in float32.

M, N rows, K the width that is summed over, T tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from unveil.nn import fp8_cuda

TILE = 128
LARGEST = 448.0
"""Of E4M3."""
FLOOR = 1e-4
"""Of a tile's largest magnitude, so that one of zeros has a scale."""
_BITS_OF_E5M6 = 6


class Tiled(NamedTuple):
    """A matrix as codes times scales, in whole tiles: what lies beyond its sides is zero."""

    codes: Tensor
    """float8_e4m3fn ``[M, 128 J]`` of rows, ``[128 I, 128 J]`` of blocks."""
    scales: Tensor
    """float32 ``[M, J]`` of rows, ``[I, J]`` of blocks."""
    sides: tuple[int, int]
    """M and K."""

    @property
    def T(self) -> Tiled:
        """Transposed, of blocks alone: those of rows would be scaled along the other side."""
        return Tiled(self.codes.T, self.scales.T, self.sides[::-1])


def quantised_rows(x_MK: Tensor, *, powers: bool = False) -> Tiled:
    """Codes with a scale for each 128 values of a row; ``powers`` rounds scales up to powers of two (UE8M0)."""
    tiles_MJE = _padded(x_MK.float(), 1).unflatten(1, (-1, TILE))
    scales_MJ = _scales(tiles_MJE.abs().amax(-1), powers)
    codes_MJE = (tiles_MJE / scales_MJ[..., None]).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return Tiled(codes_MJE.flatten(1), scales_MJ, (x_MK.shape[0], x_MK.shape[1]))


def quantised_blocks(w_NK: Tensor) -> Tiled:
    """Codes with a scale for each 128 x 128 block."""
    tiles = _padded(w_NK.float(), 0, 1).unflatten(1, (-1, TILE)).unflatten(0, (-1, TILE))
    scales_IJ = _scales(tiles.abs().amax((1, 3)), powers=False)
    codes = (tiles / scales_IJ[:, None, :, None]).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return Tiled(codes.flatten(2).flatten(0, 1), scales_IJ, (w_NK.shape[0], w_NK.shape[1]))


def values(a: Tiled) -> Tensor:
    """What the codes stand for, float32 ``[M, K]``."""
    return dequantised(a.codes, a.scales)[: a.sides[0], : a.sides[1]]


def dequantised(codes: Tensor, scales: Tensor) -> Tensor:
    """Codes times scales, float32; the last tiles may be cut."""
    rows, columns = codes.shape
    scales_MJ = scales if len(scales) == rows else scales.repeat_interleave(TILE, 0)[:rows]
    return codes.float() * scales_MJ.repeat_interleave(TILE, 1)[:, :columns]


def product(a: Tiled, b: Tiled) -> Tensor:
    """a b^T ``[M, N]``: of each 128 of K the products of the codes, times both scales, added up in float32."""
    if fp8_cuda.fits(a.codes):
        return fp8_cuda.product(a.codes, a.scales, b.codes, b.scales)[:, : b.sides[0]]
    left_MK, right_NK = a.codes.float(), b.codes.float()
    left_MJ, right_NJ = _of_rows(a), _of_rows(b)
    total_MN = left_MK.new_zeros(len(left_MK), len(right_NK))
    for j, (left_ME, right_NE) in enumerate(zip(left_MK.split(TILE, 1), right_NK.split(TILE, 1), strict=True)):
        total_MN = total_MN + (left_ME @ right_NE.T) * left_MJ[:, j, None] * right_NJ[:, j]
    return total_MN[: a.sides[0], : b.sides[0]]


def linear(x_TK: Tensor, weight_NK: Tensor) -> Tensor:
    """x W^T ``[T, N]`` in the dtype of x. Kept for the backward: the codes of both, a byte a value."""
    y: Tensor = _Linear.apply(x_TK, weight_NK, False)  # type: ignore[no-untyped-call]
    return y


def linear_after_attention(x_TK: Tensor, weight_NK: Tensor) -> Tensor:
    """``linear`` that keeps x as E5M6 with scales that are powers of two: attention's backward is sensitive to it."""
    y: Tensor = _Linear.apply(x_TK, weight_NK, True)  # type: ignore[no-untyped-call]
    return y


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TK: Tensor, weight_NK: Tensor, finer: bool) -> Tensor:
        x, w = quantised_rows(x_TK), quantised_blocks(weight_NK)
        kept = _e5m6(x_TK) if finer else x
        ctx.finer, ctx.dtypes, ctx.sides = finer, (x_TK.dtype, weight_NK.dtype), (x.sides, w.sides)
        ctx.save_for_backward(kept.codes, kept.scales, w.codes, w.scales)
        return product(x, w).to(x_TK.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (dy_TN,), (x_codes, x_scales, w_codes, w_scales) = grads, ctx.saved_tensors
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = product(quantised_rows(dy_TN), Tiled(w_codes, w_scales, ctx.sides[1]).T).to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            kept_TK = values(Tiled(x_codes, x_scales, ctx.sides[0]))
            dw = product(quantised_rows(dy_TN.T), quantised_rows(kept_TK.T, powers=ctx.finer)).to(ctx.dtypes[1])
        return dx, dw, None


def _e5m6(x_TK: Tensor) -> Tiled:
    """Rounded to 6 bits of mantissa under scales that are powers of two; bfloat16 holds the codes exactly."""
    tiles = _padded(x_TK.float(), 1).unflatten(1, (-1, TILE))
    scales_TJ = _scales(tiles.abs().amax(-1), powers=True)
    mantissa, exponent = torch.frexp(tiles / scales_TJ[..., None])
    # 2^-14 is the smallest normal number of 5 exponent bits: what lies below it has as many bits less
    exponent = exponent.clamp(min=-13)
    mantissa = torch.ldexp(tiles / scales_TJ[..., None], -exponent)
    codes = torch.ldexp((mantissa * 2 ** (_BITS_OF_E5M6 + 1)).round() / 2 ** (_BITS_OF_E5M6 + 1), exponent)
    return Tiled(codes.flatten(1).bfloat16(), scales_TJ, (x_TK.shape[0], x_TK.shape[1]))


def _scales(largest: Tensor, powers: bool) -> Tensor:
    scales = largest.clamp(min=FLOOR) / LARGEST
    return torch.exp2(torch.ceil(torch.log2(scales))) if powers else scales


def _padded(x: Tensor, *dims: int) -> Tensor:
    """With zeros up to whole tiles."""
    missing = [-x.shape[d] % TILE if d in dims else 0 for d in (1, 0)]
    return F.pad(x, (0, missing[0], 0, missing[1])) if any(missing) else x


def _of_rows(a: Tiled) -> Tensor:
    """A scale for each row of codes and each 128 of K, ``[M, J]``."""
    return a.scales if len(a.scales) == len(a.codes) else a.scales.repeat_interleave(TILE, 0)
