"""Attention over a pack of noisy and clean copies (``BlockDiffusion``), without the mask over 2 T x 2 T.

The clean half is block-causal attention. A noisy block sees itself, all blocks of a length in one call of the fused kernel, and the clean
blocks before it, in tiles; the two are merged by their log-sum-exp. The backward of every part needs only the output and log-sum-exp of
the whole row, so parts add up exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from unveil.nn import flex
from unveil.nn.attention import TILE, _additive, _flash, _flash_backward, _groups, _merge, _repeat, _rows, _Tile, attention
from unveil.nn.layout import BlockCausal, BlockDiffusion


def block_diffusion_attention(q_XHE: Tensor, k_XGE: Tensor, v_XGE: Tensor, cu_seqlens: Tensor, max_seqlen: int, block: int) -> Tensor:
    """Attention of both copies of every sequence: the noisy tokens of the pack, then the clean ones.

    Args:
        q_XHE: queries of both halves, X = 2 T; of the noisy half alone, X = T, where the clean one only gives keys and values.
        k_XGE, v_XGE: keys and values of both halves, X = 2 T; H a multiple of G.
        cu_seqlens: int32 boundaries ``[N + 1]`` of one half, from 0 to T; the last may repeat.
        max_seqlen: at least the longest sequence.
        block: tokens of a block; the last of a sequence may be shorter.

    Returns:
        As many rows as there are queries, ``[X, H, E]``.

    Raises:
        ValueError: H is no multiple of G.
    """
    if q_XHE.shape[1] % k_XGE.shape[1]:
        raise ValueError(f"{q_XHE.shape[1]} query heads are no multiple of {k_XGE.shape[1]} key heads")
    if q_XHE.is_cuda:
        return flex.two_copies(q_XHE, k_XGE, v_XGE, cu_seqlens, block)
    k_TGE, clean_k_TGE = k_XGE.chunk(2)
    v_TGE, clean_v_TGE = v_XGE.chunk(2)
    tokens = k_XGE.shape[0] // 2
    noisy_THE, _ = _noisy(q_XHE[:tokens], k_TGE, v_TGE, clean_k_TGE, clean_v_TGE, cu_seqlens, block)
    if q_XHE.shape[0] == tokens:
        return noisy_THE
    return torch.cat((noisy_THE, attention(q_XHE[tokens:], clean_k_TGE, clean_v_TGE, cu_seqlens, max_seqlen, BlockCausal(block))))


@lru_cache(maxsize=1024)
def _behind(block: int, length: int) -> tuple[_Tile, ...]:
    """Noisy queries against the clean blocks before their own: bands of whole blocks, masked only within the band."""
    layout, band = BlockDiffusion(block), max(block, TILE // block * block)
    tiles = []
    for q0 in range(0, length, band):
        q1 = min(q0 + band, length)
        last = (q1 - 1) // block * block
        if q0:
            tiles.append(_Tile(q0, q1, 0, q0, False, None))
        if last > q0:
            allowed = layout.allows(torch.arange(q0, q1)[:, None], torch.arange(q0, last), False, True)
            tiles.append(_Tile(q0, q1, q0, last, False, _additive(allowed)))
    return tuple(tiles)


def _own(block: int, count: int, length: int) -> Iterator[tuple[slice, int]]:
    """Runs of equal blocks in ``count`` sequences of ``length``: the positions they fill, and how long one is."""
    whole = length // block * block
    if whole:
        yield slice(0, whole), block
    if whole < length:
        yield slice(whole, length), length - whole


def _blocks(x_nHLE: Tensor, size: int) -> Tensor:
    """``[n, H, L, E]`` to its blocks, ``[n L / size, H, size, E]``."""
    return x_nHLE.unflatten(2, (-1, size)).transpose(1, 2).flatten(0, 1)


def _unblocked(x_bHSE: Tensor, count: int) -> Tensor:
    return x_bHSE.unflatten(0, (count, -1)).transpose(1, 2).flatten(2, 3)


@torch.library.custom_op("unveil::noisy_attention", mutates_args=())
def _noisy(q: Tensor, k: Tensor, v: Tensor, clean_k: Tensor, clean_v: Tensor, cu_seqlens: Tensor, block: int) -> tuple[Tensor, Tensor]:
    times, scale = q.shape[1] // k.shape[1], q.shape[2] ** -0.5
    wide = torch.promote_types(q.dtype, torch.float32)
    out, lse = torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(q.shape[:2], dtype=wide)
    for group in _groups(cu_seqlens):
        q_n = _rows(q, *group)
        k_n, v_n, clean_k_n, clean_v_n = (_repeat(_rows(x, *group), times) for x in (k, v, clean_k, clean_v))
        own, own_lse = torch.empty(q_n.shape, dtype=wide), torch.empty(q_n.shape[:3], dtype=wide)
        for place, size in _own(block, *group[1:]):
            part, part_lse = _flash(*(_blocks(x[:, :, place], size) for x in (q_n, k_n, v_n)), 0.0, False, attn_mask=None, scale=scale)
            own[:, :, place] = _unblocked(part, group[1])
            own_lse[:, :, place] = _unblocked(part_lse.unsqueeze(-1), group[1]).squeeze(-1)
        parts = []
        for t in _behind(block, group[2]):
            mask = None if t.mask is None else t.mask.to(q.dtype)
            at = (q_n[:, :, t.q0 : t.q1], clean_k_n[:, :, t.k0 : t.k1], clean_v_n[:, :, t.k0 : t.k1])
            parts.append((t, *_flash(*at, 0.0, False, attn_mask=mask, scale=scale)))
        merged, lse_n = torch.zeros_like(own), own_lse.clone()
        _merge(parts, merged, lse_n)
        _rows(out, *group).copy_(merged.add_(own * torch.exp(own_lse - lse_n).unsqueeze(-1)))
        _rows(lse.unsqueeze(-1), *group).copy_(lse_n.unsqueeze(-1))
    return out, lse


@_noisy.register_fake
def _(q: Tensor, *rest: Tensor | int) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(q.shape[:2], dtype=wide)


@torch.library.custom_op("unveil::noisy_attention_backward", mutates_args=())
def _noisy_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    clean_k: Tensor,
    clean_v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    block: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    times, scale = q.shape[1] // k.shape[1], q.shape[2] ** -0.5
    grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v, clean_k, clean_v)]
    for group in _groups(cu_seqlens):
        grad_n, q_n, out_n = (_rows(x, *group) for x in (grad, q, out))
        lse_n = _rows(lse.unsqueeze(-1), *group)
        heads = [_repeat(_rows(x, *group), times) for x in (k, v, clean_k, clean_v)]
        k_n, v_n, clean_k_n, clean_v_n = heads
        dq_n, (dk_n, dv_n, dck_n, dcv_n) = torch.empty_like(q_n), [torch.zeros_like(x) for x in heads]
        for place, size in _own(block, *group[1:]):
            at = [_blocks(x[:, :, place], size) for x in (grad_n, q_n, k_n, v_n, out_n, lse_n)]
            parts = _flash_backward(*at[:5], at[5].squeeze(-1).contiguous(), 0.0, False, attn_mask=None, scale=scale)
            for whole, part in zip((dq_n, dk_n, dv_n), parts, strict=True):
                whole[:, :, place] = _unblocked(part, group[1])
        for t in _behind(block, group[2]):
            rows, keys = slice(t.q0, t.q1), slice(t.k0, t.k1)
            mask = None if t.mask is None else t.mask.to(q.dtype)
            around = (grad_n[:, :, rows], q_n[:, :, rows], clean_k_n[:, :, keys], clean_v_n[:, :, keys], out_n[:, :, rows])
            parts = _flash_backward(*around, lse_n[:, :, rows].squeeze(-1).contiguous(), 0.0, False, attn_mask=mask, scale=scale)
            dq_n[:, :, rows] += parts[0]
            dck_n[:, :, keys] += parts[1]
            dcv_n[:, :, keys] += parts[2]
        _rows(grads[0], *group).copy_(dq_n)
        for whole, part in zip(grads[1:], (dk_n, dv_n, dck_n, dcv_n), strict=True):
            _rows(whole, *group).copy_(part if times == 1 else part.unflatten(1, (-1, times)).sum(2))
    return grads[0], grads[1], grads[2], grads[3], grads[4]


@_noisy_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, clean_k: Tensor, clean_v: Tensor, *rest: Tensor | int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    a, b, c, d, e = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v, clean_k, clean_v))
    return a, b, c, d, e


def _setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *heads, cu_seqlens, ctx.block = inputs
    ctx.save_for_backward(*heads, *output, cu_seqlens)


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    return *_noisy_backward(grad, *ctx.saved_tensors, ctx.block), None, None


_noisy.register_autograd(_backward, setup_context=_setup)
