"""How much each noise level counts: every published loss is a weight w(n) on the squared error of the image, w(n) ||D - x0||^2.

From an error in eps, v, flow or F it follows by the linear map of ``gaussian.output``: e - eps = -(D - x0) / n, and so on. A weight goes
with the density that its paper draws noise levels from (``gaussian.density``), and only their product is what is minimised. All weights
take float64 n of any shape, infinite n included, and return the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unveil.errors import UserError
from unveil.gaussian.bound import variances
from unveil.gaussian.ddpm import DDPM
from unveil.gaussian.density import ContinuousDensity
from unveil.gaussian.level import Path

Weighting = Callable[[Tensor], Tensor]


def simple(n: Tensor) -> Tensor:
    """The squared error of eps (Ho et al. 2020, eq. 14): the signal-to-noise ratio 1 / n^2."""
    return n.square().reciprocal()


def x0(n: Tensor) -> Tensor:
    """The squared error of the image itself."""
    return torch.ones_like(n)


def v(n: Tensor) -> Tensor:
    """The squared error of v under a variance-preserving path (Salimans & Ho 2022): SNR + 1."""
    return 1.0 + n.square().reciprocal()


def flow(n: Tensor) -> Tensor:
    """The squared error of the velocity of rectified flow (Liu et al. 2023, eq. 1): 1 / t^2 with t = n / (1 + n)."""
    return (1.0 + n.reciprocal()).square()


@dataclass(frozen=True)
class EDMWeight:
    """The squared error of EDM's F: (n^2 + s^2) / (n s)^2, s = sigma_data (Karras et al. 2022, Table 1)."""

    sigma_data: float = 0.5

    def __call__(self, n: Tensor) -> Tensor:
        return n.square().reciprocal() + self.sigma_data**-2


@dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma) (Hang et al. 2023)."""

    gamma: float = 5.0

    def __call__(self, n: Tensor) -> Tensor:
        return n.square().reciprocal().clamp(max=self.gamma)


@dataclass(frozen=True)
class SoftMinSNR:
    """1 / (n^2 + s^2): min-SNR with gamma = 1 / s^2 and without its corner (Crowson et al. 2024)."""

    sigma_data: float = 0.5

    def __call__(self, n: Tensor) -> Tensor:
        return 1.0 / (n.square() + self.sigma_data**2)


@dataclass(frozen=True)
class P2:
    """SNR / (k + SNR)^gamma, perception prioritised (Choi et al. 2022)."""

    gamma: float = 1.0
    k: float = 1.0

    def __call__(self, n: Tensor) -> Tensor:
        ratio = n.square().reciprocal()
        return ratio / (self.k + ratio) ** self.gamma


@dataclass(frozen=True)
class Likelihood:
    """-1/2 dSNR/dt, which is g^2 / (2 sigma^2) on the error of eps (Song et al. 2021, "Maximum likelihood training"; Kingma et al. 2021).

    With t uniform on the path's range, the expectation times ``t_max - t_min`` is the part of -log p, in nats, that depends on the network.
    """

    path: Path

    def __call__(self, n: Tensor) -> Tensor:
        t = self.path.time(n)
        return 0.5 * self.path.diffusion2(t) / (self.path.sigma(t) * n).square()


@dataclass(frozen=True)
class Bound:
    """T/2 (SNR_{i-1} - SNR_i): T times the Kullback-Leibler term of DDPM's step i with the small variance, so that its mean over the
    steps is the variational bound in nats (Kingma et al. 2021). For the levels of the path's steps.

    Step 0 has no term of this form: the decoder's, as a density with the variance of step 1, stands in its place (see ``gaussian.bound``).
    """

    path: DDPM

    def __call__(self, n: Tensor) -> Tensor:
        levels = self.path.n(torch.arange(self.path.steps)).to(n.device)
        index = torch.searchsorted(levels, n * (1.0 - 1e-9)).clamp(max=self.path.steps - 1)
        before = levels[(index - 1).clamp(min=0)]
        decoder = variances(self.path)[0][0].reciprocal()
        return 0.5 * self.path.steps * torch.where(index == 0, decoder, before.square().reciprocal() - n.square().reciprocal())


@dataclass(frozen=True)
class Corrected:
    """``weighting`` as if noise levels came from ``wanted`` where they come from ``drawn``: w times the ratio of the densities.

    The expected loss is that of ``weighting`` under ``wanted``, whatever is drawn; only the variance differs.
    """

    weighting: Weighting
    wanted: ContinuousDensity
    drawn: ContinuousDensity

    def __call__(self, n: Tensor) -> Tensor:
        log_n = n.double().log()
        return self.weighting(n) * self.wanted.pdf(log_n) / self.drawn.pdf(log_n)


class Uncertainty(nn.Module):
    """EDM2's u(n) (Karras et al. 2024, after Kendall et al. 2018): the loss w e^-u ||D - x0||^2 + d u learns u = log of w E||D - x0||^2 /
    d, so that every noise level gets gradients of one size. It starts at 0, the plain loss; it is a parameter of training only.

    Args:
        features: random Fourier features of log(n) / 4, fixed.
    """

    def __init__(self, features: int = 128) -> None:
        super().__init__()
        self.frequencies: Tensor
        self.phases: Tensor
        self.register_buffer("frequencies", 2.0 * math.pi * torch.randn(features))
        self.register_buffer("phases", 2.0 * math.pi * torch.rand(features))
        self.linear = nn.Linear(features, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, log_n_B: Tensor) -> Tensor:
        """u ``[B]`` in float32 from log n ``[B]``."""
        waves = torch.cos(0.25 * log_n_B.float()[:, None] * self.frequencies + self.phases)
        return self.linear(waves * math.sqrt(2.0 / waves.shape[1])).squeeze(1)


def _bound(path: Path) -> Weighting:
    if not isinstance(path, DDPM):
        raise UserError("objective.weighting", f"got 'vlb' with {type(path).__name__}", "take path 'ddpm', or weighting 'likelihood'")
    return Bound(path)


WEIGHTINGS: dict[str, Callable[[Path, float], Weighting]] = {
    "simple": lambda path, sigma_data: simple,
    "x0": lambda path, sigma_data: x0,
    "v": lambda path, sigma_data: v,
    "flow": lambda path, sigma_data: flow,
    "edm": lambda path, sigma_data: EDMWeight(sigma_data),
    "min-snr": lambda path, sigma_data: MinSNR(),
    "soft-min-snr": lambda path, sigma_data: SoftMinSNR(sigma_data),
    "p2": lambda path, sigma_data: P2(),
    "likelihood": lambda path, sigma_data: Likelihood(path),
    "vlb": lambda path, sigma_data: _bound(path),
}
"""Weightings by the name that a recipe gives them, from the path and sigma_data. DDPM's hybrid with learned variances is an objective of
its own, ``gaussian.objective.BoundObjective``."""
