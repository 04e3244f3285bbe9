"""The likelihood bounds of answers that preferences are learned from: the exact-l estimator, its masks drawn by the loader.

T tokens, M masked ones, G groups (the sequence, or its blocks), K draws.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from unveil.data.noise import stratified
from unveil.discrete.likelihood import ranks, sizes
from unveil.discrete.objective import MaskedObjective
from unveil.family import Noise
from unveil.nn.packed import Packed
from unveil.text.preference import Estimate

Array = np.ndarray[Any, Any]


def draws(given: Array, block: int, count: int, offset: float, sample_id: int, rng: np.random.Generator) -> list[dict[str, Array]]:
    """``count`` masked versions of a sequence: ``masked`` (bool ``[T]``) and ``weight`` (float64 ``[T]``, L / l of the group, 0 where not
    masked), by which the sum of weight x log p is an estimate of the bound.

    The numbers of masks l lie on a systematic grid over the versions, so that each has a time of its own.

    Args:
        given: tokens that are told, bool ``[T]``.
        block: tokens of a block, which has an l of its own; 0: the whole sequence.
        offset: in [0, 1), shared by the samples of an epoch.
    """
    maskable, groups = ~given, np.arange(len(given)) // (block or len(given))
    lengths_G = np.bincount(groups[maskable], minlength=int(groups[-1]) + 1)
    offset_G = stratified(stratified(offset, sample_id), np.arange(len(lengths_G)))
    sizes_KG = sizes((offset_G + np.arange(count)[:, None] / count) % 1.0, lengths_G)
    masked_KT = ranks(rng.random((count, len(given))), maskable, groups) < sizes_KG[:, groups]
    weights_KT = masked_KT * (lengths_G / np.maximum(sizes_KG, 1))[:, groups]
    return [{"masked": masked, "weight": weight} for masked, weight in zip(masked_KT, weights_KT, strict=True)]


def bounds(objective: MaskedObjective, model: Any, batch: Packed, noise: Noise) -> Estimate:
    """Of every sequence, by a network that is not told the noise level, from the masks and weights of ``draws``."""
    index_M = noise["masked"].nonzero().squeeze(-1)
    noisy = batch.with_tokens(objective.process.hide(batch.tokens_T, noise["masked"]))
    zero_T = torch.zeros(len(batch.tokens_T), dtype=torch.float64, device=index_M.device)
    hidden_MD = objective.read(model, noisy, batch.tokens_T, zero_T).index_select(0, index_M)
    weights_M, targets_M, sequence_M = noise["weight"][index_M].double(), batch.tokens_T[index_M], batch.sequence_T[index_M]
    wide = torch.promote_types(hidden_MD.dtype, torch.float32)
    with torch.no_grad():
        _, losses_M = model.head.reduce(hidden_MD.detach(), objective.denoiser.token_loss, weights_M.to(wide), targets_M)
    values_N = torch.zeros(len(batch.sample_ids_N), dtype=torch.float64, device=index_M.device)
    values_N.index_add_(0, sequence_M, -weights_M * losses_M.double())

    def weighted(slopes_N: Tensor) -> Tensor:
        total, _ = model.head.reduce(hidden_MD, objective.denoiser.token_loss, (-weights_M * slopes_N[sequence_M]).to(wide), targets_M)
        return total

    return Estimate(values_N, weighted)
