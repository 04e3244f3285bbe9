"""Importance sampling of noise levels: more draws where the loss is large, weighed back, so that the expectation stays."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unveil.errors import UserError


class Importance(nn.Module):
    """A running table of the second moment of the loss over equal bins of u, and the warp of u that it implies.

    The variance of the estimate is least when levels are drawn in proportion to sqrt(E[loss^2]) (Nichol & Dhariwal 2021, eq. 18). As the
    table lies over the quantiles u of a density, it works for every density, discrete ones included. Its state is in persistent
    buffers: a part of the model, it is saved and restored with it.

    Observations wait until ``advance``, once per step of training: the table is the same for all micro-batches of a step and, as ranks add
    theirs up, on all ranks.

    Args:
        bins: of u.
        window: observations per bin that the running mean looks back on.
        warmup: observations that every bin needs before anything is warped.
        floor: share of draws that stays uniform, so that no bin starves.

    Raises:
        UserError: fewer than 1 bin, a floor outside (0, 1].
    """

    def __init__(self, bins: int = 100, window: int = 1000, warmup: int = 10, floor: float = 0.01) -> None:
        super().__init__()
        if bins < 1:
            raise UserError("objective.bins", f"got {bins}", "choose 1 or more")
        if not 0.0 < floor <= 1.0:
            raise UserError("objective.floor", f"got {floor}", "choose a share above 0, at most 1")
        self.bins, self.window, self.warmup, self.floor = bins, window, warmup, floor
        self.second_moment: Tensor
        self.seen: Tensor
        self.pending: Tensor
        zeros = torch.zeros(bins, dtype=torch.float64)
        self.register_buffer("second_moment", zeros.clone())
        self.register_buffer("seen", zeros.clone())
        self.register_buffer("pending", torch.stack([zeros, zeros]))
        """Counts and sums of squares since the last ``advance``."""

    @torch.no_grad()
    def probabilities(self) -> Tensor:
        """Of each bin, float64 ``[bins]``."""
        root = self.second_moment.sqrt()
        share = self.floor / self.bins + (1.0 - self.floor) * root / root.sum()
        ready = (self.seen >= self.warmup).all() & (root.sum() > 0)
        return torch.where(ready, share, 1.0 / self.bins)

    @torch.no_grad()
    def warp(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The warped u, uniform inside its bin, and what its loss is to be multiplied by, 1 / (bins p): float64 of the shape of u."""
        p = self.probabilities()
        ends = p.cumsum(0)
        index = torch.searchsorted(ends, u.double().contiguous(), right=True).clamp(max=self.bins - 1)
        inside = (u - (ends - p)[index]) / p[index]
        warped = (index + inside.clamp(0.0, 1.0 - 2.0**-53)) / self.bins
        return warped.clamp(max=1.0 - 2.0**-53), 1.0 / (self.bins * p[index])

    @torch.no_grad()
    def observe(self, u: Tensor, losses: Tensor) -> None:
        """Note losses ``[B]``, before their correction, at warped u ``[B]``. One that is not finite is passed over."""
        index = (u.double() * self.bins).long().clamp(0, self.bins - 1)
        square = losses.double().square()
        finite = square.isfinite()
        self.pending[0].index_add_(0, index, finite.double())
        self.pending[1].index_add_(0, index, torch.where(finite, square, 0.0))

    @torch.no_grad()
    def advance(self) -> None:
        """Take what all ranks have observed into the table; every rank must call this."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.pending)
        count, total = self.pending
        self.seen.add_(count).clamp_(max=self.window)
        mean = total / count.clamp(min=1.0)
        self.second_moment.lerp_(mean, (count / self.seen.clamp(min=1.0)).clamp(max=1.0))
        self.pending.zero_()
