"""What a run costs before it begins: FLOPs, whether compiling pays, and how many steps fit into the minutes."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from typing import Any

from torch import nn

from unveil.config import TrainingConfig
from unveil.errors import UserError
from unveil.nn.layout import Causal
from unveil.training.parallel import World

_WARMUP = 4
"""Steps before the clock starts: the first ones compile, for one length and then for any."""
_MEASURED = 0.05
"""Share of the budget that is spent on measuring, at most ten seconds."""
_COMPILE_PAYS = 120.0
"""Seconds of training from which compiling pays: it takes some 30 and wins at least a quarter."""
_EAGER_UTILISATION = 0.3


def flops(model: nn.Module, batch: Any) -> float:
    """Floating-point operations of a forward and backward pass per token of ``batch``, or per image.

    By the network's own ``flops_per_sample()``, or ``flops_per_token(context)``, where a token sees ``context`` keys on average; else 6 per
    parameter.
    """
    whole: Callable[[], float] | None = getattr(model, "flops_per_sample", None)
    if whole is not None:
        return whole()
    own: Callable[[float], float] | None = getattr(model, "flops_per_token", None)
    if own is None:
        return 6.0 * sum(p.numel() for p in model.parameters())
    lengths = batch.lengths
    seen = sum(n * n for n in lengths) / sum(lengths)
    return own(seen / 2 if isinstance(getattr(model, "layout", None), Causal) else seen)


def compiles(config: TrainingConfig, flops_per_step: Callable[[], float], peak: Callable[[], float]) -> bool:
    """Whether to compile: as told, or by ``auto`` if a C++ compiler is there and the run is long enough to earn it back.

    Raises UserError if compilation is ``on`` and there is no compiler.
    """
    if config.compile == "off":
        return False
    compiler = any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++"))
    if config.compile == "on":
        if not compiler:
            raise UserError("training.compile", "'on', but there is no C++ compiler", "install g++ or clang++, or set it to 'auto'")
        return True
    if not compiler:
        return False
    seconds = 60 * config.minutes or config.steps * flops_per_step() / (_EAGER_UTILISATION * peak())
    return seconds >= _COMPILE_PAYS


def measured_steps(minutes: float, step: Callable[[], None], world: World) -> int:
    """How many calls of ``step`` fit into ``minutes``, by calling it for a while; what it changes is the caller's to undo.

    All ranks make the same number of calls and get the same answer.
    """
    for _ in range(_WARMUP):
        step()
    patience = min(_MEASURED * 60 * minutes, 10.0)
    count, start = 0, time.perf_counter()
    while world.any(count < 3 or time.perf_counter() - start < patience):
        step()
        count += 1
    seconds = world.sum({"": time.perf_counter() - start})[""] / world.size
    return max(round(60 * minutes * count / seconds), 1)
