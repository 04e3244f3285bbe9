"""Learning-rate schedules: pure functions from a step to a multiplier of the highest rate."""

from __future__ import annotations

import math

from unveil.config import ScheduleConfig


def multiplier(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """The multiplier of ``step``, counted from 0, in a run of ``steps``.

    All kinds rise linearly over the first ``warmup`` share and are never 0 in it. ``cosine`` (Loshchilov and Hutter 2017, eq. 5) then
    falls to ``final``, reached in the last step; ``wsd`` (warm-up, stable, decay; MiniCPM 2024) stays at 1 and falls linearly to
    ``final`` over the last ``decay`` share; ``multi-step`` falls at each of its n stages by the n-th root of ``final`` (DeepSeek LLM 2024,
    section 2.3: to 31.6 and 10 %), so that training can go on from before the first of them; ``constant`` stays at 1.
    """
    warm = schedule.warmup_steps or round(schedule.warmup * steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    last = max(steps - 1, 1)
    if schedule.kind == "cosine":
        progress = _share(step - warm, last - warm)
        return schedule.final + (1 - schedule.final) * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule.kind == "wsd":
        decay = max(round(schedule.decay * steps), 1)
        return 1 - (1 - schedule.final) * _share(step - (last - decay), decay)
    if schedule.kind == "multi-step" and schedule.stages:
        passed = sum(step >= round(stage * steps) for stage in schedule.stages)
        return float(schedule.final ** (passed / len(schedule.stages)))
    return 1.0


def _share(done: int, whole: int) -> float:
    return min(max(done / max(whole, 1), 0.0), 1.0)
