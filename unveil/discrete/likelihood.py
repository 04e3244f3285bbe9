"""The held-out bound by the exact-l estimator: how many tokens are masked is chosen, not left to chance.

The integral over t of the weighted loss equals E over l ~ U{1..L} and over the subsets S of l among the L maskable tokens of
(L / l) sum over S of CE_i (LLaDA, eq. 6; for the linear schedule integrate t^(l-1) (1-t)^(L-l), a Beta function). Free of the
schedule, and of lower variance than drawing t.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unveil.data.noise import generator, stratified
from unveil.discrete.denoiser import Subs
from unveil.discrete.process import Absorbing
from unveil.nn.packed import Packed

FORWARD_TOKENS = 8192
"""Draws of a pack are evaluated together as further sequences, up to about this many tokens a forward."""

Array = np.ndarray[Any, Any]


def subset_sizes(lengths_N: Array, sample_ids_N: Array, draws: int, seed: int) -> Array:
    """How many tokens each draw masks, int64 ``[K, N]``, each uniform on 1..L.

    A systematic grid over the draws with one random offset, shifted by the golden ratio from sequence to sequence, so that small
    and large subsets are even over draws and over the corpus. 0 where L is 0.
    """
    offset_N = stratified(generator(seed, 0, 0, "likelihood size").random(), sample_ids_N)
    grid_KN = (offset_N + np.arange(draws)[:, None] / draws) % 1.0
    return np.minimum(1 + (grid_KN * lengths_N).astype(np.int64), lengths_N)


@torch.no_grad()
def bound(
    model: Any, batch: Packed, process: Absorbing, denoiser: Subs, draws: int, seed: int, counted_T: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Lower bound of log p per sequence, in nats, without bias for the bound.

    Args:
        model: a pack to hidden states, with a ``head`` (``nn.Transformer`` or ``nn.LogitsModel``).
        draws: K forwards per sequence. Deterministic for ``seed`` and the batch's sample ids, whatever else is in the pack.
        counted_T: bool ``[T]``; the contributions of other tokens are left out (they are masked and predicted all the same).

    Returns:
        Value and standard error, float64 ``[N]``. The error takes the K draws as independent, which errs on the safe side of their
        systematic grid; with one draw it is nan (unknown) unless the sequence has a single token to predict, which makes it exact.

    Raises:
        ValueError: ``draws`` is not positive.
    """
    if draws < 1:
        raise ValueError(f"a Monte-Carlo bound needs at least one draw, got {draws}")
    sequence_T, maskable_T = batch.sequence_T.cpu().numpy(), process.maskable(batch.tokens_T).cpu().numpy()
    ids_N = batch.sample_ids_N.cpu().numpy()
    lengths_N = np.bincount(sequence_T[maskable_T], minlength=len(ids_N))
    sizes_KN = subset_sizes(lengths_N, ids_N, draws, seed)
    rank_KT = _ranks(batch, maskable_T, draws, seed)
    masked_KT = torch.from_numpy(rank_KT < sizes_KN[:, sequence_T])
    weights_KN = torch.from_numpy(lengths_N / np.maximum(sizes_KN, 1))

    values_KN = torch.zeros(draws, len(ids_N), dtype=torch.float64)
    together = max(1, FORWARD_TOKENS // len(batch.tokens_T))
    for at in range(0, draws, together):
        chunk = slice(at, at + together)
        losses_KT = _losses(model, batch, process, denoiser, masked_KT[chunk], counted_T)
        values_KN[chunk].index_add_(1, torch.from_numpy(sequence_T), losses_KT)
    values_KN *= -weights_KN
    error_N = values_KN.std(0) / draws**0.5 if draws > 1 else torch.full((len(ids_N),), float("nan"), dtype=torch.float64)
    return values_KN.mean(0), torch.where(torch.from_numpy(lengths_N <= 1), 0.0, error_N)


def _ranks(batch: Packed, maskable_T: Array, draws: int, seed: int) -> Array:
    """A random order of the maskable tokens of each sequence, per draw: ranks from 0, int64 ``[K, T]``; the others rank last."""
    keys = [
        generator(seed, 0, int(sample_id), "likelihood subset").random((draws, length))
        for sample_id, length in zip(batch.sample_ids_N.tolist(), batch.lengths, strict=True)
    ]
    keys_KT = np.where(maskable_T, np.concatenate(keys, axis=1), 2.0)
    bounds = np.cumsum([0, *batch.lengths])
    return np.concatenate([keys_KT[:, a:b].argsort(1).argsort(1) for a, b in pairwise(bounds)], axis=1)


def _losses(model: Any, batch: Packed, process: Absorbing, denoiser: Subs, masked_KT: Tensor, counted_T: Tensor | None) -> Tensor:
    """Cross-entropy of the masked and counted tokens under each draw's canvas, 0 elsewhere: float64 ``[K, T]`` on the host."""
    draws = len(masked_KT)
    many = Packed.of(batch.split() * draws)
    masked = masked_KT.flatten().to(many.tokens_T.device)
    hidden_TD = model(many.with_tokens(process.hide(many.tokens_T, masked)))
    index_M = (masked if counted_T is None else masked & counted_T.to(masked.device).repeat(draws)).nonzero().squeeze(-1)
    weights_M = torch.ones(len(index_M), device=index_M.device)
    _, losses_M = model.head.reduce(hidden_TD.index_select(0, index_M), denoiser.token_loss, weights_M, many.tokens_T[index_M])
    losses = torch.zeros(masked.shape, dtype=torch.float64, device=index_M.device).index_copy(0, index_M, losses_M.double())
    return losses.view(draws, -1).cpu()
