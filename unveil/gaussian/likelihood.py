"""log p of images by the change of variables along the probability flow, and samples with their log p in the same pass.

All paths have one flow, seen at different scales (Song et al. 2021, section 4.3; Karras et al. 2022, section 2). It is followed here where
alpha^2 + sigma^2 = 1: with a clock q in which log n moves at the pace 1 + n / C,

    dx / dq = (alpha + sigma / C) (alpha x - D(x)),    d log p / dq = -(alpha + sigma / C) (alpha d - tr dD / dx).

q is log n while n is small against C and comes to rest at log C as n goes to infinity, so equal steps suit images, and a flow that begins
without any signal, as rectified flow does, is integrated whole. From the path come the two ends and the prior, nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unveil.data.noise import generator
from unveil.errors import UserError
from unveil.gaussian.bound import Denoise
from unveil.gaussian.integrator import EQUAL_STEPS, Adaptive, Fixed, Slope, spread
from unveil.gaussian.level import Level, Path

CEILING = 100.0
"""C: where the clock turns from log n to -1 / n. Any number is exact; this one is above the noise at which images tell apart."""
BIN_BITS = 7.0
"""-log2 of the width 2/256 of an 8-bit value's bin in [-1, 1): a density per unit becomes a probability of the bin. In [0, 1) it is 8."""

Probe = Tensor | None


class FlowDensity(NamedTuple):
    """Both ends of the flow and log p at the data end."""

    x: Tensor
    """The other end from where it started: the latent x_T in the path's scale, or the sample."""
    log_density_B: Tensor
    """log p of the image in nats, float64."""
    evaluations_B: Tensor
    """Network evaluations, int64."""


def log_density(
    denoiser: Denoise,
    path: Path,
    x: Tensor,
    probe: Probe,
    *,
    integrator: Fixed | Adaptive = EQUAL_STEPS,
    data_std: float = 0.0,
    condition: Mapping[str, Any] | None = None,
) -> FlowDensity:
    """log p of images ``[B, ...]`` of any shape, and their latents.

    p is the density of the image with noise n(t_min) on it, in the images' own scale: 1e-3 of noise or less changes no visible bit, and
    without it data on a grid have no density. No gradients are kept.

    Args:
        probe: Hutchinson's, like x with entries of mean 0 and unit covariance (``rademacher``), one for the whole solve: the trace is then
            unbiased at the price of one backward pass per evaluation. None computes it exactly, by as many passes as there are dimensions.
        integrator: ``Fixed`` or ``Adaptive``.
        data_std: the prior is N(0, sigma_T^2 + (alpha_T data_std)^2). 0 is the plain one that a sampler starts from; with that of
            the data nearly all of its mismatch goes (6.8e-3 nats per dimension for EDM's sigma_T = 80).
        condition: what else the network takes; tensors are per sample.
    """
    flow = _Flow(denoiser, _clock(path.n(path.t_min)), _clock(path.n(path.t_max)), probe, condition or {})
    alpha, _ = _alpha_sigma(flow.start)
    latent, log_det_B, evaluations_B = integrator(flow, x.detach().double() * alpha)
    prior_B = _normal_log_density(latent, _prior_std(path, data_std))
    value_B = prior_B + log_det_B + x[0].numel() * math.log(alpha)
    return FlowDensity((latent * _scale(path)).to(x), value_B, evaluations_B)


def sample_with_log_density(
    denoiser: Denoise,
    path: Path,
    latent: Tensor,
    probe: Probe,
    *,
    integrator: Fixed | Adaptive = EQUAL_STEPS,
    data_std: float = 0.0,
    condition: Mapping[str, Any] | None = None,
) -> FlowDensity:
    """Images from latents x_T ``[B, ...]`` (in the path's scale: ``path.prior_std()`` times a standard normal) and their log p, in one
    pass.

    It is ``log_density`` read backwards, and so are the arguments.
    """
    flow = _Flow(denoiser, _clock(path.n(path.t_max)), _clock(path.n(path.t_min)), probe, condition or {})
    alpha, _ = _alpha_sigma(flow.end)
    begun = latent.detach().double() / _scale(path)
    x, log_det_B, evaluations_B = integrator(flow, begun)
    value_B = _normal_log_density(begun, _prior_std(path, data_std)) - log_det_B + x[0].numel() * math.log(alpha)
    return FlowDensity((x / alpha).to(latent), value_B, evaluations_B)


def bits_per_dim(
    denoiser: Denoise,
    path: Path,
    images: Tensor,
    seeds: Sequence[int],
    *,
    draws: int = 1,
    exact: bool = False,
    integrator: Fixed | Adaptive = EQUAL_STEPS,
    data_std: float = 0.0,
    condition: Mapping[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """Bits per dimension of 8-bit images and their standard errors over the draws, float64 ``[B]`` (an error is nan for one draw).

    -log2 p of the dequantised image per dimension, plus 7 bits for the width of a bin: an upper bound of the bits of the discrete image
    in expectation, by Jensen's inequality (Theis et al. 2016).

    Args:
        images: 0 ... 255 ``[B, ...]``, any dtype; the network was trained on images in [-1, 1].
        seeds: one per image; its dequantisation and probe depend on nothing else.
        draws: of both.
        exact: the exact trace instead of Hutchinson's.

    Raises:
        UserError: no draw, or not one seed per image.
    """
    if draws < 1:
        raise UserError("likelihood.draws", f"got {draws}", "choose 1 or more")
    if len(seeds) != len(images):
        raise UserError("likelihood.seeds", f"got {len(seeds)} for {len(images)} images", "give one seed per image")
    dims = images[0].numel()
    rows: list[Tensor] = []
    for draw in range(draws):
        streams = [generator(seed, draw, 0, "dequantisation") for seed in seeds]
        u = torch.from_numpy(np.stack([stream.random(images.shape[1:]) for stream in streams])).to(images.device)
        x = dequantise(images, u)
        probe = None if exact else rademacher(seeds, x, draw)
        found = log_density(denoiser, path, x, probe, integrator=integrator, data_std=data_std, condition=condition)
        rows.append(BIN_BITS - found.log_density_B / (dims * math.log(2.0)))
    bits_KB = torch.stack(rows)
    return bits_KB.mean(0), bits_KB.std(0) / draws**0.5 if draws > 1 else torch.full_like(bits_KB[0], math.nan)


def dequantise(images: Tensor, u: Tensor) -> Tensor:
    """(k + u) / 128 - 1 in [-1, 1) from k = 0 ... 255 and u uniform on [0, 1), float64 (Theis et al. 2016)."""
    return (images.double() + u.double()) / 128.0 - 1.0


def rademacher(seeds: Sequence[int], like: Tensor, draw: int = 0) -> Tensor:
    """A probe of signs, like ``like``, a stream per seed: of all probes the one of least variance, exact where dD / dx is diagonal."""
    streams = [generator(seed, draw, 0, "probe") for seed in seeds]
    signs = np.stack([stream.integers(0, 2, like.shape[1:]) for stream in streams])
    return torch.from_numpy(2.0 * signs - 1.0).to(like)


class _Flow:
    """The slope of x and of its log-determinant over s, the share of the way from clock ``start`` to ``end``."""

    def __init__(self, denoiser: Denoise, start: float, end: float, probe: Probe, condition: Mapping[str, Any]) -> None:
        self.denoiser, self.start, self.end = denoiser, start, end
        self.probe = None if probe is None else probe.double()
        self.condition = condition

    def __call__(self, s: float | Tensor, x: Tensor, rows: Tensor | None) -> Slope:
        q = self.start + s * (self.end - self.start)
        alpha, sigma = _alpha_sigma(q)
        denoised, trace_B = self._denoise(x, Level(alpha, sigma), rows)
        pace = (alpha + sigma / CEILING) * (self.end - self.start)
        return spread(pace, x) * (spread(alpha, x) * x - denoised), pace * (alpha * x[0].numel() - trace_B)

    def _denoise(self, x: Tensor, level: Level, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """D and the trace of dD / dx, ``[B]``."""
        condition, probe = dict(self.condition), self.probe
        if rows is not None:
            condition = {name: value[rows] if isinstance(value, Tensor) else value for name, value in condition.items()}
            probe = None if probe is None else probe[rows]
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone().requires_grad_()
            denoised = self.denoiser(x, level, **condition)
            if probe is not None:
                (pulled,) = torch.autograd.grad(denoised, x, probe)
                return denoised.detach(), (pulled * probe).flatten(1).sum(1)
            trace_B, dims = x.new_zeros(len(x)), x[0].numel()
            for i in range(dims):
                basis = torch.zeros_like(x)
                basis.view(len(x), -1)[:, i] = 1.0
                (pulled,) = torch.autograd.grad(denoised, x, basis, retain_graph=i + 1 < dims)
                trace_B = trace_B + pulled.reshape(len(x), -1)[:, i].detach()
        return denoised.detach(), trace_B.detach()


def _clock(n: float) -> float:
    """q = -log(1 / n + 1 / C)."""
    return -math.log(1.0 / n + 1.0 / CEILING)


def _alpha_sigma(q: Any) -> tuple[Any, Any]:
    """alpha and sigma, alpha^2 + sigma^2 = 1, at a clock time: floats or tensors as q is."""
    if isinstance(q, Tensor):
        signal = (torch.exp(-q) - 1.0 / CEILING).clamp(min=0.0)
        sigma = torch.rsqrt(1.0 + signal.square())
        return signal * sigma, sigma
    ratio = max(math.exp(-q) - 1.0 / CEILING, 0.0)
    return ratio / math.hypot(1.0, ratio), 1.0 / math.hypot(1.0, ratio)


def _scale(path: Path) -> float:
    """x_T of the path over x_T of unit alpha^2 + sigma^2."""
    return math.hypot(path.alpha(path.t_max), path.sigma(path.t_max))


def _prior_std(path: Path, data_std: float) -> float:
    """Of the normalised x_T."""
    return math.hypot(path.prior_std(), path.alpha(path.t_max) * data_std) / _scale(path)


def _normal_log_density(x: Tensor, std: float) -> Tensor:
    return -0.5 * ((x / std).square() + math.log(2.0 * math.pi * std**2)).flatten(1).sum(1)
