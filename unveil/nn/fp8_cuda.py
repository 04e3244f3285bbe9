"""Products of FP8 codes by the tensor cores of a Hopper GPU (``torch.nn.functional.scaled_mm`` with block scales, cuBLASLt 12.9)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_HOPPER = (9, 0)


def fits(codes: Tensor) -> bool:
    """Whether this device multiplies codes with block scales; others do not, later ones included."""
    return codes.is_cuda and torch.cuda.get_device_capability(codes.device) == _HOPPER and hasattr(F, "scaled_mm")


def product(a_MK: Tensor, a_scales: Tensor, b_NK: Tensor, b_scales: Tensor) -> Tensor:
    """As ``nn.fp8.product`` of whole tiles, rounded to bfloat16 on the way out; a has scales of rows, b of rows or of blocks.

    The kernels want b in multiples of 128 and a in rows of 4, scales of rows column by column, and those of blocks with the blocks of K
    first, a multiple of four of them.
    """
    of_blocks = len(b_scales) != len(b_NK)
    a, b = _rows(a_MK.view(torch.uint8), 4), _rows(b_NK.view(torch.uint8), 128)  # bytes can be padded and copied
    kind = F.ScalingType.BlockWise128x128 if of_blocks else F.ScalingType.BlockWise1x128
    scales_b = F.pad(b_scales, (0, -b_scales.shape[1] % 4)).contiguous().T if of_blocks else _columns(_rows(b_scales, 128))
    y = F.scaled_mm(
        a.view(torch.float8_e4m3fn),
        b.view(torch.float8_e4m3fn).T,
        _columns(_rows(a_scales, 4)),
        F.ScalingType.BlockWise1x128,
        scales_b,
        kind,
        output_dtype=torch.bfloat16,
    )
    return y[: len(a_MK), : len(b_NK)].float()


def _rows(x: Tensor, multiple: int) -> Tensor:
    return F.pad(x, (0, 0, 0, -len(x) % multiple)).contiguous()


def _columns(x: Tensor) -> Tensor:
    """Laid out column by column."""
    return x.T.contiguous().T
