"""Plain twins of the fast paths: obviously right and slow."""

from __future__ import annotations

import torch
from torch import Tensor

from unveil.nn.layout import Layout


def dense_attention(q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, lengths: list[int], layout: Layout) -> Tensor:
    """One softmax over a T x T mask: same sequence and allowed by the layout."""
    times, width = q_THE.shape[1] // k_TGE.shape[1], q_THE.shape[2]
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    position = torch.cat([torch.arange(n) for n in lengths])
    allowed = (sequence[:, None] == sequence) & layout.allows(position[:, None], position)
    scores = torch.einsum("qhe,khe->hqk", q_THE, k_TGE.repeat_interleave(times, 1)) * width**-0.5
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khe->qhe", weights, v_TGE.repeat_interleave(times, 1))
