"""Diffusion and flows over R^n: any path, prediction, preconditioning, weighting, solver and guidance, freely combined.

All are one equation, x_t = alpha x0 + sigma eps, seen in n = sigma / alpha. Everything here works alone with a person's own network:

    from unveil.gaussian import EDM, Denoiser, heun, karras

    denoiser = Denoiser(network, predicts="eps", path=path)
    images = heun(denoiser, karras(EDM(), steps=18), shape=(16, 3, 32, 32), seeds=range(16))

``Gaussian`` and ``Mixture`` are data whose denoiser is exact, to test a solver of one's own. The family that recipes and the trainer
know is ``gaussian.family``.
"""

from __future__ import annotations

from unveil.gaussian.bound import variational_bound
from unveil.gaussian.coupling import COUPLINGS, Pairs, optimal_transport
from unveil.gaussian.denoiser import Denoiser
from unveil.gaussian.density import DENSITIES, LogitNormal, LogNormal, LogUniform, UniformLevels, UniformTime, UShaped
from unveil.gaussian.exact import Gaussian, Mixture
from unveil.gaussian.grid import GRIDS, Grid, karras, leading, linspace, log_uniform, quadratic, trailing, uniform, uniform_to_zero
from unveil.gaussian.guidance import Guided, classifier_free
from unveil.gaussian.importance import Importance
from unveil.gaussian.inpainting import Inpainter
from unveil.gaussian.interpolation import slerp
from unveil.gaussian.likelihood import bits_per_dim, log_density, sample_with_log_density
from unveil.gaussian.objective import BoundObjective, GaussianObjective
from unveil.gaussian.output import OUTPUTS, from_output, target, to_output
from unveil.gaussian.path import (
    DDPM,
    EDM,
    PATHS,
    VE,
    VP,
    Cosine,
    Level,
    Path,
    RectifiedFlow,
    Shifted,
    SubVP,
    Trigonometric,
    zero_terminal_snr,
)
from unveil.gaussian.preconditioning import PRECONDITIONINGS
from unveil.gaussian.rectified import distillation, reflow_pairs, transport
from unveil.gaussian.sampler import Sampler
from unveil.gaussian.solvers import (
    SOLVERS,
    adams_bashforth,
    ancestral,
    annealed_langevin,
    bosh3,
    ddim,
    dopri5,
    dpmpp_2m,
    dpmpp_2s,
    dpmpp_3m,
    euler,
    euler_maruyama,
    exact_linear,
    exponential_ab,
    heun,
    midpoint,
    predictor_corrector,
    sde_2m,
    second_order,
    unipc,
)
from unveil.gaussian.weighting import WEIGHTINGS

__all__ = [
    "BoundObjective",
    "COUPLINGS",
    "Cosine",
    "DDPM",
    "DENSITIES",
    "Denoiser",
    "EDM",
    "GRIDS",
    "Gaussian",
    "GaussianObjective",
    "Grid",
    "Guided",
    "Importance",
    "Inpainter",
    "Level",
    "LogNormal",
    "LogUniform",
    "LogitNormal",
    "Mixture",
    "OUTPUTS",
    "PATHS",
    "PRECONDITIONINGS",
    "Pairs",
    "Path",
    "RectifiedFlow",
    "SOLVERS",
    "Sampler",
    "Shifted",
    "SubVP",
    "Trigonometric",
    "UShaped",
    "UniformLevels",
    "UniformTime",
    "VE",
    "VP",
    "WEIGHTINGS",
    "adams_bashforth",
    "ancestral",
    "annealed_langevin",
    "bits_per_dim",
    "bosh3",
    "classifier_free",
    "ddim",
    "distillation",
    "dopri5",
    "dpmpp_2m",
    "dpmpp_2s",
    "dpmpp_3m",
    "euler",
    "euler_maruyama",
    "exact_linear",
    "exponential_ab",
    "from_output",
    "heun",
    "karras",
    "leading",
    "linspace",
    "log_density",
    "log_uniform",
    "midpoint",
    "optimal_transport",
    "predictor_corrector",
    "quadratic",
    "reflow_pairs",
    "sample_with_log_density",
    "sde_2m",
    "second_order",
    "slerp",
    "target",
    "to_output",
    "trailing",
    "transport",
    "uniform",
    "uniform_to_zero",
    "unipc",
    "variational_bound",
    "zero_terminal_snr",
]
