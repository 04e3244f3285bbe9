"""The variational bound of DDPM in bits per dimension: prior + Kullback-Leibler terms + decoder (Ho et al. 2020, eq. 5).

Steps are the 0-based indices of a ``DDPM`` table. With s the step before t and tau = 1 - (n_s / n_t)^2, the posterior q(x_s given x_t,
x0) has variance sigma_s^2 tau (beta-tilde) and its mean moves by alpha_s tau per unit of x0, so a term needs neither x_t nor the means.
Step 0 has no posterior: its term is the decoder, -log p of the 8-bit value under a normal distribution around D cut into bins. Data lie
on the grid k / 127.5 - 1, k = 0 ... 255; a bin is 2/255 wide and the outer ones are open.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from unveil.data.noise import generator
from unveil.errors import UserError, nearest
from unveil.gaussian.ddpm import DDPM
from unveil.gaussian.level import Level
from unveil.gaussian.output import along

Variance = Literal["small", "large", "learned"]
VARIANCES: tuple[Variance, ...] = get_args(Variance)
HALF_BIN = 1.0 / 255.0


class Denoise(Protocol):
    """A ``gaussian.Denoiser``, or anything like it: (x_t, level, **condition) -> D, of the shape and dtype of x_t."""

    def __call__(self, x: Tensor, level: Level, **condition: Any) -> Tensor: ...


class VariationalBound(NamedTuple):
    """-log p from above, in bits per dimension, float64."""

    bits_B: Tensor
    """The bound: prior plus the sum of the steps."""
    error_B: Tensor
    """Its standard error over the draws; nan for one draw."""
    prior_B: Tensor
    steps_BT: Tensor
    """Term of each step, the decoder's at 0."""


def variances(path: DDPM) -> tuple[Tensor, Tensor]:
    """What p(x_s given x_t) may take for its variance: beta-tilde ("small") and beta ("large"), ``[T]``.

    Each is exact for one kind of data, a point and a unit normal (Ho et al. 2020, section 3.2). beta-tilde of step 0 is 0, so both take
    that of step 1 there (as their code does); a table of one step takes its beta.
    """
    alphas_bar = path.alphas_bar
    n = path.n(torch.arange(path.steps))
    before = torch.cat([alphas_bar.new_ones(1), alphas_bar[:-1]])
    large = 1.0 - alphas_bar / before
    small = torch.cat([large[:1], (1.0 - before[1:]) * (1.0 - (n[:-1] / n[1:]).square())])
    small[0] = small[min(1, path.steps - 1)]
    return small, torch.cat([small[:1], large[1:]])


def log_variance(path: DDPM, index_B: Tensor, variance: Variance, share: Tensor | None, like: Tensor) -> Tensor:
    """Log of the variance of p(x_s given x_t) at steps ``[B]``, to go with ``like``; for "learned" the interpolation
    share log beta + (1 - share) log beta-tilde (Nichol & Dhariwal 2021, eq. 15), beta at step 0 being its own."""
    small, large = (along(table.log().to(index_B.device)[index_B], like) for table in variances(path))
    if variance != "learned":
        return small if variance == "small" else large
    if share is None:
        raise ValueError("a learned variance needs its share")
    betas = 1.0 - path.alphas_bar / torch.cat([path.alphas_bar.new_ones(1), path.alphas_bar[:-1]])
    return torch.lerp(small, along(betas.log().to(index_B.device)[index_B], like), share.to(like))


def step_nats(path: DDPM, x0: Tensor, denoised: Tensor, index_B: Tensor, log_variances: Tensor) -> Tensor:
    """The term of each value: KL(q(x_s given x_t, x0) || p(x_s given x_t)) in nats, or the decoder's at step 0; like x0, in float64.

    Args:
        x0, denoised: image and D ``[B, ...]``.
        index_B: steps, int64.
        log_variances: of p, shape that goes with x0.
    """
    x0, denoised, log_variances = x0.double(), denoised.double(), log_variances.double()
    first = along(index_B == 0, x0).bool()
    levels = path.n(torch.arange(-1, path.steps)).to(x0.device)
    n_s, n_t = levels[index_B], levels[index_B + 1]
    tau = 1.0 - (n_s / n_t).square()
    # where step 0 goes another way, its variance of 0 must not make nan gradients
    posterior = along(torch.where(index_B == 0, 1.0, (n_s.square() / (1.0 + n_s.square())) * tau), x0)
    move = along(torch.rsqrt(1.0 + n_s.square()) * tau, x0)
    log_ratio = log_variances - posterior.log()
    kl = 0.5 * (log_ratio - 1.0 + torch.exp(-log_ratio) + (move * (x0 - denoised)).square() * torch.exp(-log_variances))
    return torch.where(first, -discretised_log_prob(x0, denoised, 0.5 * log_variances), kl)


def discretised_log_prob(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log of the mass of N(mean, std^2) in the bin of the 8-bit value x in [-1, 1], in nats and float64 (Ho et al. 2020, eq. 13).

    By the exact distribution function (erf), accurate in both tails; the outer bins reach to infinity. Public implementations take a tanh
    approximation of it, which is off by up to 0.13 nats near the middle and by several in the tails.
    """
    x, mean, log_std = x.double(), mean.double(), log_std.double()
    scale = torch.exp(-log_std)
    upper, lower = (x - mean + HALF_BIN) * scale, (x - mean - HALF_BIN) * scale
    # in the left tail, by symmetry, where the logarithms keep their digits
    right = x > mean
    near, far = torch.where(right, -lower, upper), torch.where(right, -upper, lower)
    log_near = torch.special.log_ndtr(near)
    inner = log_near + torch.log(-torch.expm1(torch.special.log_ndtr(far) - log_near))
    bottom, top = x < -1.0 + HALF_BIN, x > 1.0 - HALF_BIN
    return torch.where(bottom, torch.special.log_ndtr(upper), torch.where(top, torch.special.log_ndtr(-lower), inner))


def prior_nats(path: DDPM, x0: Tensor) -> Tensor:
    """KL(q(x_T given x0) || N(0, I)) of each value, in nats; like x0, in float64."""
    alpha, sigma = path.alpha(path.t_max), path.sigma(path.t_max)
    return 0.5 * (sigma**2 - 1.0 - 2.0 * math.log(sigma) + (alpha * x0.double()).square())


def bits_per_dim(nats: Tensor) -> Tensor:
    """Mean over all but the first dimension, in bits ``[B]``."""
    return nats.flatten(1).mean(1) / math.log(2.0)


def ask(denoiser: Any, x: Tensor, level: Level, variance: Variance, condition: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
    """D, and the share of log beta in its log variance where that is learned."""
    return denoiser.with_variance(x, level, **condition) if variance == "learned" else (denoiser(x, level, **condition), None)


@torch.no_grad()
def variational_bound(
    denoiser: Denoise,
    path: DDPM,
    x0: Tensor,
    seeds: Sequence[int],
    *,
    variance: Variance = "small",
    clip: bool = True,
    draws: int = 1,
    condition: Mapping[str, Any] | None = None,
) -> VariationalBound:
    """The bound for images in [-1, 1], by one network evaluation per step and draw.

    Args:
        denoiser: a ``Denoiser`` with ``with_variance`` where the variance is learned.
        seeds: one per image; its noise depends on nothing else.
        variance: of p(x_s given x_t): see ``variances`` and ``log_variance``.
        clip: hold D in [-1, 1], where the images are.
        draws: of the noise per step.

    Raises:
        UserError: an unknown variance, no draw, as many seeds as there are images not.
    """
    if variance not in VARIANCES:
        raise UserError("likelihood.variance", f"got '{variance}'", nearest(variance, VARIANCES))
    if draws < 1:
        raise UserError("likelihood.draws", f"got {draws}", "choose 1 or more")
    if len(seeds) != len(x0):
        raise UserError("likelihood.seeds", f"got {len(seeds)} for {len(x0)} images", "give one seed per image")
    streams = [generator(seed, 0, 0, "variational bound") for seed in seeds]
    prior_B = bits_per_dim(prior_nats(path, x0))
    terms_KBT = torch.empty(draws, len(x0), path.steps, dtype=torch.float64, device=x0.device)
    for step in range(path.steps):
        level = path.level(float(step))
        index_B = torch.full((len(x0),), step, device=x0.device)
        for draw in range(draws):
            eps = torch.from_numpy(np.stack([stream.standard_normal(x0.shape[1:]) for stream in streams])).to(x0)
            denoised, share = ask(denoiser, level.alpha * x0 + level.sigma * eps, level, variance, condition or {})
            denoised = denoised.clamp(-1.0, 1.0) if clip else denoised
            nats = step_nats(path, x0, denoised, index_B, log_variance(path, index_B, variance, share, x0.double()))
            terms_KBT[draw, :, step] = bits_per_dim(nats)
    bits_KB = prior_B + terms_KBT.sum(2)
    error_B = bits_KB.std(0) / draws**0.5 if draws > 1 else torch.full_like(prior_B, math.nan)
    return VariationalBound(bits_KB.mean(0), error_B, prior_B, terms_KBT.mean(0))
