from __future__ import annotations

import math

import pytest

from unveil.config import ScheduleConfig
from unveil.training.lr import multiplier


@pytest.mark.parametrize("kind", ["cosine", "wsd", "multi-step", "constant"])
def test_warmup_is_linear_and_starts_above_zero(kind: str) -> None:
    schedule = ScheduleConfig(kind=kind, warmup=0.1)  # type: ignore[arg-type]
    assert [multiplier(schedule, i, 40) for i in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_cosine_is_the_closed_form_between_warmup_and_the_last_step() -> None:
    schedule = ScheduleConfig(kind="cosine", warmup=0.1, final=0.2)
    for step in (10, 37, 64, 99):
        wanted = 0.2 + 0.8 * (1 + math.cos(math.pi * (step - 10) / 89)) / 2
        assert multiplier(schedule, step, 100) == pytest.approx(wanted, abs=1e-12)
    assert multiplier(schedule, 99, 100) == pytest.approx(0.2, abs=1e-12)


def test_wsd_is_stable_and_then_linear() -> None:
    schedule = ScheduleConfig(kind="wsd", warmup=0.0, decay=0.2, final=0.5)
    assert [multiplier(schedule, i, 101) for i in (0, 50, 80)] == [1.0, 1.0, 1.0]
    assert [multiplier(schedule, i, 101) for i in (85, 90, 100)] == pytest.approx([0.875, 0.75, 0.5])


def test_multi_step_is_deepseeks() -> None:
    schedule = ScheduleConfig(kind="multi-step", warmup_steps=2000)
    found = [multiplier(schedule, i, 500_000) for i in (999, 1999, 2000, 399_999, 400_000, 449_999, 450_000, 499_999)]
    assert found == pytest.approx([1000 / 2001, 2000 / 2001, 1, 1, 10**-0.5, 10**-0.5, 0.1, 0.1], abs=1e-12)
    assert multiplier(ScheduleConfig(kind="multi-step", stages=(0.7, 0.85)), 70, 100) == pytest.approx(0.3162, abs=1e-4)


def test_constant_never_falls() -> None:
    schedule = ScheduleConfig(kind="constant", warmup=0.0)
    assert {multiplier(schedule, i, 50) for i in range(50)} == {1.0}


@pytest.mark.parametrize("kind", ["cosine", "wsd", "multi-step", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_have_a_rate(kind: str, steps: int) -> None:
    schedule = ScheduleConfig(kind=kind, warmup=0.5)  # type: ignore[arg-type]
    assert all(0 < multiplier(schedule, i, steps) <= 1 for i in range(steps))
