"""Direct preference optimisation (Rafailov et al. 2023, eq. 7), for likelihoods and for estimates of their bounds (VRPO; Zhu et al. 2025).

With a bound B in the place of log p, estimated by K masked versions of each answer, the loss -log sigmoid of a mean of differences has a
bias and a variance that both fall with the variance of that mean. So the K versions have K times and one mask each (a second mask at the
same time removes less), and model and reference are given the same ones: what chance does to both cancels in the difference.

N sequences: of each pair K of the preferred answer and K of the other one, each behind the prompt; P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

MEASURED = ("accuracy", "margin", "reward_chosen", "reward_rejected")
"""As in ``Judged``, per pair."""


class Estimate(NamedTuple):
    """Log-likelihoods of sequences, or estimates of their bounds, in nats."""

    values_N: Tensor
    """Detached."""
    weighted: Callable[[Tensor], Tensor]
    """Weights ``[N]`` to their sum of weight x value, differentiable once in the network's parameters."""


class Judged(NamedTuple):
    """Sums over the pairs of a batch, scalars."""

    loss: Tensor
    """Its value is -log sigmoid(margin), its gradient is that in the network's parameters."""
    accuracy: Tensor
    """Pairs of which the preferred answer has the higher reward; a tie counts half."""
    margin: Tensor
    """Of the rewards."""
    chosen: Tensor
    """The reward of the preferred answer, beta x (log p - log p of the reference)."""
    rejected: Tensor


class Preference:
    """The loss of a family that learns from pairs, and what is measured beside it.

    Noise, drawn by the loader: ``pair`` int64 ``[N]`` and ``chosen`` bool ``[N]``, see ``judge``.
    """

    reference: Any = None
    """The network that training began with; whoever trains puts it here. Nothing of it is learned."""

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def targets(self, noise: Mapping[str, Tensor]) -> dict[str, float]:
        """The pairs of a batch."""
        return dict.fromkeys(("loss", *MEASURED), float(noise["pair"].max() + 1))

    def terms(self, estimate: Callable[[Any], Estimate], model: Any, noise: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, float]]:
        """Sums and weights of the terms. ``estimate`` is asked of the network and of the reference, in the same dtype."""
        with torch.no_grad():
            self.reference.to(next(model.parameters()).dtype)
            if hasattr(model, "compute_dtype"):
                self.reference.compute_dtype = model.compute_dtype
            reference_N = estimate(self.reference).values_N
        loss, *measured = judge(estimate(model), reference_N, noise["pair"], noise["chosen"], self.beta)
        return {"loss": (loss, 1.0)} | {name: (value, 0.0) for name, value in zip(MEASURED, measured, strict=True)}


def judge(policy: Estimate, reference_N: Tensor, pair_N: Tensor, chosen_N: Tensor, beta: float) -> Judged:
    """The loss of every pair.

    Args:
        policy: of the network that is trained.
        reference_N: the same estimate by the one it began with, from the same masks.
        pair_N: the pair of each sequence, int64 from 0 on, without gaps.
        chosen_N: whether it is the preferred answer, bool.
        beta: reward per nat.
    """
    # as many places as there could be: how many pairs there are is not for the host to wait for
    gains_N = (policy.values_N - reference_N).double().requires_grad_()
    with torch.enable_grad():
        preferred_P, other_P = (_means(gains_N, pair_N, side_N) * beta for side_N in (chosen_N, ~chosen_N))
        present_P = torch.zeros_like(preferred_P, dtype=torch.bool).index_fill(0, pair_N, True)
        margins_P = preferred_P - other_P
        value = torch.where(present_P, -logsigmoid(margins_P), 0.0).sum()
        (slopes_N,) = torch.autograd.grad(value, gains_N)
    surrogate = policy.weighted(slopes_N)
    wins_P = torch.where(present_P, (torch.sign(margins_P) + 1.0) / 2.0, 0.0)
    found = (wins_P.sum(), margins_P.sum(), preferred_P.sum(), other_P.sum())
    return Judged(value.detach() + (surrogate - surrogate.detach()), *(x.detach() for x in found))


def _means(values_N: Tensor, pair_N: Tensor, side_N: Tensor) -> Tensor:
    """Of one side's sequences, by pair ``[N]``; 0 where there is no pair."""
    counts_P = torch.zeros_like(values_N).index_add(0, pair_N, side_N.to(values_N.dtype))
    sums_P = torch.zeros_like(values_N).index_add(0, pair_N, torch.where(side_N, values_N, 0.0))
    return sums_P / counts_P.clamp_min(1.0)
