"""EDM's Table 1 (Karras et al. 2022): what a network sees of y = x / alpha, and how D(y; n) = c_skip y + c_out F(c_in y; c_noise) is made.

Each row is one earlier paper, read as a choice of four functions of the noise level n. Levels are float64 tensors of any shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from unveil.gaussian.path import VP


class Scalings(NamedTuple):
    """Float64 tensors of the shape of n."""

    skip: Tensor
    out: Tensor
    into: Tensor
    """c_in."""
    noise: Tensor
    """c_noise: what the network gets for a time."""


class Preconditioning(Protocol):
    def scalings(self, n: Tensor) -> Scalings: ...


@dataclass(frozen=True)
class EDMPreconditioning:
    """Inputs and targets of unit variance for data of standard deviation ``sigma_data`` (the last column)."""

    sigma_data: float = 0.5

    def scalings(self, n: Tensor) -> Scalings:
        total = n.square() + self.sigma_data**2
        root = torch.sqrt(total)
        return Scalings(self.sigma_data**2 / total, self.sigma_data * n / root, 1.0 / root, 0.25 * torch.log(n))


@dataclass(frozen=True)
class VPPreconditioning:
    """The VP column: F is eps, and the network gets (steps - 1) t of the VP path (Song et al. 2021)."""

    path: VP = field(default_factory=VP)
    steps: int = 1000

    def scalings(self, n: Tensor) -> Scalings:
        return Scalings(torch.ones_like(n), -n, torch.rsqrt(n.square() + 1.0), (self.steps - 1) * self.path.time(n))


@dataclass(frozen=True)
class VEPreconditioning:
    """The VE column: F is -eps, the input goes in as it is, and the network gets ln(n / 2) (Song et al. 2021)."""

    def scalings(self, n: Tensor) -> Scalings:
        return Scalings(torch.ones_like(n), n, torch.ones_like(n), torch.log(0.5 * n))


@dataclass(frozen=True)
class IDDPMPreconditioning:
    """The iDDPM and DDIM column: F is eps, and the network gets the step of the nearest of ``steps`` levels u_j of the cosine schedule
    (Nichol & Dhariwal 2021; Karras et al., appendix C.3.4). c_1 limits a step's ratio of abar, c_2 is the schedule's offset."""

    steps: int = 1000
    c_1: float = 0.001
    c_2: float = 0.008

    @cached_property
    def levels(self) -> Tensor:
        """u_j, j = 0 ... steps: ``[steps + 1]``, falling from about 20291 to 0 (with the defaults).

        u_{j-1}^2 + 1 = (u_j^2 + 1) / max(abar_{j-1} / abar_j, c_1), abar_j = sin^2(j pi / (2 steps (c_2 + 1))).
        """
        j = torch.arange(self.steps + 1, dtype=torch.float64)
        abar = torch.sin(0.5 * math.pi * j / (self.steps * (self.c_2 + 1.0))).square()
        log_ratio = torch.log((abar[:-1] / abar[1:]).clamp(min=self.c_1))
        levels = torch.sqrt(torch.expm1(-log_ratio.flip(0).cumsum(0))).flip(0)
        return torch.cat([levels, levels.new_zeros(1)])

    def index(self, n: Tensor) -> Tensor:
        """j of the nearest level but u_steps = 0, at which nothing is trained; int64 of the shape of n."""
        levels = self.levels[:-1].to(n.device)
        return (n.reshape(-1, 1) - levels).abs().argmin(1).reshape(n.shape)

    def nearest(self, n: Tensor) -> Tensor:
        """The nearest level above 0: where this network was trained."""
        return self.levels.to(n.device)[self.index(n)]

    def scalings(self, n: Tensor) -> Scalings:
        return Scalings(torch.ones_like(n), -n, torch.rsqrt(n.square() + 1.0), ((self.steps - 1) - self.index(n)).double())


PRECONDITIONINGS: dict[str, Callable[[float], Preconditioning]] = {
    "edm": EDMPreconditioning,
    "vp": lambda sigma_data: VPPreconditioning(),
    "ve": lambda sigma_data: VEPreconditioning(),
    "iddpm": lambda sigma_data: IDDPMPreconditioning(),
}
"""Columns of Table 1 by the name that a recipe gives them, made from sigma_data (which EDM's alone uses)."""
