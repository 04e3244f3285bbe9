"""The diffusion transformer (Peebles and Xie 2023): patches of an image as tokens, the noise level and the class by adaptive layer norm.

Every image of a batch is a sequence of one pack, so attention and matrices are those of every other network here. ``interop.diffusers``
renames the weights of a ``DiTTransformer2DModel`` to these.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.config import DiTConfig
from unveil.nn.affine import Affine
from unveil.nn.attention import attention
from unveil.nn.layout import Bidirectional
from unveil.nn.timestep import Condition

SINUSOIDS = 256
"""Features of the noise level."""
EPS = 1e-6
"""Of the layer norms but the feed-forward's."""


def positions(rows: int, columns: int, width: int, base: int) -> Tensor:
    """Sines and cosines of column and row, a quarter of ``width`` each, float32 ``[rows x columns, width]`` in reading order.

    A grid of another size than ``base`` x ``base`` is scaled to that range. Formed in float64 and rounded to float32, whatever the
    network's dtype: pretrained weights were trained on these numbers.
    """
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    row, column = (torch.arange(n, dtype=torch.float32) / (n / base) for n in (rows, columns))
    grid = torch.stack((column.expand(rows, -1), row[:, None].expand(-1, columns))).flatten(1)
    angles = grid.double()[..., None] * frequencies
    return torch.cat((angles[0].sin(), angles[0].cos(), angles[1].sin(), angles[1].cos()), dim=-1).float()


def modulated(x_BLD: Tensor, scale_BD: Tensor, shift_BD: Tensor, eps: float) -> Tensor:
    """Layer norm, its scale and shift told."""
    return torch.addcmul(shift_BD[:, None], F.layer_norm(x_BLD, x_BLD.shape[-1:], eps=eps), 1 + scale_BD[:, None])


class Block(nn.Module):
    """Attention and feed-forward, each between a told norm and a told gate (adaLN-Zero)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.hidden or 4 * config.width
        self.head_width, self.eps = width // config.heads, config.feedforward_norm_eps
        self.tell = Affine(width, 6 * width, slices=(width,) * 6)
        self.qkv = Affine(width, 3 * width, slices=(width,) * 3)
        self.out = Affine(width, width)
        self.up, self.down = Affine(width, hidden), Affine(hidden, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BLD: Tensor, told_BD: Tensor, cu_seqlens: Tensor) -> Tensor:
        batch, length, _ = x_BLD.shape
        shift1, scale1, gate1, shift2, scale2, gate2 = self.tell(told_BD).chunk(6, dim=1)
        heads = self.qkv(modulated(x_BLD, scale1, shift1, EPS)).view(batch * length, 3, -1, self.head_width)
        q, k, v = heads.unbind(1)
        attended = attention(q, k, v, cu_seqlens, length, Bidirectional()).view(x_BLD.shape)
        x_BLD = torch.addcmul(x_BLD, gate1[:, None], self.dropout(self.out(attended)))
        hidden = F.gelu(self.up(modulated(x_BLD, scale2, shift2, self.eps)), approximate="tanh")
        return torch.addcmul(x_BLD, gate2[:, None], self.down(self.dropout(hidden)))


class DiT(nn.Module):
    """Patches, positions, blocks, and back to an image.

    Args:
        config: all of it, ``in_channels`` included. Raises ValueError for settings that contradict each other.

    ``compute_dtype`` is the dtype of the activations, the weights' own if None; weights are cast to it where they are used.
    """

    positions: Tensor

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        if not config.in_channels or config.width % config.heads or config.width % 4 or config.size % config.patch:
            shape = f"width {config.width}, heads {config.heads}, size {config.size}, patch {config.patch}"
            raise ValueError(f"in_channels {config.in_channels}, {shape}: no network")
        self.config = config
        self.compute_dtype: torch.dtype | None = None
        self.out_channels = config.out_channels or config.in_channels
        count = config.depth if config.embedders == "per-block" else 1
        self.condition = nn.ModuleList(Condition(config, SINUSOIDS, config.width, shift=1.0) for _ in range(count))
        self.enter = Affine(config.in_channels * config.patch**2, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.tell = Affine(config.width, 2 * config.width, slices=(config.width,) * 2)
        self.leave = Affine(config.width, self.out_channels * config.patch**2)
        side = config.size // config.patch
        self.register_buffer("positions", positions(side, side, config.width, side), persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Uniform by fan-in and fan-out, embeddings N(0, 0.02); gates, told norms and the output begin at zero."""
        for name, p in self.named_parameters():
            if p.dim() < 2 or name.endswith("tell.weight") or name == "leave.weight":
                p.zero_()
            elif name.startswith("condition"):
                p.normal_(0.0, 0.02)
            else:
                nn.init.xavier_uniform_(p)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        classes: Tensor | None = None,
        embedding: Tensor | None = None,
        augmentation: Tensor | None = None,
    ) -> Tensor:
        """One pass.

        Args:
            x: ``[B, C, H, W]``, H and W multiples of ``config.patch``.
            c_noise: the noise level as the preconditioning hands it over, ``[B]``.
            classes: int64 ``[B]``; ``config.classes`` is the null class, which None stands for.
            embedding: ``[B, E]``; None means zeros.
            augmentation: ``[B, A]``; None means zeros, an image as it is.

        Returns:
            ``[B, out_channels, H, W]`` in the dtype of ``x``.

        Raises:
            ValueError: a size that the patches do not tile; a condition that the network does not know, or lacks.
        """
        dtype, patch = self.compute_dtype or self.enter.weight.dtype, self.config.patch
        if x.shape[2] % patch or x.shape[3] % patch:
            raise ValueError(f"{x.shape[2]} x {x.shape[3]} pixels do not fall into patches of {patch}")
        rows, columns = x.shape[2] // patch, x.shape[3] // patch
        told: Sequence[Tensor] = [F.silu(c(c_noise, dtype, classes, embedding, augmentation)) for c in self.condition]
        h_BLD = self.enter(F.pixel_unshuffle(x.to(dtype), patch).flatten(2).transpose(1, 2))
        h_BLD = h_BLD + self._positions(rows, columns).to(dtype)
        cu_seqlens = torch.arange(len(x) + 1, dtype=torch.int32, device=x.device) * (rows * columns)
        for i, block in enumerate(self.blocks):
            h_BLD = block(h_BLD, told[i % len(told)], cu_seqlens)
        shift, scale = self.tell(told[0]).chunk(2, dim=1)
        pixels = self.leave(modulated(h_BLD, scale, shift, EPS)).transpose(1, 2).unflatten(2, (rows, columns))
        return F.pixel_shuffle(pixels, patch).to(x.dtype)

    def _positions(self, rows: int, columns: int) -> Tensor:
        side = self.config.size // self.config.patch
        if rows == columns == side:
            return self.positions
        return positions(rows, columns, self.config.width, side).to(self.positions.device)
