"""Which drafts stand (Leviathan et al. 2023, arXiv 2211.17192, algorithm 1), so that what is written has the law of the verifier alone.

B rows, K drafts in each, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def most_probable(p_BNV: Tensor, drafts_BK: Tensor) -> tuple[Tensor, Tensor]:
    """``verify`` at temperature 0: a draft stands that is the most probable token."""
    count_B = (p_BNV[:, :-1].argmax(-1) == drafts_BK).long().cumprod(-1).sum(-1)
    return count_B, p_BNV[torch.arange(len(drafts_BK), device=drafts_BK.device), count_B]


def verify(p_BNV: Tensor, q_BKV: Tensor, drafts_BK: Tensor, uniforms_BK: Tensor) -> tuple[Tensor, Tensor]:
    """How many of each row's drafts stand, ``[B]``, and the logits ``[B, V]`` of what its next token is to be drawn from.

    A draft x stands with probability min(1, p(x) / q(x)), and only if those before it do; in the place of one that does not the token
    comes from max(p - q, 0), normalised. Behind K that stand it comes from p.

    Args:
        p_BNV: logits that the K drafts' places and the one behind them, N = K + 1, would be drawn from, each given the drafts before it.
        q_BKV: logits that the drafts were drawn from.
        drafts_BK: the drafts.
        uniforms_BK: float64 in [0, 1), one to judge each draft.
    """
    rows = torch.arange(len(drafts_BK), device=drafts_BK.device)
    p_BKV, q_BKV = p_BNV[:, :-1].double().softmax(-1), q_BKV.double().softmax(-1)
    p_BK, q_BK = (x.gather(-1, drafts_BK[..., None]).squeeze(-1) for x in (p_BKV, q_BKV))
    count_B = (uniforms_BK * q_BK < p_BK).long().cumprod(-1).sum(-1)
    fell_B = count_B.clamp(max=drafts_BK.shape[1] - 1)
    rest_BV = (p_BKV[rows, fell_B] - q_BKV[rows, fell_B]).clamp(min=0)
    # nothing is left where p and q are the same but for rounding: then p itself will do
    fallen_B = (count_B < drafts_BK.shape[1]) & (rest_BV.sum(-1) > 0)
    return count_B, torch.where(fallen_B[:, None], rest_BV.log(), p_BNV[rows, count_B].double())
