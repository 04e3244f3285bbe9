"""Rounding to the 4-bit normal floats of ``torchao`` (QLoRA, Dettmers et al. 2023) by their midpoints."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from unveil.adapters.extra import library

CHUNK = 1 << 14
"""Groups that are rounded at a time: what is needed beside the matrix stays small."""


def rounded(weight: Tensor, group: int, scales: int, field: str) -> Tensor:
    """``torchao``'s tensor of a matrix: its bits, some forty times sooner on a CPU. It compares every weight with all sixteen numbers.

    Args:
        group: weights that share a scale.
        scales: of them that share one.
        field: for the message where ``torchao`` is missing.
    """
    made: Tensor = _rounder(field).from_tensor(weight, group, scales)
    return made.detach()  # a plain one of theirs


@cache
def _rounder(field: str) -> Any:
    theirs: Any = library("torchao.quantization", field).NF4Tensor

    class Rounder(theirs):  # type: ignore[misc]
        @staticmethod
        def convert_to_norm_float_weight(input_tensor: Tensor, n_blocks: int, block_size: int, nf4: Tensor) -> Tensor:
            """Two weights a byte, the first in its upper half."""
            blocks, between = input_tensor.reshape(n_blocks, block_size), (nf4[1:] + nf4[:-1]) / 2
            found = torch.empty(n_blocks * block_size // 2, dtype=torch.uint8, device=input_tensor.device)
            for block, out in zip(blocks.split(CHUNK), found.split(CHUNK * block_size // 2), strict=True):
                scaled = (block / block.abs().amax(1, keepdim=True)).nan_to_num()  # a group of zeros stays one
                index = torch.bucketize(scaled, between, out_int32=True).to(torch.uint8).flatten()
                torch.bitwise_or(index[::2] << 4, index[1::2], out=out)
            return found

    return Rounder
