"""Block diffusion's training forward: noisy and clean text through the network together (Arriola et al. 2025, section 3.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unveil.nn.block_attention import block_diffusion_attention
from unveil.nn.layout import BlockDiffusion
from unveil.nn.packed import Packed
from unveil.nn.rotary import Rotation
from unveil.nn.transformer import Transformer


def two_stream(model: Transformer, noisy: Packed, clean_T: Tensor, block: int) -> Tensor:
    """Hidden states ``[T, D]`` of the noisy text, ready for ``head``: every block sees itself noisy and what precedes it clean.

    The same as ``model`` with the layout ``BlockCausal(block)`` on the clean blocks before and one noisy one, for all blocks at once. A
    network that is told its noise level is told 0. In the last layer the clean half only gives keys and values, and, where what predicts a
    token is the state of the one before it (``config.shift``), that of each block's first token: so blocks of 1 are autoregression.

    Args:
        noisy: the pack; blocks begin anew in every sequence, and the last of a sequence may be shorter.
        clean_T: its tokens without noise.

    Raises:
        ValueError: a block below 1, or as many clean tokens as noisy ones are not given.
    """
    if block < 1 or clean_T.shape != noisy.tokens_T.shape:
        raise ValueError(f"blocks of {block} tokens, {len(noisy.tokens_T)} noisy and {len(clean_T)} clean tokens")
    x_XD, by = model._enter(torch.cat((noisy.tokens_T, clean_T)), noisy.positions_T.repeat(2))
    told = model._hear(None)
    if model._compiled:  # packs differ in length: say so before the first one is compiled for its own
        for ragged in (x_XD, *by, noisy.cu_seqlens):
            torch._dynamo.maybe_mark_dynamic(ragged, 0)
    blocks: list[Any] = list(model.blocks)
    *others, last = blocks
    for layer in others:
        x_XD = layer(x_XD, by, noisy.cu_seqlens, noisy.max_seqlen, BlockDiffusion(block), told)
    tokens = len(clean_T)
    vectors = last._vectors(told)
    before_XD = last._before(x_XD, vectors)
    if model.config.shift:
        q_XHE, k_XGE, v_XGE = last.attention.project(before_XD, by)
        attended_XHE = block_diffusion_attention(q_XHE, k_XGE, v_XGE, noisy.cu_seqlens, noisy.max_seqlen, block)
        rows_T = _predicting(noisy, block)
        return model._leave(last._after(x_XD[rows_T], last.attention.merge(attended_XHE[rows_T]), vectors), told)
    q_THE, k_TGE, v_TGE = last.attention.project(before_XD[:tokens], Rotation(by.cos[:tokens], by.sin[:tokens]))
    keys, values = last.attention.keys_and_values(before_XD[tokens:], Rotation(by.cos[tokens:], by.sin[tokens:]))
    both = torch.cat((k_TGE, keys)), torch.cat((v_TGE, values))
    attended_THE = block_diffusion_attention(q_THE, *both, noisy.cu_seqlens, noisy.max_seqlen, block)
    return model._leave(last._after(x_XD[:tokens], last.attention.merge(attended_THE), vectors), told)


def _predicting(batch: Packed, block: int) -> Tensor:
    """For a network of shifted states: which of the 2 T predicts each token, int64 ``[T]``. It is the token before it, noisy within a block
    and clean before one; a sequence's first token has none and is its own."""
    positions_T = batch.positions_T
    before_T = torch.arange(len(positions_T), device=positions_T.device) - (positions_T > 0).long()
    return torch.where((positions_T > 0) & (positions_T % block == 0), before_T + len(positions_T), before_T)
