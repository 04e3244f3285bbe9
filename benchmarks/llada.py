"""The sampler that LLaDA publishes (Nie et al. 2025, algorithm 5, semi-autoregressive) at temperature 0, written out: the twin of ours.

Every step reads the whole canvas; nothing is kept. Prompts of one length, a batch of rows that step together.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


@torch.no_grad()
def generate(
    logits: Callable[[Tensor], Tensor],
    prompt_BP: Tensor,
    length: int,
    steps: int,
    window: int,
    mask: int,
) -> tuple[Tensor, int]:
    """Finished canvases ``[B, P + length]`` and the number of forwards.

    Args:
        logits: ``[B, L]`` tokens to ``[B, L, V]``, minus infinity for what is no data.
        steps: in all; ``length / window`` divides it, and ``window`` the length.
    """
    rows, start = prompt_BP.shape
    x = torch.cat([prompt_BP, torch.full((rows, length), mask)], 1)
    inside_steps = steps // (length // window)
    for end in range(start + window, start + length + 1, window):
        masks = int((x[0, end - window : end] == mask).sum())
        for step in range(inside_steps):
            z = logits(x).double()
            proposed = z.argmax(-1)
            confidence = z.softmax(-1).gather(-1, proposed[..., None]).squeeze(-1)
            confidence[x != mask] = -torch.inf
            confidence[:, end:] = -torch.inf
            count = masks // inside_steps + (step < masks % inside_steps)
            for row in range(rows):
                best = confidence[row].sort(descending=True, stable=True).indices[:count]
                x[row, best] = proposed[row, best]
    return x, inside_steps * (length // window)
