"""The pre-norm transformer on flat packs: one network for every family that reads tokens.

It knows nothing of noise or of losses: tokens in, hidden states out; ``head`` turns those into logits or a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.config import TransformerConfig
from unveil.nn.attention import attention
from unveil.nn.feedforward import SwiGLU
from unveil.nn.head import Head
from unveil.nn.kv_cache import KVCache
from unveil.nn.layout import Causal, Layout
from unveil.nn.linear import Linear
from unveil.nn.norm import RMSNorm
from unveil.nn.packed import Packed
from unveil.nn.rotary import Rotation, rotate, rotation

DECODE_STEP = 128
"""A compiled decoding step looks at a multiple of this many cached tokens."""


class SelfAttention(nn.Module):
    """Grouped-query attention with rotary positions; query, key and value in one matrix."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.groups = config.heads, config.kv_heads or config.heads
        self.head_width = config.width // config.heads
        rows = [n * self.head_width for n in (self.heads, self.groups, self.groups)]
        self.qkv = Linear(config.width, sum(rows), slices=rows)
        self.out = Linear(rows[0], config.width)
        self.q_norm, self.k_norm = (RMSNorm(self.head_width, config.norm_eps) if config.qk_norm else None for _ in range(2))

    def project(self, x_TD: Tensor, by: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries ``[T, H, E]`` and keys ``[T, G, E]``, and values ``[T, G, E]``."""
        heads = self.qkv(x_TD).unflatten(-1, (-1, self.head_width))
        qk, v_TGE = heads.split((self.heads + self.groups, self.groups), dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q_THE, k_TGE = qk.split((self.heads, self.groups), dim=1)
            qk = torch.cat((self.q_norm(q_THE), self.k_norm(k_TGE)), dim=1)
        q_THE, k_TGE = rotate(qk, by).split((self.heads, self.groups), dim=1)
        return q_THE, k_TGE, v_TGE

    def forward(self, x_TD: Tensor, by: Rotation, cu_seqlens: Tensor, max_seqlen: int, layout: Layout) -> Tensor:
        return self.out(attention(*self.project(x_TD, by), cu_seqlens, max_seqlen, layout).flatten(1))

    def prefill(self, x_TD: Tensor, by: Rotation, batch: Packed, layout: Layout, cache: KVCache, layer: int, rows: Sequence[int]) -> Tensor:
        q_THE, k_TGE, v_TGE = self.project(x_TD, by)
        for row, keys, values in zip(rows, batch.split(k_TGE), batch.split(v_TGE), strict=True):
            cache.write(layer, row, keys, values)
        return self.out(attention(q_THE, k_TGE, v_TGE, batch.cu_seqlens, batch.max_seqlen, layout).flatten(1))

    def decode(self, x_BD: Tensor, by: Rotation, keys: Tensor, values: Tensor, slots: Slots) -> Tensor:
        q_BHE, k_BGE, v_BGE = self.project(x_BD, by)
        slots.write(keys, k_BGE)
        slots.write(values, v_BGE)
        # the query heads of a group stand in the place of query positions: no key is repeated
        q_BGRE = q_BHE.unflatten(1, (self.groups, -1))
        return self.out(F.scaled_dot_product_attention(q_BGRE, keys, values, attn_mask=slots.mask).flatten(1))


class Slots(NamedTuple):
    """Where one decoding step writes and what it may read, the same for all layers: one new token at ``positions_B`` of each row."""

    rows_B: Tensor
    positions_B: Tensor
    mask: Tensor | None
    """Which of the keys a row may see, ``[B, 1, 1, C]``; None where every row sees them all."""
    even: int = -1
    """The position, where it is the same in every row: a plain slice is cheaper than an index."""

    def write(self, store_BGCE: Tensor, new_BGE: Tensor) -> None:
        if self.even >= 0:
            store_BGCE[:, :, self.even] = new_BGE
        else:
            store_BGCE[self.rows_B, :, self.positions_B] = new_BGE


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + feedforward(norm(x))``."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = SelfAttention(config)
        self.feedforward_norm = RMSNorm(config.width, config.norm_eps)
        self.feedforward = SwiGLU(config.width, hidden_width(config))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_TD: Tensor, by: Rotation, cu_seqlens: Tensor, max_seqlen: int, layout: Layout) -> Tensor:
        return self._after(x_TD, self.attention(self.attention_norm(x_TD), by, cu_seqlens, max_seqlen, layout))

    def prefill(self, x_TD: Tensor, by: Rotation, batch: Packed, layout: Layout, cache: KVCache, layer: int, rows: Sequence[int]) -> Tensor:
        return self._after(x_TD, self.attention.prefill(self.attention_norm(x_TD), by, batch, layout, cache, layer, rows))

    def decode(self, x_BD: Tensor, by: Rotation, keys: Tensor, values: Tensor, slots: Slots) -> Tensor:
        return self._after(x_BD, self.attention.decode(self.attention_norm(x_BD), by, keys, values, slots))

    def _after(self, x_TD: Tensor, attended_TD: Tensor) -> Tensor:
        x_TD = x_TD + self.dropout(attended_TD)
        return x_TD + self.dropout(self.feedforward(self.feedforward_norm(x_TD)))


def hidden_width(config: TransformerConfig) -> int:
    """F: as given, or 8/3 of the width rounded up to a multiple of 64."""
    return config.hidden or -(-8 * config.width // (3 * 64)) * 64


class Transformer(nn.Module):
    """Embedding, ``depth`` blocks, a final norm and a head.

    Args:
        config: widths and switches. Raises ValueError if heads do not divide the width or kv_heads the heads.
        vocabulary: V, special tokens included.
        layout: who attends to whom; ``config.window`` is the family's to put into it.

    ``compute_dtype`` is the dtype of the activations; weights are cast to it where they are used.
    """

    def __init__(self, config: TransformerConfig, vocabulary: int, layout: Layout) -> None:
        super().__init__()
        if config.width % (2 * config.heads) or config.heads % (config.kv_heads or config.heads):
            raise ValueError(f"width {config.width}, heads {config.heads}, kv_heads {config.kv_heads}: no whole, even head width")
        self.config, self.layout = config, layout
        self.compute_dtype = torch.get_default_dtype()
        self._compiled = False
        self._compiled_decode: Callable[..., Tensor] | None = None
        self.embedding = nn.Embedding(vocabulary, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = Head(config.width, vocabulary)
        if config.tie:
            self.head.weight = self.embedding.weight  # type: ignore[assignment]
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Matrices from N(0, init_std); ``init`` says what becomes of those that write into the residual. Norms are 1."""
        config = self.config
        back = {"normal": 1.0, "depth-scaled": (2 * config.depth) ** -0.5, "zero-out": 0.0}[config.init]
        for name, p in self.named_parameters():
            if p.dim() == 2:
                p.normal_(0.0, config.init_std)
                if name.endswith(("attention.out.weight", "feedforward.down.weight")):
                    p.mul_(back)

    def _enter(self, tokens: Tensor, positions: Tensor) -> tuple[Tensor, Rotation]:
        by = rotation(positions, self.config.width // self.config.heads, self.config.rope_theta, self.compute_dtype)
        return F.embedding(tokens, self.embedding.weight).to(self.compute_dtype), by

    def forward(self, batch: Packed) -> Tensor:
        """Hidden states ``[T, D]``, normed, ready for ``head``."""
        x_TD, by = self._enter(batch.tokens_T, batch.positions_T)
        if self._compiled:  # packs differ in length: say so before the first one is compiled for its own
            for ragged in (x_TD, *by, batch.cu_seqlens):
                torch._dynamo.maybe_mark_dynamic(ragged, 0)
        for block in self.blocks:
            x_TD = block(x_TD, by, batch.cu_seqlens, batch.max_seqlen, self.layout)
        return self.norm(x_TD)

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        """An empty cache of ``rows`` sequences with room for ``capacity`` tokens each; it grows when that is used up."""
        config = self.config
        shape = (config.depth, rows, config.kv_heads or config.heads, capacity, config.width // config.heads)
        return KVCache.empty(*shape, dtype=self.compute_dtype, device=self.embedding.weight.device)

    def prefill(self, batch: Packed, cache: KVCache, rows: Sequence[int]) -> Tensor:
        """``forward`` that also fills the named rows of a cache, one per sequence of the pack, all of them empty before."""
        cache.reserve(batch.max_seqlen)
        x_TD, by = self._enter(batch.tokens_T, batch.positions_T)
        for layer, block in enumerate(self.blocks):
            x_TD = block.prefill(x_TD, by, batch, self.layout, cache, layer, rows)  # type: ignore[operator]
        for row, length in zip(rows, batch.lengths, strict=True):
            cache.lengths[row] = length
        return self.norm(x_TD)

    def decode(self, tokens_B: Tensor, cache: KVCache) -> Tensor:
        """Append one token to every row of the cache; hidden states ``[B, D]`` of those tokens.

        Raises ValueError for a layout that is not causal.
        """
        if not isinstance(self.layout, Causal):
            raise ValueError(f"token by token needs a causal layout, this network has {self.layout}")
        longest = max(cache.lengths) + 1
        cache.reserve(longest)
        positions_B = torch.tensor(cache.lengths, device=tokens_B.device)
        if self._compiled_decode is not None:  # a few shapes for all lengths
            seen = min(cache.capacity, -(-longest // DECODE_STEP) * DECODE_STEP)
            hidden_BD = self._compiled_decode(tokens_B, positions_B, *cache.first(seen))
        else:
            even = longest - 1 if min(cache.lengths) == longest - 1 else -1
            hidden_BD = self._decode(tokens_B, positions_B, *cache.first(longest), even)
        cache.lengths = [n + 1 for n in cache.lengths]
        return hidden_BD

    def _decode(self, tokens_B: Tensor, positions_B: Tensor, keys: list[Tensor], values: list[Tensor], even: int = -1) -> Tensor:
        window, seen = self.config.window, keys[0].shape[2]
        places = torch.arange(seen, device=tokens_B.device)
        whole = even >= 0 and not (window and seen > window + 1)
        mask = None if whole else Causal(window).allows(positions_B[:, None], places)[:, None, None, :]
        slots = Slots(torch.arange(len(tokens_B), device=tokens_B.device), positions_B, mask, even)
        x_BD, by = self._enter(tokens_B, positions_B)
        for block, k, v in zip(self.blocks, keys, values, strict=True):
            x_BD = block.decode(x_BD, by, k, v, slots)  # type: ignore[operator]
        return self.norm(x_BD)

    def compile_decoding(self, backend: str = "inductor") -> None:
        """Compile a decoding step as a whole. It takes some tens of seconds, so it pays for a server or a long run of samples.

        The matrices are laid out anew, input rows first: products with few rows read them faster so on a CPU. Values do not change.
        """
        for module in self.modules():
            if isinstance(module, Linear):
                module.weight.data = module.weight.data.T.contiguous().T
        self._compiled_decode = torch.compile(self._decode, backend=backend)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile the block, once for all layers, and the loss behind the head. Ragged packs do not compile again."""
        for block in self.blocks:
            block.compile(backend=backend)
        self.head.compile_loss(backend)
        self._compiled = True

    def flops_per_token(self, context: float) -> float:
        """Forward and backward, by matrix products and attention scores; a token sees ``context`` keys on average."""
        config = self.config
        matrices = sum(p.numel() for b in self.blocks for p in b.parameters() if p.dim() == 2) + self.head.weight.numel()
        return 6.0 * matrices + 12.0 * config.depth * config.width * context
