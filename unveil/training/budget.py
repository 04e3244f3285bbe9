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
_COMPILE_SECONDS = 30.0
"""What compiling takes where the network does not say: one block's code for all blocks."""
_WON = 0.25
"""Share of the eager time that compiled steps save at least."""


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


def compiles(config: TrainingConfig, eager_seconds: Callable[[], float], model: nn.Module) -> bool:
    """Whether to compile: as told, or by ``auto`` if a C++ compiler is there and the run is long enough to earn it back: a quarter of its
    minutes, or of ``eager_seconds()``, must be more than the network's own ``compile_seconds()``.

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
    own: Callable[[], float] | None = getattr(model, "compile_seconds", None)
    return _WON * (60 * config.minutes or eager_seconds()) >= (own() if own else _COMPILE_SECONDS)


def seconds_per_step(step: Callable[[], None], world: World) -> float:
    """Of the faster of two calls of ``step`` after a first one, which allocates; the mean over ranks."""
    step()
    times = []
    for _ in range(2):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return world.sum({"": min(times)})[""] / world.size


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
