"""From logits to proposals: a token for every place asked about, how sure the network is of it, and of the place as a whole.

M places, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from unveil.config import MaskedSamplerConfig
from unveil.discrete.order import Array, Proposals
from unveil.text.proposals import inverse_cdf
from unveil.text.proposals import propose as tempered


def propose(logits_MV: Tensor, config: MaskedSamplerConfig, uniforms_M: Array, counts: Sequence[int]) -> list[Proposals]:
    """Draw a token at every place by its uniform, or take the most probable at temperature 0; one ``Proposals`` per row.

    Args:
        logits_MV: float64, minus infinity where a token cannot be.
        uniforms_M: float64 in [0, 1); not looked at with temperature 0.
        counts: places of each row; they sum to M.
    """
    if config.temperature > 0:
        tokens_M = inverse_cdf(tempered(logits_MV, config), torch.from_numpy(uniforms_M).to(logits_MV.device))
        chosen_M = logits_MV.gather(-1, tokens_M[:, None]).squeeze(-1)
    else:
        chosen_M, tokens_M = logits_MV.max(-1)
    # untempered, and in float64: rounding makes ties, and ties change the order
    total_M = logits_MV.logsumexp(-1)
    confidence = (chosen_M - total_M).exp().cpu().numpy()
    entropy = margin = np.zeros_like(confidence)
    if "entropy" in config.order or "entropy" in config.commit:
        log_MV = logits_MV - total_M[:, None]
        entropy = -torch.where(log_MV.isfinite(), log_MV.exp() * log_MV, 0.0).sum(-1).cpu().numpy()
    if config.order == "margin":
        best_M2 = (logits_MV.topk(min(2, logits_MV.shape[-1]), -1).values - total_M[:, None]).exp()
        margin = (best_M2[:, 0] - best_M2[:, -1]).cpu().numpy()
    columns = (tokens_M.cpu().numpy(), confidence, confidence, entropy, margin)
    ends = list(accumulate(counts, initial=0))
    return [Proposals(*(column[a:b] for column in columns)) for a, b in pairwise(ends)]
