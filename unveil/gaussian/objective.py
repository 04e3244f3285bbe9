"""What is minimised: the squared error of D, weighted over noise levels; and DDPM's bound with learned variances.

Noise comes in as tensors: ``u`` float64 ``[B]`` uniform on [0, 1), which the density makes noise levels of, and ``eps`` standard normal,
of the shape of the images (or the noise of reflow pairs). A batch is conditioned on whatever the network takes by keyword.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from unveil.errors import UserError, nearest
from unveil.family import Noise, Term
from unveil.gaussian import bound
from unveil.gaussian.bound import VARIANCES, Denoise, Variance
from unveil.gaussian.coupling import Coupling, given
from unveil.gaussian.ddpm import DDPM
from unveil.gaussian.density import Density, UniformLevels, level_at
from unveil.gaussian.importance import Importance
from unveil.gaussian.level import Level
from unveil.gaussian.output import along
from unveil.gaussian.weighting import Uncertainty, Weighting

EDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""n between the buckets of noise levels by which the error is measured."""
BUCKETS = len(EDGES) + 1


def bucket_name(index: int) -> str:
    """The measured error of noise levels between two edges."""
    low, high = (0.0, *EDGES)[index], (*EDGES, float("inf"))[index]
    return f"error n {low:g}-{high:g}"


def curve(metrics: Mapping[str, float], prefix: str = "train/") -> list[float]:
    """The mean squared error of D per bucket of n in a row of metrics, nan where a bucket was empty."""
    return [metrics.get(prefix + bucket_name(i), float("nan")) for i in range(BUCKETS)]


@dataclass(frozen=True)
class GaussianObjective:
    """Sum over samples of w(n) ||D(x_t; n) - x0||^2, with log n drawn from a density; the denominator is the number of values, so the
    loss is a mean over dimensions whatever the resolution.

    With an ``Uncertainty`` u(n) it is w e^-u ||D - x0||^2 + d u (Karras et al. 2024). With an ``Importance`` table the draws follow
    the size of the loss and are weighed back. Both live in the model that is trained, which saves them; here they are passed in.
    """

    weighting: Weighting
    density: Density
    coupling: Coupling = given

    def targets(self, x0: Tensor, noise: Noise, importance: Importance | None = None) -> dict[str, float]:
        """Denominators: the values of the batch, and those of each bucket of n.

        Called for every micro-batch of a step before any ``loss`` of it, by every rank: here the table takes up the last step's losses.
        """
        return _denominators(self.density, x0, noise, importance)

    def loss(
        self,
        denoiser: Denoise,
        x0: Tensor,
        noise: Noise,
        *,
        condition: Mapping[str, Any] | None = None,
        uncertainty: Uncertainty | None = None,
        importance: Importance | None = None,
    ) -> dict[str, Term]:
        """The terms for images ``[B, ...]``: ``loss`` is trained, the squared error of D per bucket of n is measured.

        The importance table notes the losses where gradients are on, so that an evaluation leaves it alone.
        """
        u_B, log_n_B, correction_B = _draw(self.density, noise, importance)
        eps = self.coupling(x0, noise["eps"].to(x0))
        level = level_at(log_n_B)
        denoised = denoiser(noised(x0, eps, level), level, **(condition or {}))
        error_B = squared_error(denoised, x0)
        losses_B = self.weighting(log_n_B.exp()).to(error_B) * error_B
        if uncertainty is not None:
            u_of_n_B = uncertainty(log_n_B).to(error_B)
            losses_B = losses_B * torch.exp(-u_of_n_B) + u_of_n_B * x0[0].numel()
        if importance is not None and torch.is_grad_enabled():
            importance.observe(u_B, losses_B.detach() / x0[0].numel())
        return {"loss": Term((correction_B.to(losses_B) * losses_B).sum())} | _measured(log_n_B, error_B)


@dataclass(frozen=True)
class BoundObjective:
    """DDPM's variational bound by one random step per sample, alone or beside the simple loss (Nichol & Dhariwal 2021, section 3.1).

    ``loss`` is the squared error of eps, ``vlb`` the step's term in bits; both are means over values, and ``vlb`` counts times
    ``bound`` times T, since the bound is a sum over steps. Beside the simple loss the bound trains the variance alone, D being detached in
    it. ``bound`` = 0.001 is L_hybrid; ``simple`` = 0 and ``bound`` = 1 are L_vlb. Each sample's step is that of u.

    Raises:
        UserError: an unknown variance, weights below 0 or both 0.
    """

    path: DDPM
    variance: Variance = "learned"
    simple: float = 1.0
    bound: float = 0.001
    coupling: Coupling = given

    def __post_init__(self) -> None:
        if self.variance not in VARIANCES:
            raise UserError("objective.variance", f"got '{self.variance}'", nearest(self.variance, VARIANCES))
        if min(self.simple, self.bound) < 0 or self.simple == self.bound == 0:
            raise UserError(
                "objective.bound", f"got weights {self.simple} (simple) and {self.bound} (bound)", "keep both at 0 or above, one above"
            )

    def targets(self, x0: Tensor, noise: Noise, importance: Importance | None = None) -> dict[str, float]:
        """Denominators; see ``GaussianObjective.targets``."""
        counts = _denominators(self._density, x0, noise, importance)
        return counts | {"vlb": counts["loss"]}

    def loss(
        self, denoiser: Any, x0: Tensor, noise: Noise, *, condition: Mapping[str, Any] | None = None, importance: Importance | None = None
    ) -> dict[str, Term]:
        """The terms for images ``[B, ...]`` in [-1, 1], on the grid of 8-bit values. ``denoiser`` has ``with_variance`` where it is
        learned."""
        u_B, log_n_B, correction_B = _draw(self._density, noise, importance)
        index_B = self._density.index(u_B)
        eps = self.coupling(x0, noise["eps"].to(x0))
        level = level_at(log_n_B)
        denoised, share = bound.ask(denoiser, noised(x0, eps, level), level, self.variance, condition or {})
        error_B = squared_error(denoised, x0)
        simple_B = torch.exp(-2.0 * log_n_B).to(error_B) * error_B
        log_variances = bound.log_variance(self.path, index_B, self.variance, share, x0.double())
        mean = denoised.detach() if self.simple else denoised
        bits_B = bound.bits_per_dim(bound.step_nats(self.path, x0, mean, index_B, log_variances)) * x0[0].numel()
        scale = self.bound * self.path.steps
        if importance is not None and torch.is_grad_enabled():
            importance.observe(u_B, (self.simple * simple_B + scale * bits_B).detach() / x0[0].numel())
        terms = {
            "loss": Term((correction_B.to(simple_B) * simple_B).sum(), self.simple),
            "vlb": Term((correction_B * bits_B).sum(), scale),
        }
        return terms | _measured(log_n_B, error_B)

    @cached_property
    def _density(self) -> UniformLevels:
        return UniformLevels.of(self.path)


def noised(x0: Tensor, eps: Tensor, level: Level) -> Tensor:
    """x_t = alpha x0 + sigma eps, of the shape and dtype of x0."""
    alpha, sigma = (along(torch.as_tensor(value), x0) for value in level)
    return alpha * x0 + sigma * eps


def squared_error(denoised: Tensor, x0: Tensor) -> Tensor:
    """||D - x0||^2 per sample ``[B]``, in float32 or wider."""
    wide = torch.promote_types(x0.dtype, torch.float32)
    return (denoised.to(wide) - x0.to(wide)).square().flatten(1).sum(1)


def _draw(density: Density, noise: Noise, importance: Importance | None) -> tuple[Tensor, Tensor, Tensor]:
    """u, log n and the correction of the loss, float64 ``[B]``."""
    u_B = noise["u"].double()
    if importance is None:
        return u_B, density.log_n(u_B), torch.ones_like(u_B)
    warped_B, correction_B = importance.warp(u_B)
    return warped_B, density.log_n(warped_B), correction_B


def _denominators(density: Density, x0: Tensor, noise: Noise, importance: Importance | None) -> dict[str, float]:
    if importance is not None:
        importance.advance()
    _, log_n_B, _ = _draw(density, noise, importance)
    counts = torch.bincount(_bucket(log_n_B), minlength=BUCKETS) * x0[0].numel()
    return {"loss": float(x0.numel())} | {bucket_name(i): float(n) for i, n in enumerate(counts.tolist())}


def _measured(log_n_B: Tensor, error_B: Tensor) -> dict[str, Term]:
    sums = torch.zeros(BUCKETS, dtype=torch.float64, device=error_B.device).index_add(0, _bucket(log_n_B), error_B.detach().double())
    return {bucket_name(i): Term(sums[i], 0.0) for i in range(BUCKETS)}


def _bucket(log_n_B: Tensor) -> Tensor:
    return torch.bucketize(log_n_B, torch.tensor(EDGES, dtype=torch.float64, device=log_n_B.device).log())
