"""The gated feed-forward layer (Shazeer 2020, SwiGLU)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

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
