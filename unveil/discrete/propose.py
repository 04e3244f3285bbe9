"""From logits to proposals: a token for every place asked about, how sure the network is of it, and of the place as a whole.

M places, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    kept_MV = tempered(logits_MV, config)
    at_random = config.temperature > 0
    tokens_M = inverse_cdf(kept_MV, torch.from_numpy(uniforms_M).to(logits_MV.device)) if at_random else logits_MV.argmax(-1)
    # untempered, and in float64: rounding makes ties, and ties change the order
    log_MV = logits_MV - logits_MV.logsumexp(-1, keepdim=True)
    confidence_M = log_MV.gather(-1, tokens_M[:, None]).squeeze(-1).exp()
    entropy_M = margin_M = torch.zeros_like(confidence_M)
    if "entropy" in config.order or "entropy" in config.commit:
        entropy_M = -torch.where(log_MV.isfinite(), log_MV.exp() * log_MV, 0.0).sum(-1)
    if config.order == "margin":
        best_M2 = log_MV.topk(min(2, log_MV.shape[-1]), -1).values.exp()
        margin_M = best_M2[:, 0] - best_M2[:, -1]
    columns = [np.split(x.cpu().numpy(), np.cumsum(counts)[:-1]) for x in (tokens_M, confidence_M, confidence_M, entropy_M, margin_M)]
    return [Proposals(*row) for row in zip(*columns, strict=True)]
