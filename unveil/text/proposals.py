"""From logits to a token: pure functions on ``[B, V]`` that both text families share.

Draws are made in float64: in float32 the coarse uniforms cut the tail of the distribution off, a hidden temperature below 1 (Zheng et al.
2024, arXiv 2409.02908). Randomness is passed in as uniforms, never drawn here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unveil.config import MaskedSamplerConfig, NextTokenSamplerConfig
from unveil.errors import UserError


def forbid(logits_BV: Tensor, ids: Tensor) -> Tensor:
    """The tokens ``ids`` (1-D int64) get no probability."""
    return logits_BV.index_fill(-1, ids, -math.inf)


def repetition_penalty(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Positive logits of tokens already seen (bool ``[B, V]``) divided by ``penalty``, negative ones multiplied (Keskar et al. 2019)."""
    return torch.where(seen_BV, torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty), logits_BV)


def top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Only the ``k`` largest stay, and what ties with the smallest of them."""
    if k >= logits_BV.shape[-1]:
        return logits_BV
    least_B1 = logits_BV.topk(k, dim=-1).values[..., -1:]
    return logits_BV.masked_fill(logits_BV < least_B1, -math.inf)


def top_p(logits_BV: Tensor, p: float) -> Tensor:
    """The nucleus (Holtzman et al. 2020, section 3.1): the fewest most probable tokens that reach ``p``, the crossing one included."""
    sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
    sums_BV = sorted_BV.softmax(-1).cumsum(-1)
    # A token goes when those before it already reach p, so the sum is shifted by one: the first token always stays.
    dropped_BV = torch.zeros_like(sums_BV, dtype=torch.bool)
    dropped_BV[..., 1:] = sums_BV[..., :-1] >= p
    return logits_BV.masked_fill(torch.zeros_like(dropped_BV).scatter(-1, order_BV, dropped_BV), -math.inf)


def min_p(logits_BV: Tensor, p: float) -> Tensor:
    """Only tokens at least ``p`` times as probable as the most probable one stay (Nguyen et al. 2024, arXiv 2407.01082)."""
    return logits_BV.masked_fill(logits_BV < logits_BV.amax(-1, keepdim=True) + math.log(p), -math.inf)


def check(config: NextTokenSamplerConfig) -> None:
    """Raises UserError for a setting outside its range."""
    for name, fits, wanted in (
        ("temperature", config.temperature >= 0, "0 (the most probable token) or more"),
        ("top_k", config.top_k >= 0, "0 (no limit) or more"),
        ("top_p", 0 < config.top_p <= 1, "above 0 and at most 1 (no limit)"),
        ("min_p", 0 <= config.min_p <= 1, "0 (no limit) to 1"),
        ("repetition_penalty", config.repetition_penalty > 0, "above 0; 1 is none"),
    ):
        if not fits:
            raise UserError(f"sampler.{name}", f"got {getattr(config, name)}", f"choose {wanted}")


def propose(logits_BV: Tensor, config: NextTokenSamplerConfig | MaskedSamplerConfig, seen_BV: Tensor | None = None) -> Tensor:
    """Logits of the distribution that is drawn from: repetition penalty, temperature, top-k, top-p, min-p, in this order.

    Temperature 0 leaves only the penalty: the most probable token survives everything else. With a temperature the result is float64.
    ``seen_BV`` is needed where the penalty is not 1.
    """
    if config.temperature > 0:
        logits_BV = logits_BV.double()
    if seen_BV is not None and isinstance(config, NextTokenSamplerConfig) and config.repetition_penalty != 1:
        logits_BV = repetition_penalty(logits_BV, seen_BV, config.repetition_penalty)
    if config.temperature == 0:
        return logits_BV
    if config.temperature != 1:
        logits_BV = logits_BV / config.temperature
    if config.top_k:
        logits_BV = top_k(logits_BV, config.top_k)
    if config.top_p < 1:
        logits_BV = top_p(logits_BV, config.top_p)
    if config.min_p > 0:
        logits_BV = min_p(logits_BV, config.min_p)
    return logits_BV


def inverse_cdf(logits_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """One token per row from ``softmax(logits)``: the first whose cumulative probability exceeds the row's uniform (float64 in [0, 1))."""
    sums_BV = logits_BV.double().softmax(-1).cumsum(-1)
    # Scaled by the last sum, which rounding keeps from being exactly 1; u < 1 keeps the product strictly below it.
    return torch.searchsorted(sums_BV, uniforms_B[:, None] * sums_BV[:, -1:], right=True).squeeze(-1)
