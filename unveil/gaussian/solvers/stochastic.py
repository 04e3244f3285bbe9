"""Solvers that put fresh noise in: ancestral steps, the reverse SDE, and DDIM, which goes from one to the other.

eta scales the standard deviation of the fresh noise everywhere: 0 is the probability-flow ODE, 1 the SDE that reverses the forward
one, and at any value every marginal stays what it was.
"""

from __future__ import annotations

import math

from unveil.errors import UserError
from unveil.gaussian.level import Path
from unveil.gaussian.solver import Between, OneOf, Options, Step, solver
from unveil.gaussian.tape import Vector

ETA = {"eta": Between(1.0)}
DIFFUSION = OneOf(("path", "sigma"))


def _draws(options: Options) -> bool:
    return bool(options["eta"] > 0.0)


def _fresh(step: Step) -> float:
    """tau = 1 - (n_s / n_t)^2, the share of the noise's variance at s that the posterior q(x_s | x_t, x0) leaves open."""
    t, s = step.t, step.s
    return max(1.0 - (t.alpha * s.sigma / (s.alpha * t.sigma)) ** 2, 0.0)


def _posterior(step: Step, denoised: Vector, spread: float) -> Vector:
    """alpha_s D + what of the noise eps is kept, where fresh noise of standard deviation ``spread`` is added."""
    t, s = step.t, step.s
    kept = math.sqrt(max(s.sigma**2 - spread**2, 0.0)) if spread else s.sigma
    return denoised * s.alpha + (step.x - denoised * t.alpha) * (kept / t.sigma)


@solver("ddim", order=1, evaluations=1, draws=_draws, anywhere=True, options={"eta": Between(0.0, 0.0, 1.0)})
def ddim(step: Step, eta: float) -> Vector:
    """x_s = alpha_s D + sqrt(sigma_s^2 - v) eps + sqrt(v) z, v = eta^2 sigma_s^2 tau (Song et al. 2021, DDIM, eq. 12 and 16)."""
    denoised = step.denoise(step.x, step.t.level)
    spread = eta * step.s.sigma * math.sqrt(_fresh(step))
    mean = _posterior(step, denoised, spread)
    return mean + step.noise() * spread if spread else mean


@solver("ancestral", order=1, evaluations=1, draws=True, anywhere=True, options={"variance": OneOf(("small", "large", "learned"))})
def ancestral(step: Step, variance: str) -> Vector:
    """DDPM's sampler between any two levels: the posterior's mean at D, and of noise

    "small": its own variance sigma_s^2 tau; "large": the forward one, sigma_t^2 tau (beta_t between neighbours; Ho et al. 2020, section
    3.2); "learned": between them on a logarithmic scale, where the network says (Nichol & Dhariwal 2021, eq. 15).
    """
    t, s = step.t, step.s
    learned = variance == "learned" and not step.last
    denoised = step.denoise(step.x, t.level, learned) if learned else step.denoise(step.x, t.level)
    root = math.sqrt(_fresh(step))
    small, large = s.sigma * root, t.sigma * root
    mean = _posterior(step, denoised, small)
    if step.last:
        return mean
    if learned:
        return mean + step.learned_noise(math.log(small), math.log(large))
    return mean + step.noise() * (small if variance == "small" else large)


def reverse_drift(path: Path, t: float, eta: float, diffusion: str) -> tuple[float, float, float]:
    """(a, b, w) of the reverse SDE dx = (a D + b eps) dt + sqrt(2 w) dW, t decreasing.

    For any w >= 0 the marginals are those of the path (Ma et al. 2024, SiT, eq. 6; Song et al. 2021, appendix D): w = eta^2 g^2 / 2, or
    eta^2 sigma, which is finite where g is not.

    Raises:
        UserError: g is infinite at t.
    """
    sigma = path.sigma(t)
    w = eta**2 * (0.5 * path.diffusion2(t) if diffusion == "path" and eta else sigma)
    if not math.isfinite(w):
        raise UserError("sampler.diffusion", f"the path's own g is infinite at its time {t:.4g}", "choose sigma")
    return path.alpha_dot(t), path.sigma_dot(t) + w / sigma, w


@solver("euler-maruyama", order=1, evaluations=1, draws=_draws, anywhere=True, options={**ETA, "diffusion": DIFFUSION})
def euler_maruyama(step: Step, eta: float, diffusion: str) -> Vector:
    """Euler-Maruyama for the reverse SDE in the path's own time (Song et al. 2021, eq. 6 and 46)."""
    t, h = step.t, step.s.time - step.t.time
    denoised = step.denoise(step.x, t.level)
    if step.last:
        return denoised
    a, b, w = reverse_drift(step.path, t.time, eta, diffusion)
    moved = step.x + (denoised * a + (step.x - denoised * t.alpha) * (b / t.sigma)) * h
    return moved + step.noise() * math.sqrt(-2.0 * w * h) if w else moved


@solver("exact-linear", order=1, evaluations=1, draws=_draws, options=ETA)
def exact_linear(step: Step, eta: float) -> Vector:
    """The reverse SDE with its linear part solved exactly and eps held, x_s = (alpha_s / alpha_t) (x + ...):

    in y and n, y' = y + (1 + eta^2) (n_s - n_t) eps + eta sqrt(n_t^2 - n_s^2) z.
    """
    t, s = step.t, step.s
    denoised = step.denoise(step.x, t.level)
    if step.last:
        return denoised
    y = step.x / t.alpha
    y = y + (y - denoised) * ((1.0 + eta**2) * (s.n - t.n) / t.n)
    if eta:
        y = y + step.noise() * (eta * math.sqrt(t.n**2 - s.n**2))
    return y * s.alpha


@solver("sde-2m", order=lambda options: 1 if options["eta"] else 2, evaluations=1, draws=_draws, options=ETA)
def sde_2m(step: Step, eta: float) -> Vector:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, section 5.2), between its SDE and 2M: with h the step in lambda and a = 1 + eta^2,

    y' = e^(-a h) y + (1 - e^(-a h)) D^ + n_s sqrt(1 - e^(-2 eta^2 h)) z, where D^ is 2M's.
    """
    t, s = step.t, step.s
    denoised = step.denoise(step.x, t.level)
    step.keep(denoised)
    if step.last:
        return denoised
    h = s.log_snr - t.log_snr
    estimate = denoised
    if step.past:
        before, (last,) = step.past[0]
        half = 0.5 * h / (t.log_snr - before.log_snr)
        estimate = denoised * (1.0 + half) - last * half
    decay = (1.0 + eta**2) * h
    y = step.x * (math.exp(-decay) / t.alpha) - estimate * math.expm1(-decay)
    if eta:
        y = y + step.noise() * (s.n * math.sqrt(-math.expm1(-2.0 * eta**2 * h)))
    return y * s.alpha
