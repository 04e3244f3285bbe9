"""How noise comes into text: at random times tokens turn into the mask token and stay there, or into any token.

Both chains have a rate matrix Q that is the same at all times but for the factor sigma'(t), so the transition to time t is
exp(sigma(t) Q) and needs no integration (Lou et al. 2024, section 3.3). Reverse steps are in ``discrete.jump``.

A schedule gives alpha(t), the probability that a token is still clean at time t in [0, 1]; alpha falls and is differentiable.
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


def sigma_rate(schedule: Schedule, t: Tensor) -> Tensor:
    """sigma'(t) = -alpha'(t) / alpha(t): how often a token is hit."""
    return -schedule.slope(t) / alpha(schedule, t)


def per_token(batch: Packed, values: Tensor) -> Tensor:
    """``[N]`` or ``[T]`` to ``[T]``: times are drawn for a sequence or for a token."""
    return values if len(values) == len(batch.tokens_T) else values[batch.sequence_T]


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


@dataclass(frozen=True)
class Geometric:
    """sigma = sigma_min^(1-t) sigma_max^t (SEDD): some noise is left at t = 0."""

    sigma_min: float = 1e-4
    sigma_max: float = 20.0

    def total(self, t: Tensor) -> Tensor:
        """sigma(t), to all its digits."""
        return torch.exp((1.0 - t) * math.log(self.sigma_min) + t * math.log(self.sigma_max))

    def mask_rate(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.total(t))

    def slope(self, t: Tensor) -> Tensor:
        total = self.total(t)
        return -math.log(self.sigma_max / self.sigma_min) * total * torch.exp(-total)

    def weight(self, t: Tensor) -> Tensor:
        total = self.total(t)
        return math.log(self.sigma_max / self.sigma_min) * total / torch.expm1(total)


@dataclass(frozen=True)
class LogUniform:
    """The mask rate runs geometrically from ``low`` to ``high``, so the weight is log(high / low) at all times.

    As the bound does not depend on the schedule, this draws the times of another one by importance (MDLM, appendix C.2).
    """

    low: float
    high: float

    def mask_rate(self, t: Tensor) -> Tensor:
        return torch.exp((1.0 - t) * math.log(self.low) + t * math.log(self.high))

    def slope(self, t: Tensor) -> Tensor:
        return -math.log(self.high / self.low) * self.mask_rate(t)

    def weight(self, t: Tensor) -> Tensor:
        return torch.full_like(t, math.log(self.high / self.low))


SCHEDULES: dict[str, Schedule] = {"linear": Linear(), "log-linear": LogLinear(), "cosine": Cosine()}


@dataclass(frozen=True)
class Absorbing:
    """The absorbing chain over tokens: Q takes every token to ``mask`` at rate 1.

    mask: id of the absorbing state. keep: ids that are never noised where they open a sequence (the start token).
    """

    schedule: Schedule
    mask: int
    keep: tuple[int, ...] = ()

    def maskable(self, batch: Packed) -> Tensor:
        """Which tokens the chain may hide, bool ``[T]``."""
        return _others(batch, self.keep)

    def masked(self, batch: Packed, t: Tensor, u_T: Tensor) -> Tensor:
        """Which tokens are hidden, bool ``[T]``: where ``u_T``, uniform on [0, 1), is below 1 - alpha at the time ``t`` of its sequence
        ``[N]`` or its own ``[T]``."""
        rate_T = per_token(batch, self.schedule.mask_rate(t.double()))
        return (u_T.double() < rate_T) & self.maskable(batch)

    def hide(self, tokens_T: Tensor, masked_T: Tensor) -> Tensor:
        """The tokens with the mask token where ``masked_T``."""
        return torch.where(masked_T, self.mask, tokens_T)


@dataclass(frozen=True)
class Uniform:
    """The uniform chain over S tokens: Q = 1 1^T / S - I, so that a token hit by noise becomes any of them, itself included.

    states: ids of the chain. keep: ids that are never noised where they open a sequence (the start token).
    """

    schedule: Schedule
    states: tuple[int, ...]
    keep: tuple[int, ...] = ()

    def maskable(self, batch: Packed) -> Tensor:
        """Which tokens the chain may change, bool ``[T]``."""
        return _others(batch, self.keep)

    def moved(self, sigma: Tensor) -> Tensor:
        """Probability of each other token after total noise ``sigma``: (1 - e^-sigma) / S."""
        return -torch.expm1(-sigma) / len(self.states)

    def noised(self, batch: Packed, t: Tensor, u_T: Tensor, given_T: Tensor | None = None) -> Tensor:
        """x_t ``[T]``: where ``u_T``, uniform on [0, 1), is below 1 - alpha, and nothing is told (``given_T``, bool), the token that
        u / (1 - alpha) points at."""
        rate_T = per_token(batch, self.schedule.mask_rate(t.double()))
        u_T, states_S = u_T.double(), torch.tensor(self.states, device=u_T.device)
        index_T = (u_T / rate_T.clamp_min(1e-300) * len(states_S)).long().clamp(0, len(states_S) - 1)
        hit_T = (u_T < rate_T) & self.maskable(batch)
        if given_T is not None:
            hit_T &= ~given_T
        return torch.where(hit_T, states_S[index_T], batch.tokens_T)

    def entropy(self, sigma: Tensor) -> Tensor:
        """Nats of a token's law after total noise ``sigma``."""
        other, states = self.moved(sigma), len(self.states)
        same = 1.0 - (states - 1) * other
        return -torch.xlogy(same, same) - (states - 1) * torch.xlogy(other, other)


def _others(batch: Packed, keep: tuple[int, ...]) -> Tensor:
    """All but the tokens of ``keep`` that open a sequence: elsewhere a start token is an end, where the two are one."""
    allowed_T = torch.ones_like(batch.tokens_T, dtype=torch.bool)
    for token in keep:
        allowed_T &= batch.tokens_T != token
    return allowed_T | (batch.positions_T > 0)
