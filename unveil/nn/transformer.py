"""The pre-norm transformer on flat packs: one network for every family that reads tokens.

It knows nothing of noise or of losses: tokens in, hidden states out; ``head`` turns those into logits or a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.config import TransformerConfig
from unveil.nn.feedforward import GELU, SwiGLU
from unveil.nn.head import Head
from unveil.nn.kv_cache import KVCache
from unveil.nn.latent import LatentAttention
from unveil.nn.layout import BlockDiffusion, Causal, Layout
from unveil.nn.linear import Linear
from unveil.nn.modulation import Level, Tell, Told, modulated
from unveil.nn.moe import Experts
from unveil.nn.mtp import Depth, States, step
from unveil.nn.norm import LayerNorm, RMSNorm
from unveil.nn.packed import Packed
from unveil.nn.partial import through
from unveil.nn.rotary import Rotation, rotation
from unveil.nn.self_attention import SelfAttention, Slots, head_width

DECODE_STEP = 128
"""A compiled decoding step looks at a multiple of this many cached tokens."""


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + feedforward(norm(x))``; where it is told a noise level, norms are shifted and scaled by it and
    what is added is gated."""

    def __init__(self, config: TransformerConfig, layer: int = 0) -> None:
        super().__init__()
        self.attention_norm = _norm(config)
        self.attention = (LatentAttention if config.latent.width else SelfAttention)(config)
        self.feedforward_norm = _norm(config)
        self.feedforward = _feedforward(config, layer)
        self.tell = Tell(condition, config.width, 6) if (condition := condition_width(config)) else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x_TD: Tensor, by: Rotation, cu_seqlens: Tensor, max_seqlen: int, layout: Layout | BlockDiffusion, told: Told | None = None
    ) -> Tensor:
        vectors = self._vectors(told)
        return self._after(x_TD, self.attention(self._before(x_TD, vectors), by, cu_seqlens, max_seqlen, layout), vectors)

    def prefill(
        self,
        x_TD: Tensor,
        by: Rotation,
        batch: Packed,
        layout: Layout,
        cache: KVCache,
        layer: int,
        rows: Sequence[int],
        told: Told | None = None,
    ) -> Tensor:
        vectors = self._vectors(told)
        return self._after(x_TD, self.attention.prefill(self._before(x_TD, vectors), by, batch, layout, cache, layer, rows), vectors)

    def decode(self, x_TD: Tensor, by: Rotation, keys: Tensor, values: Tensor, slots: Slots, told: Told | None = None) -> Tensor:
        vectors = self._vectors(told)
        return self._after(x_TD, self.attention.decode(self._before(x_TD, vectors), by, keys, values, slots), vectors)

    def _vectors(self, told: Told | None) -> tuple[Tensor, ...]:
        """Shift, scale and gate of the attention, then of the feed-forward; nothing where the block is told nothing."""
        return () if told is None or self.tell is None else self.tell.vectors(told)

    def _before(self, x_TD: Tensor, vectors: tuple[Tensor, ...]) -> Tensor:
        normed_TD = self.attention_norm(x_TD)
        return modulated(normed_TD, *vectors[:2]) if vectors else normed_TD

    def _after(self, x_TD: Tensor, attended_TD: Tensor, vectors: tuple[Tensor, ...]) -> Tensor:
        if not vectors:
            x_TD = x_TD + self.dropout(attended_TD)
            return x_TD + self.dropout(self.feedforward(self.feedforward_norm(x_TD)))
        _, _, gate1, shift2, scale2, gate2 = vectors
        x_TD = torch.addcmul(x_TD, gate1, self.dropout(attended_TD))
        normed_TD = modulated(self.feedforward_norm(x_TD), shift2, scale2)
        return torch.addcmul(x_TD, gate2, self.dropout(self.feedforward(normed_TD)))


def _norm(config: TransformerConfig) -> RMSNorm | LayerNorm:
    return (LayerNorm if config.norm == "layer" else RMSNorm)(config.width, config.norm_eps)


def _feedforward(config: TransformerConfig, layer: int) -> nn.Module:
    if config.experts.routed and layer >= config.experts.dense:
        return Experts(config.width, config.experts)
    return (GELU if config.feedforward == "gelu" else SwiGLU)(config.width, hidden_width(config))


def condition_width(config: TransformerConfig) -> int:
    """Of what the blocks are told; 0 where they are told nothing."""
    return config.condition or (128 if config.time_conditioning else 0)


def hidden_width(config: TransformerConfig) -> int:
    """F: as given, or 8/3 of the width rounded up to a multiple of 64."""
    return config.hidden or -(-8 * config.width // (3 * 64)) * 64


class Transformer(nn.Module):
    """Embedding, ``depth`` blocks, a final norm and a head; behind them the depths of multi-token prediction, if there are any.

    Args:
        config: widths and switches. Raises ValueError if a head has no whole, even width or kv_heads do not divide the heads.
        vocabulary: V, special tokens included.
        layout: who attends to whom; ``config.window`` is the family's to put into it.

    ``compute_dtype`` is the dtype of the activations; weights are cast to it where they are used.
    """

    def __init__(self, config: TransformerConfig, vocabulary: int, layout: Layout) -> None:
        super().__init__()
        uneven = config.head_width % 2 if config.head_width else config.width % (2 * config.heads)
        if (uneven and not config.latent.width) or config.heads % (config.kv_heads or config.heads):
            raise ValueError(f"width {config.width}, heads {config.heads}, kv_heads {config.kv_heads}: no whole, even head width")
        self.config, self.layout = config, layout
        self.compute_dtype = torch.get_default_dtype()
        self._compiled = False
        self._compiled_decode: Callable[..., States] | None = None
        self._compiled_draft: Callable[..., States] | None = None
        self._compiled_part: Callable[..., Tensor] | None = None
        self.embedding = nn.Embedding(vocabulary, config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.norm = _norm(config)
        self.level = Level(condition) if (condition := condition_width(config)) else None
        self.tell = Tell(condition, config.width, 2) if condition else None
        self.head = Head(config.width, vocabulary, config.head_bias)
        if config.tie:
            self.head.weight = self.embedding.weight  # type: ignore[assignment]
        self.mtp = nn.ModuleList(Depth(config, Block(config, config.depth + k)) for k in range(config.mtp.depths))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Matrices from N(0, init_std); ``init`` says what becomes of those that write into the residual. Norms are 1, biases 0;
        what tells blocks and output the noise level begins at 0."""
        config = self.config
        # where a gate of 0 stands before it already, a matrix of 0 would leave both without a gradient for ever
        zero = 0.0 if self.level is None else 1.0
        back = {"normal": 1.0, "depth-scaled": (2 * config.depth) ** -0.5, "zero-out": zero}[config.init]
        for name, p in self.named_parameters():
            if name.endswith(("tell.weight", "bias")):
                p.zero_()
            elif p.dim() >= 2:
                p.normal_(0.0, config.init_std)
                if name.endswith(("attention.out.weight", ".down.weight")):
                    p.mul_(back)

    def _enter(self, tokens: Tensor, positions: Tensor) -> tuple[Tensor, Rotation]:
        config = self.config
        turned = config.latent.rotary if config.latent.width else config.rotary_width or head_width(config)
        by = rotation(positions, turned, config.rope_theta, self.compute_dtype, config.yarn)
        return F.embedding(tokens, self.embedding.weight).to(self.compute_dtype), by

    def _hear(self, time: Tensor | None, batch: Packed | None = None) -> Told | None:
        """What the blocks are told of noise levels ``[N]`` or ``[T]``; of 0 where none are given."""
        if self.level is None:
            return None
        time = time if self.config.time_conditioning else None
        level_X = self.embedding.weight.new_zeros(1, dtype=torch.float32) if time is None else time.flatten()
        index_T = None if time is None or batch is None or len(level_X) == len(batch.tokens_T) else batch.sequence_T
        return Told(self.level(level_X, self.compute_dtype), index_T)

    def _leave(self, x_TD: Tensor, told: Told | None) -> Tensor:
        x_TD = self.norm(x_TD)
        return x_TD if told is None or self.tell is None else modulated(x_TD, *self.tell.vectors(told))

    def _shifted(self, x_TD: Tensor, batch: Packed) -> Tensor:
        """With ``config.shift`` every token gets the state of the one before it; the first of a sequence keeps its own."""
        if not self.config.shift:
            return x_TD
        return x_TD.index_select(0, torch.arange(len(x_TD), device=x_TD.device) - (batch.positions_T > 0).long())

    def forward(self, batch: Packed, time: Tensor | None = None, layout: Layout | None = None) -> Tensor:
        """Hidden states ``[T, D]``, normed, ready for ``head``.

        Args:
            time: the noise level, one per sequence ``[N]`` or per token ``[T]``, for a network with ``config.time_conditioning``; 0 if
                not given. Others take no notice of it.
            layout: for this pass, in place of the network's own.
        """
        return self._shifted(self.read(batch, time, layout)[1], batch)

    def read(self, batch: Packed, time: Tensor | None = None, layout: Layout | None = None) -> States:
        """States ``[T, D]``, before the final norm and behind it."""
        x_TD, by = self._enter(batch.tokens_T, batch.positions_T)
        told = self._hear(time, batch)
        if self._compiled:  # packs differ in length: say so before the first one is compiled for its own
            for ragged in (x_TD, *by, batch.cu_seqlens):
                torch._dynamo.maybe_mark_dynamic(ragged, 0)
        for block in self.blocks:
            x_TD = block(x_TD, by, batch.cu_seqlens, batch.max_seqlen, layout or self.layout, told)
        return x_TD, self._leave(x_TD, told)

    def new_cache(self, rows: int, capacity: int, layers: int = 0) -> KVCache:
        """An empty cache of ``rows`` sequences with room for ``capacity`` tokens each; it grows when that is used up. ``layers``: as many
        as there are blocks, if not given."""
        config = self.config
        latent = config.latent
        heads, widths = config.kv_heads or config.heads, (head_width(config), head_width(config))
        if latent.width:
            heads, widths = 1, (latent.width + latent.rotary, 0)
        return KVCache.empty(
            layers or config.depth, rows, heads, capacity, widths, dtype=self.compute_dtype, device=self.embedding.weight.device
        )  # fmt: skip

    def prefill(self, batch: Packed, cache: KVCache, rows: Sequence[int]) -> Tensor:
        """``forward`` that also fills the named rows of a cache, one per sequence of the pack, all of them empty before."""
        return self._shifted(self.prefill_states(batch, cache, rows)[1], batch)

    def prefill_states(self, batch: Packed, cache: KVCache, rows: Sequence[int]) -> States:
        """``read`` that does what ``prefill`` does."""
        cache.reserve(batch.max_seqlen)
        x_TD, by = self._enter(batch.tokens_T, batch.positions_T)
        told = self._hear(None)
        for layer, block in enumerate(self.blocks):
            x_TD = block.prefill(x_TD, by, batch, self.layout, cache, layer, rows, told)  # type: ignore[operator]
        for row, length in zip(rows, batch.lengths, strict=True):
            cache.lengths[row] = length
        return x_TD, self._leave(x_TD, told)

    def decode(self, tokens_B: Tensor, cache: KVCache) -> Tensor:
        """Append one token to every row of the cache; hidden states ``[B, D]`` of those tokens. Raises ValueError as ``extend``."""
        return self.extend(tokens_B[:, None], cache)[1][:, 0]

    def extend(self, tokens_BN: Tensor, cache: KVCache) -> States:
        """Append N tokens to every row of the cache; their states ``[B, N, D]``, as of ``read``.

        Rows are as long as they are. One that wants fewer tokens takes any at its end and is cut back (``KVCache.cut``): no token sees
        those behind it, and the next ones are written over them. Raises ValueError for a layout that is not causal.
        """
        if not isinstance(self.layout, Causal):
            raise ValueError(f"token by token needs a causal layout, this network has {self.layout}")
        starts_B, even, keys, values = self.opened(cache, tokens_BN.shape[1])
        if self._compiled_decode is not None:  # code for any number of tokens would be slow for one and for two
            torch._dynamo.mark_static(tokens_BN, 1)
        states = (self._compiled_decode or self._decode)(tokens_BN, starts_B, keys, values, even)
        cache.lengths = [n + tokens_BN.shape[1] for n in cache.lengths]
        return states

    def opened(self, cache: KVCache, count: int) -> tuple[Tensor, int, list[Tensor], list[Tensor]]:
        """Room for ``count`` more tokens a row: where they begin, that place where it is the same for all (or -1), keys and values up to
        there or, of a compiled step, which is to meet few shapes, somewhat beyond."""
        longest = max(cache.lengths) + count
        cache.reserve(longest)
        starts_B = torch.tensor(cache.lengths, device=cache.keys[0].device)
        if self._compiled_decode is not None:
            return starts_B, -1, *cache.first(min(cache.capacity, -(-longest // DECODE_STEP) * DECODE_STEP))
        even = longest - count if min(cache.lengths) == longest - count else -1
        return starts_B, even, *cache.first(longest)

    def _decode(self, tokens_BN: Tensor, starts_B: Tensor, keys: list[Tensor], values: list[Tensor], even: int = -1) -> States:
        slots = Slots.behind(starts_B, tokens_BN.shape[1], keys[0].shape[2], self.config.window, even)
        x_TD, by = self._enter(tokens_BN.flatten(), slots.positions_BN.flatten())
        told = self._hear(None)
        for block, k, v in zip(self.blocks, keys, values, strict=True):
            x_TD = block.decode(x_TD, by, k, v, slots, told)  # type: ignore[operator]
        return x_TD.unflatten(0, tokens_BN.shape), self._leave(x_TD, told).unflatten(0, tokens_BN.shape)

    def compile_decoding(self, backend: str = "inductor") -> None:
        """Compile a step of decoding as a whole: a token for each row, or parts of rows (``nn.partial``), in a few forms for all lengths.
        Each takes some tens of seconds, so it pays for a server or a long run of samples.

        The matrices are laid out anew, input rows first: products with few rows read them faster so on a CPU. Values do not change.
        """
        for module in self.modules():
            if isinstance(module, Linear):
                module.weight.data = module.weight.data.T.contiguous().T
        # guards on the modules of every layer are most of what a call of a small network takes, and nothing here changes them
        options: Any = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
        self._compiled_decode = torch.compile(self._decode, backend=backend, options=options)
        self._compiled_draft = torch.compile(partial(step, self), backend=backend, options=options)
        self._compiled_part = torch.compile(through, backend=backend, dynamic=True, options=options)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile the block, once for all layers, and the loss behind the head. Ragged packs do not compile again."""
        for block in (*self.blocks, *(depth.block for depth in self.mtp)):
            block.compile(backend=backend)
        self.head.compile_loss(backend)
        self._compiled = True

    def flops_per_token(self, context: float) -> float:
        """Forward and backward, by matrix products and attention scores; a token sees ``context`` keys on average. Training runs the
        depths of multi-token prediction too, each with the head."""
        layers = [*self.blocks, *self.mtp]
        return (1 + len(self.mtp)) * products(self.head.weight) + sum(self._flops(layer, context) for layer in layers)

    def layer_flops(self, layer: int, context: float) -> float:
        """The share of one block in ``flops_per_token``; of experts only those that a token goes to."""
        return self._flops(self.blocks[layer], context)

    def _flops(self, layer: nn.Module, context: float) -> float:
        config = self.config
        value = config.latent.value if config.latent.width else head_width(config)
        matrices = active(layer, lambda name, p: products(p) if p.dim() >= 2 and "tell" not in name else 0.0)
        return matrices + 6.0 * config.heads * (head_width(config) + value) * context


def products(matrix: Tensor) -> float:
    """Operations of a matrix per token, forward and backward; one that is frozen is spared its own gradient."""
    return (6.0 if matrix.requires_grad else 4.0) * matrix.numel()


def active(module: nn.Module, cost: Callable[[str, nn.Parameter], float] = lambda name, p: p.numel()) -> float:
    """Parameters that a token meets, or what they cost: all of them, but of experts only as many as it goes to."""
    experts = (m for m in module.modules() if isinstance(m, Experts))
    shares = {id(p): m.config.top_k / m.config.routed for m in experts for p in (m.gate_up.weight, m.down.weight)}
    return sum(cost(name, p) * shares.get(id(p), 1.0) for name, p in module.named_parameters())
