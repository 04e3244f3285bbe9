"""The next-token objective, ``-sum_i log p(x_{i+1} | x_0 .. x_i)`` within each sequence of a pack, and the same of tokens further ahead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unveil.nn.head import cross_entropy
from unveil.nn.packed import Packed


def tokens_ahead(batch: Packed, distance: int = 1) -> tuple[Tensor, Tensor]:
    """The token so far behind each one, int64 ``[T]``, and whether there is one in the same sequence, bool ``[T]``.

    Where there is none, the entry of the first result means nothing.
    """
    # rolled in from another sequence, a position is below ``distance``, and so never the own one plus ``distance``
    return batch.tokens_T.roll(-distance), batch.positions_T.roll(-distance) == batch.positions_T + distance


def predicted(batch: Packed, distance: int = 1, given_T: Tensor | None = None) -> int:
    """How many tokens of the batch are predicted from ``distance`` before: all but the first ones of each sequence and those told
    (``given_T``, bool). Of the next token, with none told, known without a look at the tensors' values."""
    if given_T is not None:
        return int((tokens_ahead(batch, distance)[1] & ~given_T.roll(-distance)).sum())
    if distance == 1:
        return batch.tokens_T.shape[0] - batch.sample_ids_N.shape[0]
    return int((batch.positions_T >= distance).sum())


def loss_ahead(
    head: Any,
    hidden_TD: Tensor,
    batch: Packed,
    distance: int = 1,
    token_loss: Callable[..., Tensor] = cross_entropy,
    given_T: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every token that stands ``distance`` behind another, by the hidden state of that one, nats: the differentiable sum
    over the batch, and ``losses_T``, detached, 0 where there is none or the one there is told (``given_T``, bool)."""
    targets_T, there_T = tokens_ahead(batch, distance)
    if given_T is not None:
        there_T = there_T & ~given_T.roll(-distance)
    total, losses_T = head.reduce(hidden_TD, token_loss, there_T.float(), targets_T)
    return total, torch.where(there_T, losses_T, 0.0)


def next_token_loss(
    model: Any, batch: Packed, token_loss: Callable[..., Tensor] = cross_entropy, given_T: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``loss_ahead`` of the next token. ``model`` maps a batch to hidden states and has a ``head`` (``Transformer``, or any network in a
    ``LogitsModel``)."""
    return loss_ahead(model.head, model(batch), batch, 1, token_loss, given_T)
