"""Guidance: away from what a worse denoiser says. It commutes with every linear map of the output, so it is done once, on D.

D_guided = G + w (D - G), where G is the same network without its condition (Ho & Salimans 2022) or a smaller or less trained one (Karras et
al. 2024, autoguidance). w = 1 is no guidance; codes that count from 0 call it w - 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unveil.errors import UserError
from unveil.gaussian.level import Level
from unveil.gaussian.output import along


class Guided(nn.Module):
    """A denoiser pushed away from another one.

    Args:
        denoiser: (x, level, **condition) -> D.
        guide: the same, worse.
        weight: w, at least 0.
        interval: (low, high): there is guidance at levels low < n <= high (Kynkaanniemi et al. 2024); elsewhere the guide is not asked.

    Raises:
        UserError: a weight below 0 or not finite, an empty interval.
    """

    def __init__(
        self, denoiser: Callable[..., Tensor], guide: Callable[..., Tensor], weight: float, interval: tuple[float, float] = (0.0, math.inf)
    ) -> None:
        super().__init__()
        if not 0.0 <= weight < math.inf:
            raise UserError("sampler.guidance", f"got {weight}", "choose a weight of 0 or more; 1 is no guidance")
        low, high = interval
        if not 0.0 <= low < high:
            raise UserError("sampler.guidance_interval", f"got {low:g} to {high:g}", "give two noise levels, the lower one first")
        self.denoiser, self.guide, self.weight, self.interval = denoiser, guide, weight, interval

    def forward(self, x: Tensor, level: Level, **condition: Any) -> Tensor:
        """D guided, of the shape and dtype of x."""
        (low, high), n = self.interval, level.n
        image: Tensor = self.denoiser(x, level, **condition)
        if isinstance(n, Tensor):
            weight_B = torch.where((low < n) & (n <= high), self.weight, 1.0)
            if bool((weight_B == 1.0).all()):
                return image
            worse = self.guide(x, level, **condition)
            return worse + along(weight_B, x) * (image - worse)
        if self.weight == 1.0 or not low < n <= high:
            return image
        # weight 0 and more: what lerp computes beyond 1 too
        return torch.lerp(self.guide(x, level, **condition), image, self.weight)


def classifier_free(
    denoiser: Callable[..., Tensor], weight: float, null: Mapping[str, float | Tensor], interval: tuple[float, float] = (0.0, math.inf)
) -> Guided:
    """Guidance by the network's own answer without its condition.

    Args:
        null: for each condition to be left out what stands for nothing: a number (the null class) or a tensor of one sample's shape.

    Raises:
        UserError: an unconditional model: nothing in ``null``, or, when it is sampled, none of it among the conditions.
    """
    if not null:
        raise UserError("sampler.guidance", "the model is unconditional", "train one with classes or a text, or leave guidance at 1")

    def unconditional(x: Tensor, level: Level, **condition: Any) -> Tensor:
        if missing := [name for name in null if condition.get(name) is None]:
            raise UserError("sampler.guidance", f"got no {missing[0]} to guide towards", "give it, or leave guidance at 1")
        nothing = {name: torch.as_tensor(value).to(condition[name]).expand_as(condition[name]) for name, value in null.items()}
        return denoiser(x, level, **{**condition, **nothing})

    return Guided(denoiser, unconditional, weight, interval)
