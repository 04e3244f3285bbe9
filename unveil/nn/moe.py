"""Fine-grained routed experts beside shared ones (DeepSeekMoE; Dai et al. 2024, arXiv 2401.06066; DeepSeek-V3, eq. 12)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.config import ExpertsConfig
from unveil.nn.feedforward import SwiGLU
from unveil.nn.grouped import Plan, gather, grouped, plan, spread
from unveil.nn.routing import Router


class Stack(nn.Module):
    """A matrix for each expert, ``[E, fan_out, fan_in]``; masters and ``slices`` as ``Linear``'s."""

    def __init__(self, experts: int, fan_in: int, fan_out: int, slices: Sequence[int] = ()) -> None:
        super().__init__()
        self.muon_slices = tuple(slices) or (fan_out,)
        self.weight = nn.Parameter(torch.empty(experts, fan_out, fan_in))
        self.low: Callable[[Tensor, Tensor, Plan], Tensor] | None = None
        """Takes the place of the product in training, in fewer bits (``nn.fp8_grouped.grouped``)."""

    def forward(self, x_SD: Tensor, by: Plan) -> Tensor:
        if self.low is not None and self.training:
            return self.low(x_SD, self.weight, by)
        return grouped(x_SD, self.weight.to(x_SD.dtype), by)


class Experts(nn.Module):
    """``sum over the chosen experts of weight * expert(x)``, and the shared experts' sum, which is one wider SwiGLU."""

    def __init__(self, width: int, config: ExpertsConfig) -> None:
        super().__init__()
        self.config = config
        self.router = Router(width, config)
        self.gate_up = Stack(config.routed, width, 2 * config.hidden, slices=(config.hidden, config.hidden))
        self.down = Stack(config.routed, config.hidden, width)
        self.shared = SwiGLU(width, config.shared * config.hidden) if config.shared else None

    def forward(self, x_TD: Tensor) -> Tensor:
        chosen_TK, weights_TK, _ = self.router(x_TD)
        by = plan(chosen_TK, self.config.routed)
        gate_SF, up_SF = self.gate_up(spread(x_TD, by), by).chunk(2, dim=-1)
        # the last matrix is linear: weighting what goes in is weighting what comes out, and less to multiply and to keep
        weights_S1 = weights_TK.flatten().index_select(0, by.order_S)[:, None].to(x_TD.dtype)
        out_TD = gather(self.down(F.silu(gate_SF) * up_SF * weights_S1, by), by)
        return out_TD if self.shared is None else out_TD + self.shared(x_TD)
