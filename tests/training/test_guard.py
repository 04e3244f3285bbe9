from __future__ import annotations

import pytest
import torch

from unveil.errors import UserError
from unveil.training.guard import Guard, Skipped
from unveil.training.parallel import World

IDS = [torch.tensor([4, 5]), torch.tensor([6])]
FINE, NAN = torch.tensor(1.0), torch.tensor(torch.nan)


def judge(guard: Guard, step: int, losses: list[torch.Tensor], norm: torch.Tensor = FINE) -> bool:
    return bool(guard.judge(step, 10 * step, torch.stack(losses).sum(), norm, losses, IDS))


def test_only_what_is_finite_passes() -> None:
    guard = Guard(World())
    assert judge(guard, 1, [FINE, FINE])
    assert not judge(guard, 2, [FINE, NAN])
    assert not judge(guard, 3, [FINE, FINE], torch.tensor(torch.inf))


def test_a_flag_is_told_one_step_late_with_the_samples_to_blame() -> None:
    guard = Guard(World())
    judge(guard, 1, [FINE, NAN])
    assert guard.read(late=1) is None
    judge(guard, 2, [FINE, FINE], norm=NAN)
    assert guard.read(late=1) == Skipped(1, 10, [6])
    assert guard.read(late=1) is None
    assert guard.read(late=0) == Skipped(2, 20, [4, 5, 6])
    assert guard.read(late=0) is None


def test_three_in_a_row_stop_the_run_and_a_good_one_forgives() -> None:
    guard = Guard(World())
    for step, loss in enumerate([NAN, NAN, FINE, NAN, NAN], 1):
        judge(guard, step, [loss, FINE])
        while skipped := guard.read(late=0):
            guard.stop_if_hopeless(skipped, None)
    judge(guard, 6, [NAN, FINE])
    last = guard.read(late=0)
    assert last is not None
    with pytest.raises(UserError, match="3 times in a row, last at step 6 with samples 4, 5; the checkpoint of step 2 is intact"):
        guard.stop_if_hopeless(last, 2)
