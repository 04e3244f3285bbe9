from __future__ import annotations

import shutil
import time

import pytest
import torch
from torch import nn

from tests.training.toy import network
from unveil.config import TrainingConfig
from unveil.errors import UserError
from unveil.nn.layout import Causal
from unveil.nn.packed import Packed
from unveil.training import budget
from unveil.training.parallel import World


def test_flops_ask_the_network_for_the_context_a_token_sees() -> None:
    batch = Packed.of([torch.zeros(2), torch.zeros(6)])
    model = network()
    assert budget.flops(model, batch) == model.flops_per_token((4 + 36) / 8)
    model.layout = Causal()
    assert budget.flops(model, batch) == model.flops_per_token((4 + 36) / 16)
    assert budget.flops(nn.Linear(3, 5), batch) == 6 * 20


@pytest.mark.parametrize(
    ("config", "seconds", "wanted"),
    [
        ({"compile": "off", "minutes": 60.0}, 1e18, False),
        ({"compile": "on", "steps": 1}, 1.0, True),
        ({"minutes": 1.0, "steps": 10**9}, 1e18, False),
        ({"minutes": 3.0, "steps": 1}, 1.0, True),
        ({"steps": 100}, 1.19, False),
        ({"steps": 100}, 1.2, True),
    ],
)
def test_compiling_must_earn_its_time_back(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, object], seconds: float, wanted: bool
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/" + name)
    chosen = TrainingConfig(**config)  # type: ignore[arg-type]
    assert budget.compiles(chosen, lambda: chosen.steps * seconds, nn.Linear(1, 1)) is wanted


def test_a_network_that_takes_minutes_to_compile_needs_a_longer_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/" + name)
    model = nn.Linear(1, 1)
    model.compile_seconds = lambda: 100.0
    assert not budget.compiles(TrainingConfig(), lambda: 399.0, model)
    assert budget.compiles(TrainingConfig(), lambda: 401.0, model)


def test_without_a_compiler_auto_is_eager_and_on_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not budget.compiles(TrainingConfig(minutes=60.0), lambda: 1.0, nn.Linear(1, 1))
    with pytest.raises(UserError, match=r"training\.compile"):
        budget.compiles(TrainingConfig(compile="on"), lambda: 1.0, nn.Linear(1, 1))


def test_the_warm_up_does_not_count_and_the_speed_fixes_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], [0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def step() -> None:
        calls[0] += 1
        clock[0] += 50.0 if calls[0] <= 4 else 0.5

    assert budget.measured_steps(2.0, step, World()) == 240
    assert calls[0] == 4 + 12  # six seconds are the twentieth of two minutes
