"""Encoder and decoder layers without rotary positions (Vaswani et al. 2017): pre-norm where a sequence is read, post-norm where queries
ask it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unveil.nn.affine import Affine
from unveil.nn.attention import attention, cross_attention
from unveil.nn.feedforward import GELU
from unveil.nn.layout import Layout
from unveil.nn.linear import Linear
from unveil.nn.norm import LayerNorm


class Attention(nn.Module):
    """Every sequence with itself; query, key and value in one matrix, with a bias if asked for."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.head_width = width // heads
        self.qkv = (Affine if bias else Linear)(width, 3 * width, slices=(width,) * 3)
        self.out = Affine(width, width)

    def forward(self, x_TD: Tensor, cu_seqlens: Tensor, max_seqlen: int, layout: Layout) -> Tensor:
        q, k, v = self.qkv(x_TD).unflatten(-1, (3, -1, self.head_width)).unbind(1)
        return self.out(attention(q, k, v, cu_seqlens, max_seqlen, layout).flatten(1))


class CrossAttention(nn.Module):
    """Queries, as many for every sequence, with the sequence that is theirs."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.head_width = width // heads
        self.query = Affine(width, width)
        self.key_value = Affine(width, 2 * width, slices=(width,) * 2)
        self.out = Affine(width, width)

    def forward(self, x_QD: Tensor, memory_TD: Tensor, cu_seqlens: Tensor) -> Tensor:
        """``x_QD`` holds the queries of all sequences, in order."""
        k_THE, v_THE = self.key_value(memory_TD).unflatten(-1, (2, -1, self.head_width)).unbind(1)
        q_NQHE = self.query(x_QD).unflatten(-1, (-1, self.head_width)).unflatten(0, (len(cu_seqlens) - 1, -1))
        return self.out(cross_attention(q_NQHE, k_THE, v_THE, cu_seqlens).flatten(0, 1).flatten(1))


class EncoderLayer(nn.Module):
    """``x + attention(norm(x))``, then ``x + feedforward(norm(x))``.

    Both are dropped as the vision transformer that OadTR descends from does it: behind the attention twice in a row, which is once at
    a rate of 1 - (1 - p)^2, within the feed-forward once, and behind it once.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.feedforward_norm = LayerNorm(width, bias=True), LayerNorm(width, bias=True)
        self.attention = Attention(width, heads, bias=False)
        self.feedforward = GELU(width, hidden, "none", dropout)
        self.attention_dropout, self.dropout = nn.Dropout(1 - (1 - dropout) ** 2), nn.Dropout(dropout)

    def forward(self, x_TD: Tensor, cu_seqlens: Tensor, max_seqlen: int, layout: Layout) -> Tensor:
        attended_TD = self.attention(self.attention_norm(x_TD), cu_seqlens, max_seqlen, layout)
        x_TD = x_TD + self.attention_dropout(attended_TD)
        return x_TD + self.dropout(self.feedforward(self.feedforward_norm(x_TD)))


class DecoderLayer(nn.Module):
    """``norm(x + attention(x))``, ``norm(x + cross(x, memory))``, ``norm(x + feedforward(x))``, in three parts that can be run alone."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention, self.cross = Attention(width, heads, bias=True), CrossAttention(width, heads)
        self.feedforward = GELU(width, hidden, "none", dropout)
        self.norms = nn.ModuleList(LayerNorm(width, bias=True) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def among(self, x_QD: Tensor, count: int, layout: Layout) -> Tensor:
        """Self-attention of each ``count`` queries in a row."""
        cu_seqlens = torch.arange(0, len(x_QD) + 1, count, dtype=torch.int32, device=x_QD.device)
        return self.norms[0](x_QD + self.dropout(self.attention(x_QD, cu_seqlens, count, layout)))

    def asked(self, x_QD: Tensor, answer_QD: Tensor) -> Tensor:
        """What follows the cross-attention, whose output is ``answer_QD``."""
        x_QD = self.norms[1](x_QD + self.dropout(answer_QD))
        return self.norms[2](x_QD + self.dropout(self.feedforward(x_QD)))

    def forward(self, x_QD: Tensor, memory_TD: Tensor, cu_seqlens: Tensor, layout: Layout) -> Tensor:
        x_QD = self.among(x_QD, len(x_QD) // (len(cu_seqlens) - 1), layout)
        return self.asked(x_QD, self.cross(x_QD, memory_TD, cu_seqlens))
