"""One-step solvers of the probability-flow ODE: explicit Runge-Kutta on one of its clocks, after EDM's churn where asked for.

On the clock n the equation is dy/dn = (y - D(y; n)) / n with y = x / alpha, whatever the path (Karras et al. 2022, eq. 4 with alpha = 1):
trajectories are straightest there. On the path's own time it is dx/dt = alpha' D + sigma' eps, rectified flow's velocity. On the clock
log n it is dy/dlog n = y - D, which the first steps of high-order multistep solvers use.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from unveil.gaussian.integrator import Tableau
from unveil.gaussian.level import Level
from unveil.gaussian.solver import Between, OneOf, Options, Step, solver
from unveil.gaussian.tape import Vector

EULER = Tableau((0.0,), ((),), (1.0,))
KUTTA = Tableau((0.0, 0.5, 1.0), ((), (0.5,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6))


def two_stage(place: float) -> Tableau:
    """The second-order methods: 1 is Heun's, 1/2 the midpoint, 2/3 Ralston's (Karras et al. 2022, algorithm 3)."""
    return Tableau((0.0, place), ((), (place,)), (1.0 - 0.5 / place, 0.5 / place))


def runge_kutta(slope: Callable[[Vector, float], Vector], y: Vector, start: float, stop: float, tableau: Tableau) -> tuple[Vector, Vector]:
    """One step of dy/du = slope(y, u) from ``start`` to ``stop``; also the slope at the start."""
    h = stop - start
    slopes: list[Vector] = []
    for node, weights in zip(tableau.nodes, tableau.stages, strict=True):
        at = y
        for weight, k in zip(weights, slopes, strict=True):
            at = at + k * (h * weight)
        slopes.append(slope(at, start + node * h))
    for weight, k in zip(tableau.weights, slopes, strict=True):
        y = y + k * (h * weight)
    return y, slopes[0]


def on_n(step: Step, y: Vector, n: float, tableau: Tableau) -> tuple[Vector, Vector]:
    """From ``y`` at noise level ``n`` to the step's end, on the clock n."""

    def slope(y: Vector, n: float) -> Vector:
        return (y - step.denoise(y, Level(1.0, n))) / n

    moved, first = runge_kutta(slope, y, n, step.s.n, tableau)
    return moved * step.s.alpha, first


def on_log_n(step: Step, tableau: Tableau) -> tuple[Vector, Vector]:
    """The step on the clock log n, and y - D at its beginning."""

    def slope(y: Vector, log_n: float) -> Vector:
        return y - step.denoise(y, Level(1.0, math.exp(log_n)))

    moved, first = runge_kutta(slope, step.x / step.t.alpha, -step.t.log_snr, -step.s.log_snr, tableau)
    return moved * step.s.alpha, first


def on_time(step: Step, x: Vector, time: float, tableau: Tableau) -> Vector:
    """From ``x`` at a time of the path to the step's end, on the path's clock."""
    path = step.path

    def slope(x: Vector, t: float) -> Vector:
        alpha, sigma = path.alpha(t), path.sigma(t)
        denoised = step.denoise(x, Level(alpha, sigma))
        return denoised * path.alpha_dot(t) + (x - denoised * alpha) * (path.sigma_dot(t) / sigma)

    return runge_kutta(slope, x, time, step.s.time, tableau)[0]


def churned(step: Step, churn: float, churn_min: float, churn_max: float, churn_noise: float) -> tuple[Vector, float]:
    """y at the noise level n (1 + gamma): fresh noise takes the place of old errors (Karras et al. 2022, algorithm 2).

    The network is asked afterwards, at the raised level.
    """
    y, n = step.x / step.t.alpha, step.t.n
    gamma = min(churn / step.steps, math.sqrt(2.0) - 1.0) if churn_min <= n <= churn_max else 0.0
    if gamma == 0.0:
        return y, n
    raised = n * (1.0 + gamma)
    return y + step.noise() * (math.sqrt(raised**2 - n**2) * churn_noise), raised


def advance(step: Step, tableau: Tableau, clock: str, **churn: float) -> Vector:
    """Churn, then one Runge-Kutta step; to the data end, where slopes are 0 / 0, the denoised image."""
    if clock == "time" and not churn["churn"]:
        return step.denoise(step.x, step.t.level) if step.last else on_time(step, step.x, step.t.time, tableau)
    y, n = churned(step, **churn)
    if step.last:
        return step.denoise(y, Level(1.0, n))
    if clock == "n":
        return on_n(step, y, n, tableau)[0]
    time = step.path.time(n)
    return on_time(step, y * step.path.alpha(time), time, tableau)


def _churns(options: Options) -> bool:
    return bool(options["churn"] > 0.0)


COMMON: dict[str, Between | OneOf] = {
    "clock": OneOf(("n", "time")),
    "churn": Between(0.0),
    "churn_min": Between(0.0),
    "churn_max": Between(math.inf),
    "churn_noise": Between(1.0),
}
"""The clock, and EDM's S_churn, S_min, S_max (levels n between which there is churn) and S_noise."""


@solver("euler", order=1, evaluations=1, draws=_churns, options=COMMON)
def euler(step: Step, clock: str, **churn: float) -> Vector:
    """Euler's method: on the clock n the same as DDIM, and on rectified flow's own time too."""
    return advance(step, EULER, clock, **churn)


@solver("heun", order=2, evaluations=2, draws=_churns, options=COMMON)
def heun(step: Step, clock: str, **churn: float) -> Vector:
    """The trapezoidal method with EDM's churn (Karras et al. 2022, algorithms 1 and 2)."""
    return advance(step, two_stage(1.0), clock, **churn)


@solver("midpoint", order=2, evaluations=2, draws=_churns, options=COMMON)
def midpoint(step: Step, clock: str, **churn: float) -> Vector:
    """The midpoint method."""
    return advance(step, two_stage(0.5), clock, **churn)


@solver("second-order", order=2, evaluations=2, draws=_churns, options={"place": Between(2 / 3, 0.1, 1.0), **COMMON})
def second_order(step: Step, place: float, clock: str, **churn: float) -> Vector:
    """Any two-stage second-order method by the ``place`` of its second stage, EDM's alpha (Karras et al. 2022, algorithm 3)."""
    return advance(step, two_stage(place), clock, **churn)
