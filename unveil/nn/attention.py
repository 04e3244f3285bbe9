"""Attention over a pack: softmax(q k^T scale) v within each sequence, no padding and no mask that grows with T squared.

One opaque operator with its own backward, so that ragged packs do not recompile the graph around it. On a CPU each run of
neighbouring sequences of equal length is one call of the fused kernel (the loader sorts a pack by length, so equal ones are
neighbours and no copy is needed). A layout with structure is cut into tiles of at most 256 x 256: whole tiles need no mask, and
parts are merged by their log-sum-exp. The backward of a part needs only the output and log-sum-exp of the whole row, so parts
add up exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from unveil.nn import flex
from unveil.nn.layout import Annealed, Bidirectional, BlockCausal, Causal, Layout

TILE = 256
_KINDS: tuple[type[Causal] | type[Bidirectional] | type[BlockCausal], ...] = (Causal, Bidirectional, BlockCausal)


def attention(
    q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, cu_seqlens: Tensor, max_seqlen: int, layout: Layout, scale: float | None = None
) -> Tensor:
    """Attention of every sequence of a pack with itself.

    Args:
        q_THE, k_TGE, v_TGE: queries, keys, values; H a multiple of G (grouped-query attention).
        cu_seqlens: int32 boundaries ``[N + 1]``, from 0 to T; the last may repeat.
        max_seqlen: at least the longest sequence (CUDA kernels ask for it).
        layout: ``Causal``, ``Bidirectional``, ``BlockCausal`` or ``Annealed``.
        scale: of the scores; 1/sqrt(E) if not given.

    Returns:
        ``[T, H, E]``.

    Raises:
        ValueError: H is no multiple of G, or the layout is unknown.
    """
    if q_THE.shape[1] % k_TGE.shape[1]:
        raise ValueError(f"{q_THE.shape[1]} query heads are no multiple of {k_TGE.shape[1]} key heads")
    kind, size, open_PP = _encode(layout)
    if q_THE.is_cuda:
        return flex.packed(q_THE, k_TGE, v_TGE, cu_seqlens, layout, scale or q_THE.shape[-1] ** -0.5)
    out_THE, _ = _attention(q_THE, k_TGE, v_TGE, cu_seqlens, max_seqlen, kind, size, scale or q_THE.shape[-1] ** -0.5, open_PP)
    return out_THE


def cross_attention(q_NQHE: Tensor, k_THE: Tensor, v_THE: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Attention of Q queries to each of N sequences, every query to its whole sequence.

    Args:
        q_NQHE: queries, as many for every sequence.
        k_THE, v_THE: keys and values, the sequences end to end.
        cu_seqlens: int32 boundaries ``[N + 1]``, from 0 to T.

    Returns:
        ``[N, Q, H, E]``.
    """
    parts, first = [], 0
    for group in _groups(cu_seqlens):
        last = first + group[1]
        heads = (q_NQHE[first:last].transpose(1, 2), _rows(k_THE, *group), _rows(v_THE, *group))
        parts.append(F.scaled_dot_product_attention(*heads).transpose(1, 2))
        first = last
    return torch.cat(parts)


def _encode(layout: Layout) -> tuple[int, int, Tensor | None]:
    """An operator's schema has no room for objects: a layout crosses it as two integers, and a pattern as itself."""
    if isinstance(layout, Annealed):
        return len(_KINDS), len(layout.open_PP), layout.open_PP
    for kind, cls in enumerate(_KINDS):
        if isinstance(layout, cls):
            return kind, layout.block if isinstance(layout, BlockCausal) else layout.window, None
    raise ValueError(f"unknown layout {layout!r}")


class _Tile(NamedTuple):
    """Queries ``[q0, q1)`` against keys ``[k0, k1)``; ``mask`` where only some pairs are allowed, ``causal`` for the plain triangle."""

    q0: int
    q1: int
    k0: int
    k1: int
    causal: bool
    mask: Tensor | None


def _cut(kind: int, size: int, length: int, open_PP: Tensor | None) -> tuple[_Tile, ...]:
    return _tiles(kind, size, length) if open_PP is None else _opened(open_PP, length)


def _opened(open_PP: Tensor, length: int) -> tuple[_Tile, ...]:
    """Tiles of an ``Annealed`` layout. The pattern holds for a step, so nothing is cached; two masks serve all tiles."""
    ahead_PP = torch.zeros(open_PP.shape).masked_fill_(~open_PP, float("-inf"))
    diagonal_PP = ahead_PP.masked_fill(torch.ones_like(open_PP).tril_(), 0.0)
    tiles = []
    for q0 in range(0, length, len(open_PP)):
        q1 = min(q0 + len(open_PP), length)
        if q0:
            tiles.append(_Tile(q0, q1, 0, q0, False, None))
        for k0 in range(q0, length, len(open_PP)):
            k1, mask_PP = min(k0 + len(open_PP), length), ahead_PP if k0 > q0 else diagonal_PP
            tiles.append(_Tile(q0, q1, k0, k1, False, mask_PP[: q1 - q0, : k1 - k0]))
    return tuple(tiles)


@lru_cache(maxsize=1024)
def _tiles(kind: int, size: int, length: int) -> tuple[_Tile, ...]:
    """Cut ``length`` x ``length`` into tiles, whole neighbours joined."""
    layout = _KINDS[kind](size)
    if not size:
        return (_Tile(0, length, 0, length, isinstance(layout, Causal), None),)
    tiles: list[_Tile] = []
    for q0 in range(0, length, TILE):
        q1, whole = min(q0 + TILE, length), None
        q = torch.arange(q0, q1)[:, None]
        for k0 in range(0, length, TILE):
            k1 = min(k0 + TILE, length)
            allowed = layout.allows(q, torch.arange(k0, k1))
            if allowed.all():
                whole = (whole[0] if whole else k0, k1)
            elif allowed.any():
                tiles.append(_Tile(q0, q1, k0, k1, False, _additive(allowed)))
        if whole:
            tiles.append(_Tile(q0, q1, *whole, False, None))
    return tuple(tiles)


@lru_cache(maxsize=64)
def _interned(pattern: bytes, rows: int, columns: int) -> Tensor:
    allowed = torch.frombuffer(bytearray(pattern), dtype=torch.bool).view(rows, columns)
    return torch.zeros(rows, columns).masked_fill_(~allowed, float("-inf"))


def _additive(allowed: Tensor) -> Tensor:
    """0 where allowed, -inf elsewhere; equal patterns share one tensor, so masks stay few."""
    return _interned(allowed.contiguous().numpy().tobytes(), *allowed.shape)


def _groups(cu_seqlens: Tensor) -> Iterator[tuple[int, int, int]]:
    """Runs of neighbouring sequences of equal length: first token, number of sequences, their length."""
    bounds = cu_seqlens.tolist()
    start, count, length = 0, 0, 0
    for a, b in pairwise(bounds):
        if b - a != length:
            if count and length:
                yield start, count, length
            start, count, length = a, 0, b - a
        count += 1
    if count and length:
        yield start, count, length


def _rows(x: Tensor, start: int, count: int, length: int) -> Tensor:
    """``[count, heads, length, E]`` view of a run of sequences."""
    return x[start : start + count * length].unflatten(0, (count, length)).transpose(1, 2)


def _flat(x_nHLE: Tensor) -> Tensor:
    """Back to ``[n L, heads, E]``, contiguous; free where the kernel laid its result out that way."""
    return x_nHLE.transpose(1, 2).flatten(0, 1).contiguous()


def _repeat(x: Tensor, times: int) -> Tensor:
    return x if times == 1 else x.repeat_interleave(times, dim=1)


_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def _merge(parts: list[tuple[_Tile, Tensor, Tensor]], out: Tensor, lse: Tensor) -> None:
    """Write tiles into ``out`` ``[n, H, L, E]`` and ``lse`` ``[n, H, L]``, each weighted by exp(its log-sum-exp - the row's)."""
    for part, _, part_lse in parts:
        if part.mask is not None:  # the kernel reports 0 for a row that sees nothing
            part_lse.masked_fill_((part.mask == float("-inf")).all(-1), float("-inf"))
        row = lse[:, :, part.q0 : part.q1]
        torch.logaddexp(row, part_lse, out=row)
    for part, part_out, part_lse in parts:
        weight = torch.exp(part_lse - lse[:, :, part.q0 : part.q1]).unsqueeze(-1)
        out[:, :, part.q0 : part.q1] += part_out * weight


@torch.library.custom_op("unveil::attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, kind: int, size: int, scale: float, open_PP: Tensor | None
) -> tuple[Tensor, Tensor]:
    times = q.shape[1] // k.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)
    groups = list(_groups(cu_seqlens))
    if len(groups) == 1 and times == 1 and not size:  # equal lengths: the kernel's own output is the result
        q_n, k_n, v_n = (_rows(x, *groups[0]) for x in (q, k, v))
        whole, lse_n = _flash(q_n, k_n, v_n, 0.0, _KINDS[kind] is Causal, attn_mask=None, scale=scale)
        return _flat(whole), lse_n.transpose(1, 2).flatten(0, 1).contiguous()
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = q.new_empty(q.shape[:2], dtype=wide)
    for group in groups:
        q_n, k_n, v_n = _rows(q, *group), _repeat(_rows(k, *group), times), _repeat(_rows(v, *group), times)
        out_n, lse_n = _rows(out, *group), _rows(lse.unsqueeze(-1), *group).squeeze(-1)
        tiles = _cut(kind, size, group[2], open_PP)
        if len(tiles) == 1 and tiles[0].mask is None:
            part, part_lse = _flash(q_n, k_n, v_n, 0.0, tiles[0].causal, attn_mask=None, scale=scale)
            out_n.copy_(part)
            lse_n.copy_(part_lse)
            continue
        parts = []
        for t in tiles:
            mask = None if t.mask is None else t.mask.to(q.dtype)
            at = (q_n[:, :, t.q0 : t.q1], k_n[:, :, t.k0 : t.k1], v_n[:, :, t.k0 : t.k1])
            parts.append((t, *_flash(*at, 0.0, t.causal, attn_mask=mask, scale=scale)))
        merged = torch.zeros(out_n.shape, dtype=wide)
        lse_n.fill_(float("-inf"))
        _merge(parts, merged, lse_n)
        out_n.copy_(merged)
    return out, lse


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor | float | None) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(q.shape[:2], dtype=wide)


@torch.library.custom_op("unveil::attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    kind: int,
    size: int,
    scale: float,
    open_PP: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    times = q.shape[1] // k.shape[1]
    groups = list(_groups(cu_seqlens))
    if len(groups) == 1 and times == 1 and not size:
        q_n, k_n, v_n, grad_n, out_n = (_rows(x, *groups[0]) for x in (q, k, v, grad, out))
        lse_n = _rows(lse.unsqueeze(-1), *groups[0]).squeeze(-1)
        parts = _flash_backward(grad_n, q_n, k_n, v_n, out_n, lse_n, 0.0, _KINDS[kind] is Causal, attn_mask=None, scale=scale)
        return _flat(parts[0]), _flat(parts[1]), _flat(parts[2])
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    for group in groups:
        q_n, k_n, v_n = _rows(q, *group), _repeat(_rows(k, *group), times), _repeat(_rows(v, *group), times)
        grad_n, out_n, lse_n = _rows(grad, *group), _rows(out, *group), _rows(lse.unsqueeze(-1), *group).squeeze(-1)
        tiles = _cut(kind, size, group[2], open_PP)
        if len(tiles) == 1 and tiles[0].mask is None:
            dq_n, dk_n, dv_n = _flash_backward(grad_n, q_n, k_n, v_n, out_n, lse_n, 0.0, tiles[0].causal, attn_mask=None, scale=scale)
        else:
            dq_n, dk_n, dv_n = torch.zeros_like(q_n), torch.zeros_like(k_n), torch.zeros_like(v_n)
            for t in tiles:
                rows, keys = slice(t.q0, t.q1), slice(t.k0, t.k1)
                mask = None if t.mask is None else t.mask.to(q.dtype)
                at = (
                    grad_n[:, :, rows],
                    q_n[:, :, rows],
                    k_n[:, :, keys],
                    v_n[:, :, keys],
                    out_n[:, :, rows],
                    lse_n[:, :, rows].contiguous(),
                )
                parts = _flash_backward(*at, 0.0, t.causal, attn_mask=mask, scale=scale)
                dq_n[:, :, rows] += parts[0]
                dk_n[:, :, keys] += parts[1]
                dv_n[:, :, keys] += parts[2]
        _rows(dq, *group).copy_(dq_n)
        for whole, part in ((dk, dk_n), (dv, dv_n)):
            _rows(whole, *group).copy_(part if times == 1 else part.unflatten(1, (-1, times)).sum(2))
    return dq, dk, dv


@_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Tensor | float | None) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    return dq, dk, dv


def _setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, cu_seqlens, *ctx.rest, open_PP = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens, open_PP)


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    *saved, open_PP = ctx.saved_tensors
    return *_attention_backward(grad, *saved, *ctx.rest, open_PP), *[None] * 6


_attention.register_autograd(_backward, setup_context=_setup)
