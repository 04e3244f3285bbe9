"""A matrix with a bias, its masters cast to the activations' dtype at each use."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unveil.nn.linear import Linear


class Affine(Linear):
    """``x @ weight^T + bias``; the arguments are ``Linear``'s."""

    def __init__(self, fan_in: int, fan_out: int, slices: Sequence[int] = ()) -> None:
        super().__init__(fan_in, fan_out, slices)
        self.bias = nn.Parameter(torch.empty(fan_out))

    def forward(self, x: Tensor, rows: slice | None = None) -> Tensor:
        weight, bias = (self.weight, self.bias) if rows is None else (self.weight[rows], self.bias[rows])
        return self._times(x, weight, bias)
