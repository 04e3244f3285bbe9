"""The exact world: data whose denoiser, score, density and flow are known in closed form at every noise level, for testing solvers.

With data of mean m and covariance C = U diag(c) U^T, x_t has mean alpha m and covariance alpha^2 C + sigma^2. In z = U^T (x - alpha m):
the posterior mean of the image is D = m + U [alpha c / (alpha^2 c + sigma^2)] z, and a mixture weighs its components by their
responsibilities for x_t. All of it is float64, on data of any shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unveil.gaussian.level import Level

_FLOAT = torch.float64


class Mixture:
    """A mixture of K normal distributions over data of any shape, or with covariance 0 a finite data set.

    Args:
        weights: ``[K]``, not negative; they are divided by their sum.
        means: ``[K, *shape]``.
        covariances: one number for all, ``[K]`` (isotropic), ``[K, *shape]`` (diagonal) or ``[K, d, d]`` with d the number of values in
            ``shape``. 0 is a point mass: the empirical distribution, whose denoiser is what an unlimited network learns by heart.

    Raises:
        ValueError: shapes that do not fit, negative weights, a covariance that is not symmetric or has a negative eigenvalue.

    Levels are a ``Level`` or bare n (a float or ``[B]``), which means alpha = 1, sigma = n. Where a covariance is singular, sigma must
    be above 0. A call needs memory for B x K x d numbers.
    """

    def __init__(self, weights: Any, means: Any, covariances: Any) -> None:
        means = torch.as_tensor(means, dtype=_FLOAT)
        weights = torch.as_tensor(weights, dtype=_FLOAT)
        if weights.ndim != 1 or weights.shape != means.shape[:1] or bool((weights < 0).any()) or not bool(weights.sum() > 0):
            raise ValueError(f"weights of shape {tuple(weights.shape)} must be [K], not negative nor all 0, for means {tuple(means.shape)}")
        self.shape = means.shape[1:]
        self._means_KD = means.flatten(1) if means.ndim > 1 else means[:, None]
        self._log_weights_K = torch.log(weights / weights.sum())
        self._spectrum_KD, self._basis_KDD = _decompose(torch.as_tensor(covariances, dtype=_FLOAT), self._means_KD, self.shape)

    def denoise(self, x: Tensor, level: Level | float | Tensor) -> Tensor:
        """D = E[x0 | x_t = x], of the shape and dtype of x ``[B, *shape]``; at alpha = 0 the mean of the data."""
        alpha, sigma = _columns(level)
        z_BKD, variance_BKD = self._whiten(x, alpha, sigma)
        gain_BKD = alpha[..., None] * self._spectrum_KD / variance_BKD
        means_BKD = self._means_KD + self._unwhiten(gain_BKD * z_BKD)
        return self._average(x, z_BKD, variance_BKD, means_BKD)

    def denoiser(self) -> Callable[..., Tensor]:
        """``denoise`` as a solver takes it: (x, level, **condition) -> D; a condition is ignored."""
        return lambda x, level, **condition: self.denoise(x, level)

    def score(self, x: Tensor, level: Level | float | Tensor) -> Tensor:
        """Gradient of log p_t at x, of the shape and dtype of x."""
        z_BKD, variance_BKD = self._whiten(x, *_columns(level))
        return self._average(x, z_BKD, variance_BKD, -self._unwhiten(z_BKD / variance_BKD))

    def log_density(self, x: Tensor, level: Level | float | Tensor) -> Tensor:
        """log p_t(x) in nats, ``[B]`` float64."""
        return self._joint(*self._whiten(x, *_columns(level))).logsumexp(1)

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """``[count, *shape]`` float64 draws of the data, from a generator of their own."""
        generator = torch.Generator().manual_seed(seed)
        which_N = torch.multinomial(self._log_weights_K.exp(), count, replacement=True, generator=generator)
        noise_ND = torch.randn(count, self._means_KD.shape[1], dtype=_FLOAT, generator=generator)
        scaled_ND = noise_ND * self._spectrum_KD.sqrt()[which_N]
        if self._basis_KDD is not None:
            scaled_ND = torch.einsum("nde,ne->nd", self._basis_KDD[which_N], scaled_ND)
        return (self._means_KD[which_N] + scaled_ND).reshape(count, *self.shape)

    def _whiten(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """z ``[B, K, D]`` in the eigenbasis of each component, and its variance."""
        flat_BD = x.reshape(len(x), -1).to(_FLOAT)
        z_BKD = flat_BD[:, None] - alpha[..., None] * self._means_KD
        if self._basis_KDD is not None:
            z_BKD = torch.einsum("kde,bkd->bke", self._basis_KDD, z_BKD)
        return z_BKD, alpha[..., None].square() * self._spectrum_KD + sigma[..., None].square()

    def _unwhiten(self, z_BKD: Tensor) -> Tensor:
        return z_BKD if self._basis_KDD is None else torch.einsum("kde,bke->bkd", self._basis_KDD, z_BKD)

    def _joint(self, z_BKD: Tensor, variance_BKD: Tensor) -> Tensor:
        """log of weight times density, ``[B, K]``."""
        quadratic = z_BKD.square() / variance_BKD + torch.log(2.0 * math.pi * variance_BKD)
        return self._log_weights_K - 0.5 * quadratic.sum(-1)

    def _average(self, x: Tensor, z_BKD: Tensor, variance_BKD: Tensor, values_BKD: Tensor) -> Tensor:
        """Values of the components weighed by their responsibilities for x, in the shape and dtype of x."""
        responsibility_BK = self._joint(z_BKD, variance_BKD).softmax(1)
        return torch.einsum("bk,bkd->bd", responsibility_BK, values_BKD).reshape(x.shape).to(x.dtype)


class Gaussian(Mixture):
    """One normal distribution.

    Args:
        mean: ``[*shape]``.
        covariance: a number, ``[*shape]`` (diagonal) or ``[d, d]``.
    """

    def __init__(self, mean: Any, covariance: Any) -> None:
        super().__init__([1.0], torch.as_tensor(mean, dtype=_FLOAT)[None], torch.as_tensor(covariance, dtype=_FLOAT)[None])

    def flow_map(self, x: Tensor, start: Level | float | Tensor, end: Level | float | Tensor) -> Tensor:
        """Where the probability flow takes x from one level to another, either way; of the shape and dtype of x.

        x_s = alpha_s m + (alpha_s^2 C + sigma_s^2)^(1/2) (alpha_t^2 C + sigma_t^2)^(-1/2) (x_t - alpha_t m).
        """
        z_BKD, variance_BKD = self._whiten(x, *_columns(start))
        alpha, sigma = _columns(end)
        later_BKD = alpha[..., None].square() * self._spectrum_KD + sigma[..., None].square()
        moved_BKD = alpha[..., None] * self._means_KD + self._unwhiten(z_BKD * torch.sqrt(later_BKD / variance_BKD))
        return moved_BKD.squeeze(1).reshape(x.shape).to(x.dtype)


def _columns(level: Level | float | Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma as float64 ``[B, 1]`` or ``[1, 1]``."""
    if not isinstance(level, Level):
        level = Level(torch.ones_like(level) if isinstance(level, Tensor) else 1.0, level)
    alpha, sigma = (torch.as_tensor(value, dtype=_FLOAT).reshape(-1, 1) for value in level)
    return alpha, sigma


def _decompose(covariances: Tensor, means_KD: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor | None]:
    """Eigenvalues ``[K, D]``, and eigenvectors ``[K, D, D]`` where they are not the axes."""
    count, dims = means_KD.shape
    basis = None
    if covariances.ndim == 0 or covariances.shape == (count,):
        spectrum = covariances.expand(count)[:, None].expand(count, dims)
    elif covariances.shape == (count, *shape):
        spectrum = covariances.reshape(count, dims)
    elif covariances.shape == (count, dims, dims):
        if not torch.allclose(covariances, covariances.mT):
            raise ValueError("a covariance must be symmetric")
        spectrum, basis = torch.linalg.eigh(covariances)
        # rounding of a singular matrix
        spectrum = torch.where(spectrum.abs() <= 1e-12 * spectrum.amax(1, keepdim=True), 0.0, spectrum)
    else:
        raise ValueError(f"covariances of shape {tuple(covariances.shape)} fit neither [K], [K, *shape] nor [K, d, d]")
    if bool((spectrum < 0).any()):
        raise ValueError("a covariance must not have negative eigenvalues")
    return spectrum, basis
