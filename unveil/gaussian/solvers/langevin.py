"""Solvers that stay at a level and let the sample mix there: annealed Langevin dynamics, and correctors between the steps of an SDE."""

from __future__ import annotations

import math
from dataclasses import replace

from unveil.gaussian.solver import Between, Options, Step, solver
from unveil.gaussian.solvers.stochastic import ddim
from unveil.gaussian.tape import Vector


def _corrections(options: Options) -> int:
    return int(options["corrections"])


@solver(
    "annealed-langevin",
    order=0,
    evaluations=_corrections,
    draws=True,
    anywhere=True,
    options={"snr": Between(0.16, 0.0, 1.0), "corrections": Between(1, 1, whole=True)},
)
def annealed_langevin(step: Step, snr: float, corrections: int) -> Vector:
    """Langevin steps x + a score + sqrt(2 a) z with a = 2 (snr sigma)^2 at every level in turn (Song & Ermon 2019, algorithm 1; their
    epsilon is 4 snr^2 sigma_L^2). From one level to the next y = x / alpha stays as it is.

    It converges in ``corrections``, not in steps.
    """
    t, s, x = step.t, step.s, step.x
    share = 2.0 * snr**2
    for _ in range(corrections):
        denoised = step.denoise(x, t.level)
        x = step.settle(x * (1.0 - share) + denoised * (share * t.alpha) + step.noise() * (2.0 * snr * t.sigma))
    if step.last:
        return step.denoise(x, t.level)
    return x * (s.alpha / t.alpha) if t.alpha else x


@solver(
    "predictor-corrector",
    order=1,
    evaluations=lambda options: 1 + _corrections(options),
    draws=True,
    anywhere=True,
    options={"delta": Between(0.01, 0.0, 1.0), "corrections": Between(1, 1, whole=True)},
)
def predictor_corrector(step: Step, delta: float, corrections: int) -> Vector:
    """Corrections at a level, then an ancestral step to the next (Song et al. 2021, appendix G), with a corrector that measures no norms:

    x <- alpha D + sqrt(1 - delta) (x - alpha D) + sqrt(delta) sigma z. The published one scales its step by norms averaged over the batch,
    which makes a sample depend on its neighbours.
    """
    t, x = step.t, step.x
    for _ in range(corrections):
        signal = step.denoise(x, t.level) * t.alpha
        x = step.settle(signal + (x - signal) * math.sqrt(1.0 - delta) + step.noise() * (math.sqrt(delta) * t.sigma))
    return ddim.function(replace(step, x=x), eta=1.0)
