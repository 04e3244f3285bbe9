"""How text is hidden: every token turns into the mask token at a random time and stays there.

A schedule gives alpha(t), the probability that a token is still clean at time t in [0, 1]; alpha falls from 1 and is differentiable.
Everything here is float64: the caller casts last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from unveil.nn.packed import Packed


class Schedule(Protocol):
    """Times ``t`` are float64 tensors of any shape; so are the values."""

    def mask_rate(self, t: Tensor) -> Tensor:
        """1 - alpha(t), computed without cancellation near t = 0."""

    def slope(self, t: Tensor) -> Tensor:
        """alpha'(t), never positive."""

    def weight(self, t: Tensor) -> Tensor:
        """-alpha'(t) / (1 - alpha(t)): what a masked token's cross-entropy counts in the likelihood bound (MDLM, eq. 10).

        In terms of the total noise it is sigma'(t) / expm1(sigma(t)).
        """


def alpha(schedule: Schedule, t: Tensor) -> Tensor:
    """Probability that a token is still clean at time t."""
    return 1.0 - schedule.mask_rate(t)


def sigma(schedule: Schedule, t: Tensor) -> Tensor:
    """Total noise -log alpha(t); infinite where nothing clean is left."""
    return -torch.log1p(-schedule.mask_rate(t))


@dataclass(frozen=True)
class Linear:
    """alpha = 1 - t (LLaDA; Austin et al. 2021)."""

    def mask_rate(self, t: Tensor) -> Tensor:
        return t

    def slope(self, t: Tensor) -> Tensor:
        return torch.full_like(t, -1.0)

    def weight(self, t: Tensor) -> Tensor:
        return 1.0 / t


@dataclass(frozen=True)
class LogLinear:
    """sigma = -log(1 - (1 - eps) t): linear in the mask rate but short of 1 at t = 1 (SEDD, MDLM)."""

    eps: float = 1e-3

    def mask_rate(self, t: Tensor) -> Tensor:
        return (1.0 - self.eps) * t

    def slope(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.eps - 1.0)

    def weight(self, t: Tensor) -> Tensor:
        return 1.0 / t  # the factor 1 - eps is in both alpha' and 1 - alpha


@dataclass(frozen=True)
class Cosine:
    """alpha = eps + (1 - eps) cos(pi t / 2) (MDLM): few masks at small times.

    1 - cos x is taken as 2 sin^2(x / 2), so small times keep their digits, and the weight is (pi / 2) cot(pi t / 4).
    """

    eps: float = 1e-3

    def mask_rate(self, t: Tensor) -> Tensor:
        return 2.0 * (1.0 - self.eps) * torch.sin(t * (math.pi / 4)).square()

    def slope(self, t: Tensor) -> Tensor:
        return -(1.0 - self.eps) * (math.pi / 2) * torch.sin(t * (math.pi / 2))

    def weight(self, t: Tensor) -> Tensor:
        return (math.pi / 2) / torch.tan(t * (math.pi / 4))


SCHEDULES: dict[str, Schedule] = {"linear": Linear(), "log-linear": LogLinear(), "cosine": Cosine()}


@dataclass(frozen=True)
class Absorbing:
    """The absorbing chain over tokens with one time per sequence.

    mask: id of the absorbing state. keep: ids that are never noised (the start token).
    """

    schedule: Schedule
    mask: int
    keep: tuple[int, ...] = ()

    def maskable(self, tokens_T: Tensor) -> Tensor:
        """Which tokens the chain may hide, bool ``[T]``."""
        allowed_T = torch.ones_like(tokens_T, dtype=torch.bool)
        for token in self.keep:
            allowed_T &= tokens_T != token
        return allowed_T

    def masked(self, batch: Packed, t_N: Tensor, u_T: Tensor) -> Tensor:
        """Which tokens are hidden, bool ``[T]``: where ``u_T``, uniform on [0, 1), is below 1 - alpha at the sequence's time ``t_N``."""
        rate_N = self.schedule.mask_rate(t_N.double())
        return (u_T.double() < rate_N[batch.sequence_T]) & self.maskable(batch.tokens_T)

    def hide(self, tokens_T: Tensor, masked_T: Tensor) -> Tensor:
        """The tokens with the mask token where ``masked_T``."""
        return torch.where(masked_T, self.mask, tokens_T)
