"""Multi-token prediction (DeepSeek-V3, section 2.2, eqs. 21 to 23): a chain of blocks behind the trunk, each seeing one token further.

Depth k joins what the depth before it knew at position i (of depth 1: what the trunk knew) with the embedding of token i + k, and its
block's output predicts token i + k + 1 through the head that all share:

    h_i^k = Block(W [RMSNorm(Emb(t_{i+k})); RMSNorm(h_i^{k-1})])

Embedding first, as the released weights have it (the paper prints them the other way round). Positions are those of i: all of a row
are moved alike, and rotary angles only know distances.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unveil.config import TransformerConfig
from unveil.nn.kv_cache import KVCache
from unveil.nn.linear import Linear
from unveil.nn.norm import RMSNorm
from unveil.nn.packed import Packed
from unveil.nn.rotary import Rotation
from unveil.nn.self_attention import Slots

States = tuple[Tensor, Tensor]
"""What leaves a chain of blocks, before its final norm and behind it."""


class Depth(nn.Module):
    """One depth around ``block``, which is of the trunk's kind."""

    def __init__(self, config: TransformerConfig, block: nn.Module) -> None:
        super().__init__()
        self.token_norm, self.state_norm, self.norm = (RMSNorm(config.width, config.norm_eps) for _ in range(3))
        self.project = Linear(2 * config.width, config.width)
        self.block = block

    def join(self, embedded_TD: Tensor, state_TD: Tensor) -> Tensor:
        return self.project(torch.cat((self.token_norm(embedded_TD), self.state_norm(state_TD)), dim=-1))


def parameters(model: nn.Module) -> int:
    """Of the depths: what plain sampling does without."""
    depths = getattr(model, "mtp", None)
    return 0 if depths is None else sum(p.numel() for p in depths.parameters())


def states_ahead(model: Any, batch: Packed) -> list[Tensor]:
    """Hidden states ``[T, D]``, ready for the head, that predict the next token, the one after it and so on: one more than depths.

    The last k tokens of a sequence have no token k ahead: their states of depth k mean nothing, and nothing that counts sees them.
    """
    told = model._hear(None)
    states = model.read(batch)

    def through(number: int, block: Any, x_TD: Tensor, by: Rotation) -> Tensor:
        return block(x_TD, by, batch.cu_seqlens, batch.max_seqlen, model.layout, told)

    return [states[1], *_chain(model, batch, states, len(model.mtp), through)]


def prefill(model: Any, batch: Packed, states: States, cache: KVCache, rows: Sequence[int], depths: int) -> None:
    """Fill the named rows of the depths' cache, a layer for each, behind a prompt of which the trunk's ``states`` are known.

    Depth k is right up to the k-th last token, whose further ones are not known yet: the caller cuts the rows back.
    """
    cache.reserve(batch.max_seqlen)
    told = model._hear(None)

    def through(number: int, block: Any, x_TD: Tensor, by: Rotation) -> Tensor:
        return block.prefill(x_TD, by, batch, model.layout, cache, number, rows, told)

    for _ in _chain(model, batch, states, depths, through):
        pass


def _chain(
    model: Any, batch: Packed, states: States, depths: int, through: Callable[[int, Any, Tensor, Rotation], Tensor]
) -> Iterator[Tensor]:
    for number, depth in enumerate(model.mtp[:depths]):
        embedded_TD, by = model._enter(batch.tokens_T.roll(-number - 1), batch.positions_T)
        x_TD = through(number, depth.block, depth.join(embedded_TD, carried(model, states)), by)
        states = x_TD, depth.norm(x_TD)
        yield states[1]


def carried(model: Any, states: States) -> Tensor:
    """What the next depth takes over."""
    return states[1] if model.config.mtp.carry == "normed" else states[0]


def draft(model: Any, number: int, state_BND: Tensor, tokens_BN: Tensor, cache: KVCache) -> States:
    """States of depth ``number`` (from 0) at N places of every row, the first of them behind what the row's cache holds.

    Args:
        state_BND: what it takes over, ``carried``.
        tokens_BN: the tokens ``number + 1`` ahead of the places.
        cache: of the depths. Keys and values of the places are written, ``lengths`` stay: the places of a later draft begin where these do,
            unless the caller says otherwise.
    """
    count = tokens_BN.shape[1]
    starts_B, even, keys, values = model.opened(cache, count)
    each = model._compiled_draft or partial(step, model)
    return each(number, state_BND, tokens_BN, starts_B, keys[number], values[number], even)


def step(
    model: Any, number: int, state_BND: Tensor, tokens_BN: Tensor, starts_B: Tensor, keys: Tensor, values: Tensor, even: int
) -> States:
    """What ``draft`` computes, on tensors alone, so that it may be compiled."""
    depth, rows = model.mtp[number], tokens_BN.shape[0]
    slots = Slots.behind(starts_B, tokens_BN.shape[1], keys.shape[2], model.config.window, even)
    embedded_TD, by = model._enter(tokens_BN.flatten(), slots.positions_BN.flatten())
    joined_TD = depth.join(embedded_TD, state_BND.flatten(0, 1))
    x_TD = depth.block.decode(joined_TD, by, keys, values, slots, model._hear(None))
    return x_TD.unflatten(0, (rows, -1)), depth.norm(x_TD).unflatten(0, (rows, -1))
