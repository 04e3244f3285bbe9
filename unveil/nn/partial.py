"""Reading a part of a sequence: the keys and values of the rest come out of a store.

A store ``[depth, 2, G, C, E]`` belongs to one sequence and has room for all of it from the start, so that nothing is ever copied: a part
is written where it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from unveil.nn.attention import attention
from unveil.nn.layout import Layout
from unveil.nn.rotary import Rotation


class Part(NamedTuple):
    """Tokens ``[start, start + len(tokens))`` of a sequence, which see its positions up to ``seen``, as the layout allows."""

    tokens: Tensor
    start: int
    seen: int
    store: Tensor


def new_store(model: Any, length: int) -> Tensor:
    """For one sequence of at most ``length`` tokens through a ``Transformer``."""
    attend = model.blocks[0].attention
    shape = (len(model.blocks), 2, attend.groups, length, attend.head_width)
    return torch.zeros(shape, dtype=model.compute_dtype, device=model.embedding.weight.device)


def read(model: Any, parts: Sequence[Part]) -> Tensor:
    """Hidden states of all parts end to end, ready for ``head``; their keys and values are written into their stores.

    What lies outside a part is taken as it was stored. That is exact where it cannot see the part (finished blocks), else an approximation.
    """
    lengths = [len(part.tokens) for part in parts]
    positions_T = torch.cat([torch.arange(part.start, part.start + n) for part, n in zip(parts, lengths, strict=True)])
    device = model.embedding.weight.device
    x_TD, by = model._enter(torch.cat([part.tokens for part in parts]).to(device), positions_T.to(device))
    told = model._hear(None)
    masks = [_mask(part, model.layout) for part in parts]
    for layer, block in enumerate(model.blocks):
        vectors = block._vectors(told)
        attended_TD = _attend(block.attention, block._before(x_TD, vectors), by, layer, parts, masks, model.layout)
        x_TD = block._after(x_TD, attended_TD, vectors)
    return model._leave(x_TD, told)


def _mask(part: Part, layout: Layout) -> Tensor | None:
    """Which of the positions seen each token may see, ``[n, seen]``; None where that is all of them, or the part the beginning."""
    if part.start == 0 and len(part.tokens) == part.seen:
        return None
    q, k = torch.arange(part.start, part.start + len(part.tokens))[:, None], torch.arange(part.seen)
    allowed = layout.allows(q, k)
    return None if allowed.all() else allowed.to(part.store.device)


def _attend(
    module: Any, x_TD: Tensor, by: Rotation, layer: int, parts: Sequence[Part], masks: Sequence[Tensor | None], layout: Layout
) -> Tensor:
    lengths = [len(part.tokens) for part in parts]
    out = []
    for part, mask, q, k, v in zip(parts, masks, *(x.split(lengths) for x in module.project(x_TD, by)), strict=True):
        keys, values = part.store[layer]
        place = slice(part.start, part.start + len(part.tokens))
        keys[:, place], values[:, place] = k.transpose(0, 1), v.transpose(0, 1)
        if part.start == 0 and len(q) == part.seen:
            ends = torch.tensor([0, part.seen], dtype=torch.int32, device=q.device)
            out.append(attention(q, k, v, ends, part.seen, layout))
            continue
        seen = keys[None, :, : part.seen], values[None, :, : part.seen]
        o = F.scaled_dot_product_attention(q.transpose(0, 1)[None], *seen, attn_mask=mask, enable_gqa=module.heads != module.groups)
        out.append(o[0].transpose(0, 1))
    return module.merge(torch.cat(out))
