"""Matrices whose master weights keep their own dtype while the arithmetic runs in the activations'."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Module):
    """``x @ weight^T`` without bias; the weight is cast to the dtype of ``x`` at each use, so float32 masters serve bfloat16 compute.

    Args:
        fan_in, fan_out: width of ``x`` and of the result.
        slices: output rows of the separate projections that are fused in this matrix (query, key, value; gate, up).
            An optimiser that works on whole matrices (Muon) treats each slice alone.
    """

    def __init__(self, fan_in: int, fan_out: int, slices: Sequence[int] = ()) -> None:
        super().__init__()
        self.muon_slices = tuple(slices) or (fan_out,)
        if sum(self.muon_slices) != fan_out:
            raise ValueError(f"slices {self.muon_slices} do not add up to {fan_out} rows")
        self.weight = nn.Parameter(torch.empty(fan_out, fan_in))
        self.low: Callable[[Tensor, Tensor], Tensor] | None = None
        """Takes the place of the product in training, in fewer bits (``nn.fp8.linear``)."""

    def forward(self, x: Tensor, rows: slice | None = None) -> Tensor:
        """``[..., fan_out]``, or only the outputs of ``rows``."""
        return self._times(x, self.weight if rows is None else self.weight[rows])

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """What ``x`` is multiplied with, ``[fan_out, fan_in]``, for arithmetic that is not ``forward``'s."""
        return self.weight.to(dtype)

    def _times(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.low is not None and self.training:
            y = self.low(x, weight)
            return y if bias is None else y + bias.to(x.dtype)
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
