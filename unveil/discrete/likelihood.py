"""The held-out bound by the exact-l estimator: how many tokens are masked is chosen, not left to chance.

The integral over t of the weighted loss equals E over l ~ U{1..L} and over the subsets S of l among the L maskable tokens of
(L / l) sum over S of CE_i (LLaDA, eq. 6; for the linear schedule integrate t^(l-1) (1-t)^(L-l), a Beta function). Free of the
schedule, and of lower variance than drawing t. Of a block model it is taken block by block, all blocks in one forward: where a block has
one token, l is 1 and nothing is left to chance (BD3-LM, section 4).

A network that is told the noise level is given one that goes with l: that of a mask rate m ~ Beta(l, L - l + 1), by which the integral over
m of m^(l-1) (1-m)^(L-l) is the same sum.

N sequences, G groups (sequences or blocks), K draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unveil.data.noise import generator, stratified
from unveil.discrete.denoiser import Subs
from unveil.discrete.process import Absorbing, sigma
from unveil.discrete.reader import WHOLE, Reader
from unveil.nn.packed import Packed

FORWARD_TOKENS = 8192
"""Draws of a pack are evaluated together as further sequences, up to about this many tokens a forward."""

Array = np.ndarray[Any, Any]
Observe = Callable[[Array, Array], None]
"""``(sizes, losses)`` of whole blocks: how many tokens were masked, and the sum of their cross-entropies."""


def grid(sample_ids_G: Array, blocks_G: Array | int, draws: int, seed: int) -> Array:
    """Points of [0, 1), ``[K, G]``: a systematic grid over the draws with one random offset, shifted by the golden ratio from sequence to
    sequence and from block to block, so that they are even over draws and over the corpus."""
    offset_G = stratified(stratified(generator(seed, 0, 0, "likelihood size").random(), sample_ids_G), blocks_G)
    return (offset_G + np.arange(draws)[:, None] / draws) % 1.0


def subset_sizes(lengths_G: Array, sample_ids_G: Array, draws: int, seed: int, blocks_G: Array | int = 0) -> Array:
    """How many tokens each draw masks, int64 ``[K, G]``, each uniform on 1..L, on a ``grid``. 0 where L is 0."""
    grid_KG = grid(sample_ids_G, blocks_G, draws, seed)
    return np.minimum(1 + (grid_KG * lengths_G).astype(np.int64), lengths_G)


@torch.no_grad()
def bound(
    model: Any,
    batch: Packed,
    process: Absorbing,
    denoiser: Subs,
    draws: int,
    seed: int,
    counted_T: Tensor | None = None,
    *,
    given_T: Tensor | None = None,
    read: Reader = WHOLE,
    observe: Observe | None = None,
) -> tuple[Tensor, Tensor]:
    """Lower bound of log p per sequence, in nats, without bias for the bound.

    Args:
        model: a pack to hidden states, with a ``head`` (``nn.Transformer`` or ``nn.LogitsModel``).
        draws: K forwards per sequence. Deterministic for ``seed`` and the batch's sample ids, whatever else is in the pack.
        counted_T: bool ``[T]``; the contributions of other tokens are left out (they are masked and predicted all the same).
        given_T: bool ``[T]``; tokens that are told, as a prompt is: the bound is of the others' log p given these.
        read: in blocks, or told the noise level.
        observe: is shown the losses of whole blocks.

    Returns:
        Value and standard error, float64 ``[N]``. The error takes the K draws as independent, which errs on the safe side of their
        systematic grid; with one draw it is nan (unknown) unless no sequence or block has more than a single token to predict, which makes
        it exact.

    Raises:
        ValueError: ``draws`` is not positive.
    """
    if draws < 1:
        raise ValueError(f"a Monte-Carlo bound needs at least one draw, got {draws}")
    sequence_T, positions_T = batch.sequence_T.cpu().numpy(), batch.positions_T.cpu().numpy()
    maskable_T = process.maskable(batch).cpu().numpy()
    if given_T is not None:
        maskable_T &= ~given_T.cpu().numpy()
    ids_N = batch.sample_ids_N.cpu().numpy()
    first_T = positions_T % read.block == 0 if read.block else positions_T == 0
    group_T, sequence_G = np.cumsum(first_T) - 1, sequence_T[first_T]
    lengths_G = np.bincount(group_T[maskable_T], minlength=len(sequence_G))
    blocks_G = positions_T[first_T] // read.block if read.block else 0
    sizes_KG = subset_sizes(lengths_G, ids_N[sequence_G], draws, seed, blocks_G)
    masked_KT = torch.from_numpy(_ranks(batch, maskable_T, group_T, draws, seed) < sizes_KG[:, group_T])
    levels_KT = _levels(batch, process, sizes_KG, lengths_G, seed) if read.told else torch.zeros(masked_KT.shape)

    values_KN = torch.zeros(draws, len(ids_N), dtype=torch.float64)
    together = max(1, FORWARD_TOKENS // len(batch.tokens_T))
    for at in range(0, draws, together):
        chunk = slice(at, at + together)
        losses_KT = _losses(model, batch, process, denoiser, read, masked_KT[chunk], levels_KT[chunk], counted_T)
        sums_KG = torch.zeros(len(losses_KT), len(lengths_G), dtype=torch.float64).index_add(1, torch.from_numpy(group_T), losses_KT)
        weights_KG = torch.from_numpy(lengths_G / np.maximum(sizes_KG[chunk], 1))
        values_KN[chunk].index_add_(1, torch.from_numpy(sequence_G), -weights_KG * sums_KG)
        if observe is not None:
            counted = maskable_T if counted_T is None else maskable_T & counted_T.cpu().numpy()
            whole_G = np.bincount(group_T[counted], minlength=len(lengths_G)) == read.block
            observe(sizes_KG[chunk][:, whole_G].ravel(), sums_KG.numpy()[:, whole_G].ravel())
    error_N = values_KN.std(0) / draws**0.5 if draws > 1 else torch.full((len(ids_N),), float("nan"), dtype=torch.float64)
    chance_N = np.bincount(sequence_G[lengths_G > 1], minlength=len(ids_N)) > 0
    return values_KN.mean(0), torch.where(torch.from_numpy(chance_N), error_N, 0.0)


def _ranks(batch: Packed, maskable_T: Array, group_T: Array, draws: int, seed: int) -> Array:
    """A random order of the maskable tokens of each group, per draw: ranks from 0, int64 ``[K, T]``; the others rank last."""
    keys = [
        generator(seed, 0, int(sample_id), "likelihood subset").random((draws, length))
        for sample_id, length in zip(batch.sample_ids_N.tolist(), batch.lengths, strict=True)
    ]
    keys_KT = np.where(maskable_T, np.concatenate(keys, axis=1), 2.0)
    places_T = np.arange(len(group_T)) - np.searchsorted(group_T, group_T)
    ranks_KT = np.empty(keys_KT.shape, dtype=np.int64)
    for ranks_T, keys_T in zip(ranks_KT, keys_KT, strict=True):
        ranks_T[np.lexsort((keys_T, group_T))] = places_T  # groups are contiguous: sorting within them leaves each in its place
    return ranks_KT


def _levels(batch: Packed, process: Absorbing, sizes_KN: Array, lengths_N: Array, seed: int) -> Tensor:
    """Total noise that goes with so many masks of each sequence, float64 ``[K, T]``; never more than that of time 1."""
    rates = [
        generator(seed, 0, int(sample_id), "likelihood level").beta(np.maximum(sizes_K, 1), length - sizes_K + 1)
        for sample_id, sizes_K, length in zip(batch.sample_ids_N.tolist(), sizes_KN.T, lengths_N, strict=True)
    ]
    sigma_KN = -torch.log1p(-torch.from_numpy(np.stack(rates, axis=1)))
    highest = sigma(process.schedule, torch.ones(1, dtype=torch.float64))
    return sigma_KN.minimum(highest)[:, batch.sequence_T.cpu()]


def _losses(
    model: Any,
    batch: Packed,
    process: Absorbing,
    denoiser: Subs,
    read: Reader,
    masked_KT: Tensor,
    levels_KT: Tensor,
    counted_T: Tensor | None,
) -> Tensor:
    """Losses of the masked and counted tokens under each draw's canvas, 0 elsewhere: float64 ``[K, T]`` on the host."""
    draws = len(masked_KT)
    many = Packed.of(batch.split() * draws)
    masked = masked_KT.flatten().to(many.tokens_T.device)
    noisy = many.with_tokens(process.hide(many.tokens_T, masked))
    hidden_TD = read(model, noisy, many.tokens_T, levels_KT.flatten().to(masked.device))
    index_M = (masked if counted_T is None else masked & counted_T.to(masked.device).repeat(draws)).nonzero().squeeze(-1)
    weights_M = torch.ones(len(index_M), device=index_M.device)
    _, losses_M = model.head.reduce(hidden_TD.index_select(0, index_M), denoiser.token_loss, weights_M, many.tokens_T[index_M])
    losses = torch.zeros(masked.shape, dtype=torch.float64, device=index_M.device).index_copy(0, index_M, losses_M.double())
    return losses.view(draws, -1).cpu()
