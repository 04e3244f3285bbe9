"""Multi-head latent attention (DeepSeek-V2, section 2.1; DeepSeek-V3, eqs. 1 to 11).

Keys and values of all heads come out of one latent vector per token, and one rotated key is shared by all heads; a cache keeps only
these. Training and reading a prompt expand them. Decoding never does: the matrix that would make the keys is applied to the query
instead, and the one that makes the values to what was attended to, so that a step reads C + R numbers per token whatever the heads.

C is the width of the latent, R of the rotated part, P of the plain part, E = P + R, H the heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.config import TransformerConfig
from unveil.nn.attention import attention
from unveil.nn.kv_cache import KVCache
from unveil.nn.layout import Layout
from unveil.nn.linear import Linear
from unveil.nn.norm import RMSNorm
from unveil.nn.packed import Packed
from unveil.nn.rotary import Rotation, magnitude, rotate
from unveil.nn.self_attention import Attention, Slots


class LatentAttention(Attention):
    """Raises ValueError for an odd rotated part or values wider than keys."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        latent = config.latent
        if latent.rotary % 2 or latent.value > latent.plain + latent.rotary:
            raise ValueError(f"rotary {latent.rotary}, plain {latent.plain}, value {latent.value}: odd, or values wider than keys")
        self.heads = self.groups = config.heads
        self.latent, self.head_width = latent, latent.plain + latent.rotary
        self.q_down = Linear(config.width, latent.query) if latent.query else None
        self.q_norm = RMSNorm(latent.query, config.norm_eps) if latent.query else nn.Identity()
        self.q_up = Linear(latent.query or config.width, config.heads * self.head_width)
        self.kv_down = Linear(config.width, latent.width + latent.rotary, slices=(latent.width, latent.rotary))
        self.kv_norm = RMSNorm(latent.width, config.norm_eps)
        self.kv_up = Linear(latent.width, config.heads * (latent.plain + latent.value))
        self.out = Linear(config.heads * latent.value, config.width)
        self.stretch = magnitude(config.yarn.factor, config.yarn.mscale_all) ** 2
        self.scale = self.stretch * self.head_width**-0.5

    def project(self, x_TD: Tensor, by: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Values carry zeros up to the width of keys: kernels want one width. Queries carry what YaRN adds to the scale."""
        plain_THP, rotated_THR = self._queries(x_TD, by)
        q_THE = torch.cat((plain_THP, rotated_THR), dim=-1)
        return q_THE if self.stretch == 1 else q_THE * self.stretch, *self._expanded(*self._compressed(x_TD, by))

    def keys_and_values(self, x_TD: Tensor, by: Rotation) -> tuple[Tensor, Tensor]:
        return self._expanded(*self._compressed(x_TD, by))

    def merge(self, attended_THE: Tensor) -> Tensor:
        return self.out(attended_THE[..., : self.latent.value].flatten(1))

    def prefill(self, x_TD: Tensor, by: Rotation, batch: Packed, layout: Layout, cache: KVCache, layer: int, rows: Sequence[int]) -> Tensor:
        compressed = self._compressed(x_TD, by)
        kept_T1C, nothing_T10 = torch.cat(compressed, dim=-1)[:, None], x_TD.new_empty(len(x_TD), 1, 0)
        for row, kept, nothing in zip(rows, batch.split(kept_T1C), batch.split(nothing_T10), strict=True):
            cache.write(layer, row, kept, nothing)
        q_THE = torch.cat(self._queries(x_TD, by), dim=-1)
        return self.merge(attention(q_THE, *self._expanded(*compressed), batch.cu_seqlens, batch.max_seqlen, layout, self.scale))

    def decode(self, x_TD: Tensor, by: Rotation, keys: Tensor, values: Tensor, slots: Slots) -> Tensor:
        """Absorbed: ``keys`` holds latents and rotated keys ``[B, 1, C, C + R]``, ``values`` nothing."""
        slots.write(keys, torch.cat(self._compressed(x_TD, by), dim=-1)[:, None])
        plain_THP, rotated_THR = self._queries(x_TD, by)
        to_keys_HPC, to_values_HVC = self._up(x_TD.dtype)
        absorbed_THC = torch.einsum("thp,hpc->thc", plain_THP, to_keys_HPC)
        q_T1HC = torch.cat((absorbed_THC, rotated_THR), dim=-1)[:, None]
        # the rotated key is attended to along with the latent and dropped: one fused kernel for both
        found_T1HC = slots.attend(q_T1HC, keys, keys, self.scale)
        return self.out(torch.einsum("thc,hvc->thv", found_T1HC[:, 0, :, : self.latent.width], to_values_HVC).flatten(1))

    def _queries(self, x_TD: Tensor, by: Rotation) -> tuple[Tensor, Tensor]:
        """The plain part ``[T, H, P]`` and the rotated one ``[T, H, R]``."""
        narrow = x_TD if self.q_down is None else self.q_norm(self.q_down(x_TD))
        q_THE = self.q_up(narrow).unflatten(-1, (self.heads, -1))
        plain_THP, rotary_THR = q_THE.split((self.latent.plain, self.latent.rotary), dim=-1)
        return plain_THP, rotate(rotary_THR, by)

    def _compressed(self, x_TD: Tensor, by: Rotation) -> tuple[Tensor, Tensor]:
        """What is cached: the latent ``[T, C]``, normed, and the rotated key ``[T, R]``."""
        latent_TC, rotary_TR = self.kv_down(x_TD).split((self.latent.width, self.latent.rotary), dim=-1)
        return self.kv_norm(latent_TC), rotate(rotary_TR[:, None], by)[:, 0]

    def _expanded(self, latent_TC: Tensor, rotated_TR: Tensor) -> tuple[Tensor, Tensor]:
        both = self.kv_up(latent_TC).unflatten(-1, (self.heads, -1))
        plain_THP, v_THV = both.split((self.latent.plain, self.latent.value), dim=-1)
        k_THE = torch.cat((plain_THP, rotated_TR[:, None].expand(-1, self.heads, -1)), dim=-1)
        return k_THE, F.pad(v_THV, (0, k_THE.shape[-1] - v_THV.shape[-1]))

    def _up(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """``kv_up`` by heads: to plain keys ``[H, P, C]`` and to values ``[H, V, C]``."""
        both_HEC = self.kv_up.matrix(dtype).unflatten(0, (self.heads, -1))
        to_keys, to_values = both_HEC.split((self.latent.plain, self.latent.value), dim=1)
        return to_keys, to_values
