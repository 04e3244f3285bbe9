"""Which times a block model is best trained at: those between which its loss varies least (BD3-LM, section 5.3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Array = np.ndarray[Any, Any]

WIDTHS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
OFFSET = 0.05
"""Of the candidates: intervals of these widths, so far apart."""
NODES = 32
"""Of the quadrature over mask rates."""


class Clip(nn.Module):
    """The interval of mask rates that is trained in, chosen anew from what each evaluation sees.

    An evaluation masks l of the n tokens of a block, all l alike, and shows the sum C of their cross-entropies. As the network is not told
    the rate, the moments of C for every l determine the variance of the loss C w(m) over m ~ U[low, high] and l ~ Binomial(n, m), for all
    candidates at once. The state is in persistent buffers: a part of the model, it is saved and restored with it.

    Args:
        block: n.
        low, high: the interval until the first evaluation.
        bound: w(m) is 1 / m, or 1.
    """

    def __init__(self, block: int, low: float, high: float, bound: bool) -> None:
        super().__init__()
        self.block, self.bound, self._news = block, bound, True
        self.interval: Tensor
        self.pending: Tensor
        # a network that is built without weights, on the meta device, has this part nevertheless
        self.register_buffer("interval", torch.tensor([low, high], dtype=torch.float64, device="cpu"))
        self.register_buffer("pending", torch.zeros(3, block + 1, dtype=torch.float64, device="cpu"))
        """Counts, sums and sums of squares of C by l, since the last ``advance``."""

    @torch.no_grad()
    def observe(self, sizes: Array, losses: Array) -> None:
        """Note blocks in which ``sizes`` tokens were masked, and the sums of their cross-entropies."""
        seen = np.stack([np.ones(len(losses)), losses, losses**2])
        counts = np.stack([np.bincount(sizes, weights=row, minlength=self.block + 1) for row in seen])
        self._news = True
        self.pending += torch.from_numpy(counts).to(self.pending.device)

    @torch.no_grad()
    def advance(self) -> None:
        """Take what was observed since: the next draws are from the best candidate. Without news nothing changes, nor waits for the
        device."""
        if not self._news:
            return
        self._news = False
        if not bool((self.pending[0, 1:] > 0).all()):
            return
        moments = (self.pending[1:] / self.pending[0].clamp_min(1.0)).cpu()
        best = min(candidates(), key=lambda ends: variance(moments, ends[0], ends[1], self.bound))
        self.interval.copy_(torch.tensor(best, dtype=torch.float64))
        self.pending.zero_()

    @torch.no_grad()
    def rates(self, u: Tensor) -> Tensor:
        """Mask rates in the interval for u in [0, 1], float64 of its shape."""
        low, high = self.interval
        return low + (high - low) * u.double()


def candidates() -> list[tuple[float, float]]:
    """Ends ``(low, high)`` of all intervals, the widest last, so that a narrower one wins a tie."""
    return [(low * OFFSET, min(low * OFFSET + width, 1.0)) for width in WIDTHS for low in range(round((1.0 - width) / OFFSET) + 1)]


def variance(moments: Tensor, low: float, high: float, bound: bool) -> float:
    """Of C w(m) for m ~ U[low, high], from the first and second moments of C by the number of masks, float64 ``[2, n + 1]``."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(NODES))
    rates = low + (high - low) * (nodes + 1.0) / 2.0
    sizes = torch.arange(moments.shape[1], dtype=torch.float64)
    law = torch.distributions.Binomial(moments.shape[1] - 1, rates[:, None]).log_prob(sizes).exp()
    scale = 1.0 / rates if bound else torch.ones_like(rates)
    share = weights / 2.0
    first = (share * scale * (law @ moments[0])).sum()
    second = (share * scale.square() * (law @ moments[1])).sum()
    return float(second - first.square())
