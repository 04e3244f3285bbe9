from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from unveil.training.metrics import Journal, Window
from unveil.training.parallel import World

ALONE = World()
YES, NO = torch.tensor(True), torch.tensor(False)


def add(window: Window, ok: torch.Tensor, norm: float, values: list[float], denominator: float) -> None:
    window.add(ok, torch.tensor(norm), {"nll": [torch.tensor(v) for v in values]}, {"nll": denominator, "empty": 0.0})


def test_a_row_is_a_ratio_of_sums_and_masked_steps_stay_out() -> None:
    window = Window()
    add(window, YES, 1.0, [2.0, 4.0], 3.0)
    add(window, NO, torch.nan, [torch.nan], 5.0)
    add(window, YES, 3.0, [10.0], 1.0)
    assert window.row(ALONE) == {"grad_norm": 2.0, "train/nll": 4.0}
    assert window.row(ALONE) == {}


def test_a_window_goes_on_where_it_was_saved() -> None:
    straight, first, second = Window(), Window(), Window()
    for window in (straight, first):
        add(window, YES, 0.1, [0.1, 0.2], 0.7)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for window in (straight, second):
        add(window, YES, 0.3, [0.3], 0.9)
    assert straight.row(ALONE) == second.row(ALONE)


def test_a_journal_drops_the_rows_after_the_step_and_half_a_line(tmp_path: Path) -> None:
    with Journal(tmp_path, 0, ALONE) as journal:
        for step in (2, 4, 6):
            journal.metrics(step, 10 * step, {"train/nll": step / 3, "skipped_samples": [1]})
            journal.timing(step, 10 * step, {"seconds": 1.0})
        assert journal.last == {"step": 6, "tokens": 60, "train/nll": 2.0}
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 8, "tok')
    with Journal(tmp_path, 4, ALONE) as journal:
        assert journal.last["step"] == 4
        journal.metrics(6, 60, {"train/nll": 2.0, "skipped_samples": [1]})
    assert path.read_bytes() == whole
    assert [json.loads(line)["step"] for line in (tmp_path / "timing.jsonl").read_text().splitlines()] == [2, 4]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path / "run", 0, World(1, 2)) as journal:
        journal.metrics(1, 1, {"x": 1.0})
        journal.sync()
    assert not (tmp_path / "run").exists() and journal.last["x"] == 1.0


def test_tensorboard_holds_the_same_numbers(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Journal(tmp_path, 0, ALONE) as journal:
        journal.metrics(3, 30, {"train/nll": 0.5})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/nll")] == [(3, 0.5)]
