"""Attention over a pack on a GPU: FlexAttention under the layouts' own predicate, tiles that nobody may see left out.

The same function as ``attention`` and ``block_attention`` compute on a CPU, which are its twins. It stands outside of compiled blocks
and is compiled by itself, once for all lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.utils.weak import WeakTensorKeyDictionary

from unveil.nn.layout import BlockDiffusion, Layout

_MASKS: Any = WeakTensorKeyDictionary()
"""Of each live ``cu_seqlens``: the masks of its layouts, so that a pack's layers share one."""


@torch.compiler.disable  # type: ignore[untyped-decorator]
def packed(q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, cu_seqlens: Tensor, layout: Layout, scale: float) -> Tensor:
    """``attention.attention`` of the same arguments, ``[T, H, E]``; the values may be of another width than the keys."""

    def build() -> BlockMask:
        sequence_T, position_T = _places(len(k_TGE), cu_seqlens)

        def allowed(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (sequence_T[q] == sequence_T[k]) & layout.allows(position_T[q], position_T[k])

        return _mask(allowed, len(q_THE), len(k_TGE), cu_seqlens.device)

    return _attend(q_THE, k_TGE, v_TGE, _known(cu_seqlens, layout, build), scale)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def two_copies(q_XHE: Tensor, k_XGE: Tensor, v_XGE: Tensor, cu_seqlens: Tensor, block: int) -> Tensor:
    """``block_attention.block_diffusion_attention`` of the same arguments: as many rows as there are queries."""
    tokens = len(k_XGE) // 2

    def build() -> BlockMask:
        sequence_T, position_T = _places(tokens, cu_seqlens)
        layout = BlockDiffusion(block)

        def allowed(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            at, of = q % tokens, k % tokens
            return (sequence_T[at] == sequence_T[of]) & layout.allows(position_T[at], position_T[of], q >= tokens, k >= tokens)

        return _mask(allowed, len(q_XHE), len(k_XGE), cu_seqlens.device)

    return _attend(q_XHE, k_XGE, v_XGE, _known(cu_seqlens, (block, len(q_XHE) == tokens), build), q_XHE.shape[-1] ** -0.5)


def _places(tokens: int, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """The sequence of each token, and its position there."""
    index_T = torch.arange(tokens, device=cu_seqlens.device)
    sequence_T = torch.bucketize(index_T, cu_seqlens[1:].long(), right=True)
    return sequence_T, index_T - cu_seqlens.long()[sequence_T]


def _known(cu_seqlens: Tensor, key: Any, build: Callable[[], BlockMask]) -> BlockMask:
    masks = _MASKS.setdefault(cu_seqlens, {})
    if key not in masks:
        masks[key] = build()
    return masks[key]


def _mask(allowed: Callable[..., Tensor], queries: int, keys: int, device: torch.device) -> BlockMask:
    # compiled, it never holds queries x keys numbers
    return create_block_mask(allowed, None, None, queries, keys, device=device, _compile=device.type == "cuda")


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)


def _attend(q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, mask: BlockMask, scale: float) -> Tensor:
    # the kernel has no float64; eager, the same is computed with all scores held
    attend: Any = _compiled() if q_THE.is_cuda and q_THE.dtype != torch.float64 else flex_attention
    heads = [x.transpose(0, 1).unsqueeze(0) for x in (q_THE, k_TGE, v_TGE)]
    out: Tensor = attend(*heads, block_mask=mask, scale=scale, enable_gqa=q_THE.shape[1] != k_TGE.shape[1])
    return out.squeeze(0).transpose(0, 1)
