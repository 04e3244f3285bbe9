"""The next-token objective: ``-sum_i log p(x_{i+1} | x_0 .. x_i)`` within each sequence of a pack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unveil.nn.head import cross_entropy
from unveil.nn.packed import Packed
from unveil.text.preference import Estimate


def next_tokens(batch: Packed) -> tuple[Tensor, Tensor]:
    """The token after each one, int64 ``[T]``, and whether there is one in the same sequence, bool ``[T]``.

    The last token of a sequence has no target; its entry of the first result means nothing.
    """
    # The token after the last of a sequence is the first of the next, at position 0; after the pack's last comes its first.
    return batch.tokens_T.roll(-1), batch.positions_T.roll(-1) != 0


def predicted(batch: Packed, given_T: Tensor | None = None) -> int:
    """How many tokens of the batch are predicted: all but the first of each sequence and those told. Without any of these it needs no look
    at the tensors' values."""
    if given_T is not None:
        return int((next_tokens(batch)[1] & ~given_T.roll(-1)).sum())
    return batch.tokens_T.shape[0] - batch.sample_ids_N.shape[0]


def next_token_loss(
    model: Any, batch: Packed, token_loss: Callable[..., Tensor] = cross_entropy, given_T: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every next token, nats: the differentiable sum over the batch, and ``losses_T``, detached, 0 where no token follows
    or the one that does is told (``given_T``, bool).

    ``model`` maps a batch to hidden states and has a ``head`` (``Transformer``, or any network in a ``LogitsModel``).
    """
    targets_T, followed_T = next_tokens(batch)
    if given_T is not None:
        followed_T = followed_T & ~given_T.roll(-1)
    total, losses_T = model.head.reduce(model(batch), token_loss, followed_T.float(), targets_T)
    return total, torch.where(followed_T, losses_T, 0.0)


def likelihoods(model: Any, batch: Packed, given_T: Tensor) -> Estimate:
    """log p of the tokens that are not told, of every sequence: exact."""
    targets_T, followed_T = next_tokens(batch)
    counted_T, hidden_TD, sequence_T = followed_T & ~given_T.roll(-1), model(batch), batch.sequence_T
    with torch.no_grad():
        _, losses_T = model.head.reduce(hidden_TD.detach(), cross_entropy, counted_T.float(), targets_T)
    values_N = torch.zeros(len(batch.sample_ids_N), dtype=torch.float64, device=losses_T.device)
    values_N.index_add_(0, sequence_T, -torch.where(counted_T, losses_T, 0.0).double())

    def weighted(slopes_N: Tensor) -> Tensor:
        weights_T = torch.where(counted_T, -slopes_N[sequence_T], 0.0).to(losses_T.dtype)
        total, _ = model.head.reduce(hidden_TD, cross_entropy, weights_T, targets_T)
        return total

    return Estimate(values_N, weighted)
