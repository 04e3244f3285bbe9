"""All solvers, by the name that a recipe gives them."""

from __future__ import annotations

from unveil.gaussian.solver import Solver
from unveil.gaussian.solvers.adaptive import AdaptiveSolver, bosh3, dopri5
from unveil.gaussian.solvers.langevin import annealed_langevin, predictor_corrector
from unveil.gaussian.solvers.multistep import adams_bashforth, dpmpp_2m, dpmpp_2s, dpmpp_3m, exponential_ab, unipc
from unveil.gaussian.solvers.runge_kutta import euler, heun, midpoint, second_order
from unveil.gaussian.solvers.stochastic import ancestral, ddim, euler_maruyama, exact_linear, sde_2m

__all__ = [
    "SOLVERS",
    "adams_bashforth",
    "ancestral",
    "annealed_langevin",
    "bosh3",
    "ddim",
    "dopri5",
    "dpmpp_2m",
    "dpmpp_2s",
    "dpmpp_3m",
    "euler",
    "euler_maruyama",
    "exact_linear",
    "exponential_ab",
    "heun",
    "midpoint",
    "predictor_corrector",
    "sde_2m",
    "second_order",
    "unipc",
]

_ALL: tuple[Solver | AdaptiveSolver, ...] = (
    *(ddim, ancestral, euler, heun, midpoint, second_order),
    *(dpmpp_2s, dpmpp_2m, dpmpp_3m, unipc, exponential_ab, adams_bashforth),
    *(euler_maruyama, exact_linear, sde_2m, predictor_corrector, annealed_langevin),
    *(bosh3, dopri5),
)
SOLVERS: dict[str, Solver | AdaptiveSolver] = {one.name: one for one in _ALL}
