"""Block diffusion in the order of work that dLLM publishes (Zhou et al. 2025), written out on our network: the twin of ours.

For every block the whole text before it is read again; every step reads the block on a copy of those keys and values; rows step together,
and a block is done when all of them have no mask left in it. The logits of what is read again, which dLLM also forms, are left out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unveil.nn.partial import Span, new_store, read


@torch.no_grad()
def generate(
    network: Any,
    restrict: Callable[[Tensor], Tensor],
    prompt_BP: Tensor,
    length: int,
    block: int,
    mask: int,
    chosen: Callable[[Tensor, int], Tensor],
) -> tuple[Tensor, int]:
    """Finished canvases ``[B, P + length]`` at temperature 0, and the number of forwards of blocks.

    Args:
        network: whose layout is causal by blocks.
        restrict: minus infinity for what is no data.
        prompt_BP, length: P and the new tokens, multiples of ``block``.
        chosen: confidences ``[B, block]``, minus infinity where nothing is to be uncovered, and the step within the block, to the places
            that are committed, bool.
    """
    rows, start = prompt_BP.shape
    x, forwards = prompt_BP, 0
    for at in range(start, start + length, block):
        prefix = new_store(network, rows, at + block)
        read(network, [Span(row, 0, at, at) for row in range(rows)], x.flatten(), prefix)
        x = torch.cat([x, torch.full((rows, block), mask)], 1)
        step = 0
        while (hidden_Bb := x[:, at:] == mask).any():
            spans = [Span(row, at, block, at + block) for row in range(rows)]
            hidden_TD = read(network, spans, x[:, at:].flatten(), copy.deepcopy(prefix))
            z = restrict(network.head(hidden_TD).double()).view(rows, block, -1)
            best_Bb, proposed_Bb = z.max(-1)
            confidence_Bb = (best_Bb - z.logsumexp(-1)).exp().masked_fill(~hidden_Bb, -torch.inf)
            x[:, at:] = torch.where(chosen(confidence_Bb, step), proposed_Bb, x[:, at:])
            step, forwards = step + 1, forwards + 1
    return x, forwards


def surest(confidence_Bb: Tensor, counts_B: Tensor) -> Tensor:
    """The ``counts`` highest of each row, ties to the lowest place, as bool."""
    order = confidence_Bb.sort(dim=-1, descending=True, stable=True).indices
    taken = torch.arange(confidence_Bb.shape[1]) < counts_B[:, None]
    return torch.zeros_like(taken).scatter(-1, order, taken) & (confidence_Bb > -torch.inf)


def quota(block: int, steps: int) -> Callable[[Tensor, int], Tensor]:
    """An even share of the block in each of ``steps`` steps."""

    def chosen(confidence_Bb: Tensor, step: int) -> Tensor:
        return surest(confidence_Bb, torch.full((len(confidence_Bb),), block // steps + (step < block % steps)))

    return chosen


def threshold(least: float) -> Callable[[Tensor, int], Tensor]:
    """All that are sure enough, and always the surest."""

    def chosen(confidence_Bb: Tensor, step: int) -> Tensor:
        return surest(confidence_Bb, (confidence_Bb >= least).sum(-1).clamp_min(1))

    return chosen
