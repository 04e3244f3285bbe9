"""What a path is: x_t = alpha(t) x0 + sigma(t) eps, for times t that run from data to noise.

All paths are one path seen through two choices: the clock n(t) = sigma / alpha (EDM's noise level) and the scale alpha. Whatever happens
to y = x / alpha happens in n alone, which is why a network trained under one path serves every other (Karras et al. 2022, section 2;
``gaussian.denoiser``). The forward SDE dx = f x dt + g dW has f = alpha' / alpha and g^2 = 2 sigma sigma' - 2 f sigma^2 = alpha^2 (n^2)'.
Everything here is float64: the caller casts last.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

Number = TypeVar("Number", float, Tensor)


class Level(NamedTuple):
    """Where a sample is on a path: both floats, for a whole batch, or both tensors ``[B]``."""

    alpha: float | Tensor
    sigma: float | Tensor

    @property
    def n(self) -> float | Tensor:
        """sigma / alpha, infinite where nothing of the data is left."""
        if not isinstance(self.alpha, Tensor) and self.alpha == 0:
            return math.inf
        return self.sigma / self.alpha


class Path(ABC):
    """A pair alpha(t), sigma(t) with n = sigma / alpha strictly increasing.

    Every method takes a Python float or a tensor of any shape and returns the same kind, tensors in float64. ``t_min`` and ``t_max`` bound
    the times that a network is trained on and asked at; the path itself goes on down to the data end, where n = 0. At an end a
    derivative may be infinite (sigma' of VP at t = 0; f and g^2 where alpha = 0), as it is in mathematics.
    """

    t_min: float
    t_max: float

    def alpha(self, t: Number) -> Number:
        """How much of the data is in x_t."""
        return _lift(self._alpha, t)

    def sigma(self, t: Number) -> Number:
        """Standard deviation of the noise in x_t."""
        return _lift(self._sigma, t)

    def alpha_dot(self, t: Number) -> Number:
        """d alpha / dt."""
        return _lift(self._alpha_dot, t)

    def sigma_dot(self, t: Number) -> Number:
        """d sigma / dt."""
        return _lift(self._sigma_dot, t)

    def n(self, t: Number) -> Number:
        """Noise over signal, sigma / alpha."""
        return _lift(self._n, t)

    def time(self, n: Number) -> Number:
        """The t at which sigma / alpha = n, the inverse of ``n``; of 0 the data end."""
        return _lift(self._time, n)

    def drift(self, t: Number) -> Number:
        """f = alpha' / alpha of the forward SDE dx = f x dt + g dW."""
        return _lift(self._drift, t)

    def diffusion2(self, t: Number) -> Number:
        """g^2 of the forward SDE dx = f x dt + g dW."""
        return _lift(self._diffusion2, t)

    def level(self, t: float | Tensor) -> Level:
        """alpha and sigma at t, in the kind of t: floats, or float64 tensors of its shape."""
        if isinstance(t, Tensor):
            return Level(self.alpha(t), self.sigma(t))
        return Level(self.alpha(t), self.sigma(t))

    @property
    def data_end(self) -> float:
        """The time at which n = 0: no noise is left (-inf for a path that reaches it only in the limit)."""
        return self.time(0.0)

    def prior_std(self) -> float:
        """sigma(t_max): the standard deviation of the normal distribution that sampling starts from."""
        return self.sigma(self.t_max)

    @abstractmethod
    def _n(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _time(self, n: Tensor) -> Tensor: ...

    @abstractmethod
    def _alpha(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _sigma(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _alpha_dot(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _sigma_dot(self, t: Tensor) -> Tensor: ...

    def _drift(self, t: Tensor) -> Tensor:
        return self._alpha_dot(t) / self._alpha(t)

    def _diffusion2(self, t: Tensor) -> Tensor:
        sigma = self._sigma(t)
        return 2.0 * sigma * (self._sigma_dot(t) - self._drift(t) * sigma)


def _lift(function: Callable[[Tensor], Tensor], value: Number) -> Number:
    """A function of float64 tensors applied to a tensor or to a Python float, in float64."""
    if isinstance(value, Tensor):
        return function(value.double())
    return function(torch.tensor(value, dtype=torch.float64)).item()
