"""Residual blocks of two matrices (He et al. 2016, without the convolutions), told the noise level by scale and shift.

It knows nothing of noise, as ``nn.unet``. All values of a sample are one vector: for points, whose places say nothing of neighbourhood.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.config import MLPConfig
from unveil.nn.affine import Affine
from unveil.nn.timestep import Condition


class Block(nn.Module):
    """``h + leave(silu((1 + scale) enter(silu(h)) + shift))``; scale and shift are the halves of the condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.leave = Affine(width, width), Affine(width, width)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        scale, shift = condition.chunk(2, dim=1)
        return h + self.leave(F.silu(self.enter(F.silu(h)) * (1 + scale) + shift))


class MLP(nn.Module):
    """In, blocks, out.

    Args:
        config: all of it; ``in_channels`` are all values of a sample. Raises ValueError where there are none.

    ``compute_dtype`` is the dtype of the activations, the weights' own if None; weights are cast to it where they are used.
    """

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        if not config.in_channels:
            raise ValueError("in_channels 0: no network")
        self.config = config
        self.compute_dtype: torch.dtype | None = None
        width = config.width
        self.condition = Condition(config, width, width)
        self.enter = Affine(config.in_channels * (1 + 2 * config.octaves), width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(config.depth)])
        # the condition's way into every block: one matrix product for all of them
        self.tell = Affine(width, 2 * width * config.depth, slices=[width] * (2 * config.depth))
        self.leave = Affine(width, config.out_channels or config.in_channels)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Uniform by fan-in and fan-out (Glorot and Bengio 2010); what writes into a residual and the output begin at zero."""
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                p.zero_()
            elif not name.endswith("classes.weight"):
                nn.init.xavier_uniform_(p)
        for matrix in (self.leave, *(block.leave for block in cast(list[Block], self.blocks))):
            matrix.weight.zero_()

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        classes: Tensor | None = None,
        embedding: Tensor | None = None,
        augmentation: Tensor | None = None,
    ) -> Tensor:
        """``[B, out_channels / (H W), H, W]`` in the dtype of ``x`` ``[B, C, H, W]``; the other arguments and errors are ``UNet``'s."""
        dtype = self.compute_dtype or self.enter.weight.dtype
        told = self.tell(F.silu(self.condition(c_noise, dtype, classes, embedding, augmentation))).chunk(len(self.blocks), dim=1)
        h = self.enter(self._seen(x.to(dtype).flatten(1)))
        for block, condition in zip(self.blocks, told, strict=True):
            h = block(h, condition)
        return self.leave(F.silu(h)).view(len(x), -1, *x.shape[2:]).to(x.dtype)

    def _seen(self, x_BD: Tensor) -> Tensor:
        """The values x, and sin and cos of (pi / 2) 2^k x: alone, they would be learned far too smoothly (Tancik et al. 2020)."""
        angles = [x_BD * (math.pi / 2 * 2**k) for k in range(self.config.octaves)]
        return torch.cat([x_BD, *(f(angle) for angle in angles for f in (torch.sin, torch.cos))], dim=1)
