"""Self-attention with rotary positions, in a pack, into a cache and out of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.config import TransformerConfig
from unveil.nn.affine import Affine
from unveil.nn.attention import attention
from unveil.nn.block_attention import block_diffusion_attention
from unveil.nn.kv_cache import KVCache
from unveil.nn.layout import BlockDiffusion, Causal, Layout
from unveil.nn.linear import Linear
from unveil.nn.norm import RMSNorm
from unveil.nn.packed import Packed
from unveil.nn.rotary import Rotation, rotate


class Slots(NamedTuple):
    """Where a step writes and what it may read, the same for all layers: N new tokens at ``positions_BN`` of each row."""

    positions_BN: Tensor
    mask: Tensor | None
    """Which of the keys a token may see, ``[B, 1, N, C]``; None where each sees them all."""
    even: int = -1
    """The first of the positions, where it is the same in every row: a plain slice is cheaper than an index."""

    @staticmethod
    def behind(starts_B: Tensor, count: int, seen: int, window: int, even: int = -1) -> Slots:
        """``count`` tokens from ``starts_B`` on, in a cache of which the first ``seen`` entries are looked at."""
        positions_BN = starts_B[:, None] + torch.arange(count, device=starts_B.device)
        if even >= 0 and count == 1 and not (window and seen > window + 1):
            return Slots(positions_BN, None, even)
        places = torch.arange(seen, device=starts_B.device)
        return Slots(positions_BN, Causal(window).allows(positions_BN[..., None], places)[:, None], even)

    def write(self, store_BGCE: Tensor, new_TGE: Tensor) -> None:
        rows, count = self.positions_BN.shape
        new_BNGE = new_TGE.unflatten(0, (rows, count))
        if self.even >= 0:
            store_BGCE[:, :, self.even : self.even + count] = new_BNGE.transpose(1, 2)
        else:
            store_BGCE[torch.arange(rows, device=store_BGCE.device)[:, None], :, self.positions_BN] = new_BNGE

    def attend(self, q_TGRE: Tensor, keys: Tensor, values: Tensor, scale: float | None = None) -> Tensor:
        """What R query heads find under the key head that they share, ``[T, G, R, E]``."""
        rows, count = self.positions_BN.shape
        each, mask = q_TGRE.shape[2], self.mask
        if mask is not None and count > 1 and each > 1:
            mask = mask.repeat_interleave(each, dim=2)
        # they stand in the place of query positions: no key is repeated
        q_BGNE = q_TGRE.unflatten(0, (rows, count)).transpose(1, 2).flatten(2, 3)
        found_BGNE = F.scaled_dot_product_attention(q_BGNE, keys, values, attn_mask=mask, scale=scale)
        return found_BGNE.unflatten(2, (count, each)).transpose(1, 2).flatten(0, 1)


class Attention(nn.Module, ABC):
    """What a block asks of its attention; kinds differ in how they make keys and values, and in what of them they keep."""

    @abstractmethod
    def project(self, x_TD: Tensor, by: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries ``[T, H, E]`` and keys ``[T, G, E]``, and values ``[T, G, E]``."""

    @abstractmethod
    def keys_and_values(self, x_TD: Tensor, by: Rotation) -> tuple[Tensor, Tensor]:
        """Those of ``project``, without the queries."""

    @abstractmethod
    def merge(self, attended_THE: Tensor) -> Tensor:
        """What the heads found, as one vector ``[T, D]`` per token."""

    @abstractmethod
    def prefill(self, x_TD: Tensor, by: Rotation, batch: Packed, layout: Layout, cache: KVCache, layer: int, rows: Sequence[int]) -> Tensor:
        """``forward`` that also fills the named rows of a cache, one per sequence."""

    @abstractmethod
    def decode(self, x_TD: Tensor, by: Rotation, keys: Tensor, values: Tensor, slots: Slots) -> Tensor:
        """N new tokens per row, those of a row side by side, that see the layer's part of a cache."""

    def forward(self, x_TD: Tensor, by: Rotation, cu_seqlens: Tensor, max_seqlen: int, layout: Layout | BlockDiffusion) -> Tensor:
        heads = self.project(x_TD, by)
        if isinstance(layout, BlockDiffusion):
            return self.merge(block_diffusion_attention(*heads, cu_seqlens, max_seqlen, layout.block))
        return self.merge(attention(*heads, cu_seqlens, max_seqlen, layout))


class SelfAttention(Attention):
    """Grouped-query attention with rotary positions; query, key and value in one matrix."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.groups = config.heads, config.kv_heads or config.heads
        self.head_width = head_width(config)
        rows = [n * self.head_width for n in (self.heads, self.groups, self.groups)]
        self.qkv = (Affine if config.qkv_bias else Linear)(config.width, sum(rows), slices=rows)
        self.out = Linear(rows[0], config.width)
        self.q_norm, self.k_norm = (RMSNorm(self.head_width, config.norm_eps) if config.qk_norm else None for _ in range(2))

    def project(self, x_TD: Tensor, by: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        heads = self.qkv(x_TD).unflatten(-1, (-1, self.head_width))
        qk, v_TGE = heads.split((self.heads + self.groups, self.groups), dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q_THE, k_TGE = qk.split((self.heads, self.groups), dim=1)
            qk = torch.cat((self.q_norm(q_THE), self.k_norm(k_TGE)), dim=1)
        q_THE, k_TGE = rotate(qk, by).split((self.heads, self.groups), dim=1)
        return q_THE, k_TGE, v_TGE

    def keys_and_values(self, x_TD: Tensor, by: Rotation) -> tuple[Tensor, Tensor]:
        rows = slice(self.heads * self.head_width, None)
        k_TGE, v_TGE = self.qkv(x_TD, rows).unflatten(-1, (-1, self.head_width)).chunk(2, dim=1)
        return rotate(k_TGE if self.k_norm is None else self.k_norm(k_TGE), by), v_TGE

    def merge(self, attended_THE: Tensor) -> Tensor:
        return self.out(attended_THE.flatten(1))

    def prefill(self, x_TD: Tensor, by: Rotation, batch: Packed, layout: Layout, cache: KVCache, layer: int, rows: Sequence[int]) -> Tensor:
        q_THE, k_TGE, v_TGE = self.project(x_TD, by)
        for row, keys, values in zip(rows, batch.split(k_TGE), batch.split(v_TGE), strict=True):
            cache.write(layer, row, keys, values)
        return self.merge(attention(q_THE, k_TGE, v_TGE, batch.cu_seqlens, batch.max_seqlen, layout))

    def decode(self, x_TD: Tensor, by: Rotation, keys: Tensor, values: Tensor, slots: Slots) -> Tensor:
        q_THE, k_TGE, v_TGE = self.project(x_TD, by)
        slots.write(keys, k_TGE)
        slots.write(values, v_TGE)
        return self.out(slots.attend(q_THE.unflatten(1, (self.groups, -1)), keys, values).flatten(1))


def head_width(config: TransformerConfig) -> int:
    """E, of a query: as given, or the width over the heads."""
    if config.latent.width:
        return config.latent.plain + config.latent.rotary
    return config.head_width or config.width // config.heads
