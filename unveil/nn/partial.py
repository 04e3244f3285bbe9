"""Reading parts of sequences: the keys and values of the rest come out of a store.

A store has a slot for each sequence, with room for all of it from the start: a part is written where it stands, and nothing that is kept
is ever moved. S slots, N places of the longest part, C keys, G groups of heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from unveil.nn.attention import attention
from unveil.nn.kv_cache import KVCache
from unveil.nn.layout import Layout
from unveil.nn.rotary import Rotation


class Span(NamedTuple):
    """Tokens ``[start, start + length)`` of the sequence in a slot, which see its positions up to ``seen``, as the layout allows."""

    slot: int
    start: int
    length: int
    seen: int

    @property
    def alone(self) -> bool:
        """Whether it sees nothing but itself."""
        return self.start == 0 and self.length == self.seen


def new_store(model: Any, rows: int, capacity: int) -> KVCache:
    """For sequences of at most ``capacity`` tokens through a ``Transformer``."""
    attend = model.blocks[0].attention
    widths = (attend.head_width, attend.head_width)
    return KVCache.empty(len(model.blocks), rows, attend.groups, capacity, widths, model.compute_dtype, model.embedding.weight.device)


def read(model: Any, spans: Sequence[Span], tokens_T: Tensor, store: KVCache) -> Tensor:
    """Hidden states of all spans end to end, ready for ``head``; their keys and values are written into the store.

    What lies outside a span is taken as it was stored. That is exact where it cannot see the span (finished blocks), else an
    approximation. Spans that see only themselves cost what a pack of them costs; all others share one call of the kernel per layer, the
    shorter ones filled up to the longest.

    Args:
        tokens_T: the spans' tokens, on any device.
    """
    device = model.embedding.weight.device
    plan = _plan(tuple(spans), model.layout, model.compute_dtype, device)
    step = model._compiled_part or through
    return step(model, tokens_T.to(device), plan, store.keys, store.values)


@dataclass(frozen=True, eq=False)
class Plan:
    """Where a pass writes and what it may read: the same for all layers, and for all passes over the same spans."""

    positions_T: Tensor
    slots_T: Tensor
    seen: int
    """The most positions that any of the others sees."""
    ends: Tensor
    """Boundaries of the spans that see only themselves, int32."""
    longest: int
    """Of them."""
    alone_A: Tensor | None
    """Their tokens; None where all are, or none is."""
    first: int
    """The first slot with a span that sees more, and ``last`` the one after the last; the same where there is none."""
    last: int
    grid_SN: Tensor | None
    """Which token stands at each place of each slot; None where the tokens lie so already. What stands for no token is not read back."""
    back_T: Tensor | None
    """The place of each token, the spans alone first where there are such; None where ``grid_SN`` is."""
    mask: Tensor | None
    """0 or minus infinity, ``[S, 1, N, C]``; None where everything is seen."""


@lru_cache(maxsize=64)
def _plan(spans: tuple[Span, ...], layout: Layout, dtype: torch.dtype, device: torch.device) -> Plan:
    positions_T = torch.cat([torch.arange(s.start, s.start + s.length) for s in spans])
    lengths = torch.tensor([s.length for s in spans])
    slots_T = torch.tensor([s.slot for s in spans]).repeat_interleave(lengths)
    begins = (lengths.cumsum(0) - lengths).tolist()
    alone = [(s, at) for s, at in zip(spans, begins, strict=True) if s.alone]
    others = [(s, at) for s, at in zip(spans, begins, strict=True) if not s.alone]
    ends = torch.tensor([0, *(s.length for s, _ in alone)], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    alone_A = torch.cat([torch.arange(at, at + s.length) for s, at in alone]) if alone and others else None
    first, last, seen, grid_SN, back_T, mask = 0, 0, 0, None, None, None
    if others:
        first, last = min(s.slot for s, _ in others), max(s.slot for s, _ in others) + 1
        places, seen = max(s.length for s, _ in others), max(s.seen for s, _ in others)
        grid_SN = torch.zeros(last - first, places, dtype=torch.int64)
        asking_SN, seen_S = torch.zeros_like(grid_SN), torch.ones(last - first, dtype=torch.int64)
        kept, back_T = int(ends[-1]), torch.empty(len(positions_T), dtype=torch.int64)
        if alone_A is not None:
            back_T[alone_A] = torch.arange(kept)
        for s, at in others:
            offsets = torch.arange(places).clamp_max(s.length - 1)  # filled up with the last token
            grid_SN[s.slot - first], asking_SN[s.slot - first], seen_S[s.slot - first] = at + offsets, s.start + offsets, s.seen
            back_T[at : at + s.length] = kept + (s.slot - first) * places + torch.arange(s.length)
        if not alone and torch.equal(grid_SN.flatten(), torch.arange(len(positions_T))):
            grid_SN = back_T = None
        key_C = torch.arange(seen)
        allowed = layout.allows(asking_SN[..., None], key_C) & (key_C < seen_S[:, None, None])
        if not allowed.all():
            mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, float("-inf"))[:, None].to(device)
    put = [None if x is None else x.to(device) for x in (positions_T, slots_T, alone_A, grid_SN, back_T)]
    positions_T, slots_T = put[0], put[1]  # type: ignore[assignment]
    longest = max((s.length for s, _ in alone), default=0)
    return Plan(positions_T, slots_T, seen, ends.to(device), longest, put[2], first, last, put[3], put[4], mask)


def through(model: Any, tokens_T: Tensor, plan: Plan, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """``read`` with everything laid out: ``keys`` and ``values`` ``[slots, G, C, E]`` of each layer are written to."""
    x_TD, by = model._enter(tokens_T, plan.positions_T)
    told = model._hear(None)
    for block, k, v in zip(model.blocks, keys, values, strict=True):
        vectors = block._vectors(told)
        attended_TD = _attend(block.attention, block._before(x_TD, vectors), by, plan, k, v, model.layout)
        x_TD = block._after(x_TD, attended_TD, vectors)
    return model._leave(x_TD, told)


def _attend(module: Any, x_TD: Tensor, by: Rotation, plan: Plan, keys: Tensor, values: Tensor, layout: Layout) -> Tensor:
    q_THE, k_TGE, v_TGE = module.project(x_TD, by)
    keys[plan.slots_T, :, plan.positions_T] = k_TGE
    values[plan.slots_T, :, plan.positions_T] = v_TGE
    found = []
    if plan.longest:
        q, k, v = (x if plan.alone_A is None else x[plan.alone_A] for x in (q_THE, k_TGE, v_TGE))
        found.append(attention(q, k, v, plan.ends, plan.longest, layout))
    if plan.last > plan.first:
        q_SNHE = q_THE.unflatten(0, (plan.last - plan.first, -1)) if plan.grid_SN is None else q_THE[plan.grid_SN]
        k, v = (x[plan.first : plan.last, :, : plan.seen] for x in (keys, values))
        grouped = module.heads != module.groups
        o = F.scaled_dot_product_attention(q_SNHE.transpose(1, 2), k, v, attn_mask=plan.mask, enable_gqa=grouped)
        found.append(o.transpose(1, 2).flatten(0, 1))
    out = torch.cat(found) if len(found) > 1 else found[0]
    return module.merge(out if plan.back_T is None else out[plan.back_T])
