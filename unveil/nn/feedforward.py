"""Feed-forward layers: gated (Shazeer 2020, SwiGLU), and plain with GELU."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from unveil.nn.affine import Affine
from unveil.nn.linear import Linear


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))``, gate and up in one matrix of 2F rows, gate first."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = Linear(width, 2 * hidden, slices=(hidden, hidden))
        self.down = Linear(hidden, width)

    def forward(self, x_TD: Tensor) -> Tensor:
        gate_TF, up_TF = self.gate_up(x_TD).chunk(2, dim=-1)
        return self.down(F.silu(gate_TF) * up_TF)


class GELU(nn.Module):
    """``down(gelu(up(x)))`` with biases, GELU in its tanh form, as in GPT-2 and DiT, or exact; ``dropout`` between the matrices."""

    def __init__(self, width: int, hidden: int, approximate: Literal["tanh", "none"] = "tanh", dropout: float = 0.0) -> None:
        super().__init__()
        self.up, self.down = Affine(width, hidden), Affine(hidden, width)
        self.approximate, self.dropout = approximate, nn.Dropout(dropout)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.down(self.dropout(F.gelu(self.up(x_TD), approximate=self.approximate)))
