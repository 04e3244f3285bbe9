"""Solvers that remember: DPM-Solver++, UniPC, and both families of Adams-Bashforth through one function of coefficients.

With lambda = log(alpha / sigma) the probability flow is d(x / sigma) / dlambda = e^lambda D, so exactly

    x_s = (sigma_s / sigma_t) x_t + sigma_s integral from lambda_t to lambda_s of e^lambda D dlambda

(Lu et al. 2022, DPM-Solver++, eq. 8). A solver is a guess of D between the points where it is known. h is lambda_s - lambda_t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from unveil.gaussian.grid import Instant
from unveil.gaussian.level import Level
from unveil.gaussian.solver import Between, Options, Step, first_order, solver
from unveil.gaussian.solvers.runge_kutta import KUTTA, on_log_n, on_n, two_stage
from unveil.gaussian.tape import Vector

_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(16)


def adams(nodes: Sequence[float], start: float, stop: float, weight: Callable[[float], float]) -> list[float]:
    """Integral from ``start`` to ``stop`` of weight(u) times each Lagrange polynomial of the nodes.

    By Gauss-Legendre quadrature with 16 points: to rounding for the weights 1 and e^u over any step that a grid would take, and without
    the cancellation that closed forms suffer in short steps.
    """
    points = 0.5 * (stop - start) * _POINTS + 0.5 * (stop + start)
    weights = 0.5 * (stop - start) * _WEIGHTS * np.array([weight(u) for u in points])
    bases = [np.prod([np.ones(16), *((points - other) / (node - other) for other in nodes if other != node)], axis=0) for node in nodes]
    return [float(weights @ basis) for basis in bases]


def exponential(x: Vector, t: Instant, s: Instant, known: Sequence[tuple[float, Vector]]) -> Vector:
    """x_s from x_t with D as the polynomial through ``known``: pairs (lambda, D)."""
    moved = x * (s.sigma / t.sigma)
    for (_, denoised), weight in zip(known, adams([u for u, _ in known], t.log_snr, s.log_snr, math.exp), strict=True):
        moved = moved + denoised * (s.sigma * weight)
    return moved


def known(step: Step, denoised: Vector, count: int) -> list[tuple[float, Vector]]:
    """(lambda, D) of this step and of the ``count`` - 1 before it."""
    return [(step.t.log_snr, denoised), *((past.at.log_snr, past.kept[0]) for past in step.past[: count - 1])]


def second_order(step: Step, x: Vector, denoised: Vector) -> Vector:
    """2M: D (1 + 1 / 2r) - D_before / 2r in the place of D, r = h_before / h."""
    (now, _), (before, last) = known(step, denoised, 2)
    half = 0.5 * (step.s.log_snr - now) / (now - before)
    return first_order(x, step.t, step.s, denoised * (1.0 + half) - last * half)


@solver("dpmpp-2s", order=2, evaluations=2)
def dpmpp_2s(step: Step) -> Vector:
    """DPM-Solver++(2S), the midpoint in lambda (Lu et al. 2022, algorithm 1 with r = 1/2)."""
    t, s = step.t, step.s
    denoised = step.denoise(step.x, t.level)
    step.keep(denoised)
    if step.last:
        return denoised
    n = math.sqrt(t.n * s.n)
    middle = step.x * (n / t.sigma) + denoised * (1.0 - n / t.n)
    return first_order(step.x, t, s, step.denoise(middle, Level(1.0, n)))


@solver("dpmpp-2m", order=2, evaluations=1)
def dpmpp_2m(step: Step) -> Vector:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2)."""
    denoised = step.denoise(step.x, step.t.level)
    step.keep(denoised)
    if step.past and not step.last:
        return second_order(step, step.x, denoised)
    return first_order(step.x, step.t, step.s, denoised)


@solver("dpmpp-3m", order=3, evaluations=1, minimal=3)
def dpmpp_3m(step: Step) -> Vector:
    """DPM-Solver++(3M): D as the parabola through the last three, integrated exactly.

    The public codes take the second derivative without its factor 2 and are of order 2. The first step is 2S's: behind a
    first-order step the whole would be of order 2 as well.
    """
    t, s = step.t, step.s
    if not step.past and not step.last:
        return dpmpp_2s.function(step)
    denoised = step.denoise(step.x, t.level)
    step.keep(denoised)
    if step.last:
        return denoised
    if len(step.past) == 1:
        return second_order(step, step.x, denoised)
    (now, _), (before, one), (first, two) = known(step, denoised, 3)
    h = s.log_snr - now
    r0, r1 = (now - before) / h, (before - first) / h
    d0, d1 = (denoised - one) / r0, (one - two) / r1
    slope = d0 + (d0 - d1) * (r0 / (r0 + r1))
    curvature = (d0 - d1) * (2.0 / (r0 + r1))
    phi2 = math.expm1(-h) / h + 1.0
    phi3 = phi2 / h - 0.5
    return first_order(step.x, t, s, denoised) + (slope * phi2 - curvature * phi3) * s.alpha


ORDER = {"order": Between(2, 1, 3, whole=True)}


def _order(options: Options) -> int:
    return int(options["order"])


@solver("exponential-ab", order=_order, evaluations=1, minimal=_order, options=ORDER)
def exponential_ab(step: Step, order: int) -> Vector:
    """Exponential Adams-Bashforth: D as the polynomial through the last ``order``. Order 3 is 3M; its first step is Heun's in lambda."""
    if order == 3 and not step.past and not step.last:
        moved, first = on_log_n(step, two_stage(1.0))
        step.keep(step.x / step.t.alpha - first)
        return moved
    denoised = step.denoise(step.x, step.t.level)
    step.keep(denoised)
    return denoised if step.last else exponential(step.x, step.t, step.s, known(step, denoised, order))


@solver("adams-bashforth", order=_order, evaluations=1, minimal=_order, options=ORDER)
def adams_bashforth(step: Step, order: int) -> Vector:
    """Adams-Bashforth on the clock n, k-diffusion's LMS: the slope (y - D) / n as a polynomial. Order 3 begins with Heun's step."""
    t, s = step.t, step.s
    y = step.x / t.alpha
    if order == 3 and not step.past and not step.last:
        moved, slope = on_n(step, y, t.n, two_stage(1.0))
        step.keep(slope)
        return moved
    denoised = step.denoise(step.x, t.level)
    if step.last:
        return denoised
    slope = (y - denoised) / t.n
    step.keep(slope)
    slopes = [(t.n, slope), *((past.at.n, past.kept[0]) for past in step.past[: order - 1])]
    for (_, slope), weight in zip(slopes, adams([n for n, _ in slopes], t.n, s.n, lambda n: 1.0), strict=True):
        y = y + slope * weight
    return y * s.alpha


@solver("unipc", order=lambda options: _order(options) + 1, evaluations=1, minimal=_order, options=ORDER)
def unipc(step: Step, order: int) -> Vector:
    """UniPC-p with B(h) = e^h - 1 (Zhao et al. 2023): the answer at a predicted state also corrects that state, and nothing is asked twice.

    The corrector of order 1 averages the two D; those above it, and the predictor of order 3, integrate their polynomial exactly; the
    predictor of order 2 is 2M. With p = 3 the first step is Kutta's third-order one, and needs no correction.
    """
    t, s, x = step.t, step.s, step.x
    if order == 3 and not step.past and not step.last:
        moved, first = on_log_n(step, KUTTA)
        step.keep(x / t.alpha - first)
        return moved
    denoised = step.denoise(x, t.level)
    if step.last:
        return denoised
    if step.past and len(step.past[0].kept) == 2:
        before, (one, start) = step.past[0]
        nodes = min(order, len(step.past)) + 1
        if nodes == 2:
            x = first_order(start, before, t, (denoised + one) * 0.5)
        else:
            x = exponential(start, before, t, known(step, denoised, nodes))
        x = step.settle(x)
    step.keep(denoised, x)
    match min(order, len(step.past) + 1):
        case 1:
            return first_order(x, t, s, denoised)
        case 2:
            return second_order(step, x, denoised)
    return exponential(x, t, s, known(step, denoised, order))
