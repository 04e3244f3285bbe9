from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from tests.training.toy import expert_trainer, recipe
from unveil.config import ExpertsConfig
from unveil.nn.routing import Router
from unveil.training import checkpoint
from unveil.training.counting import Counters
from unveil.training.parallel import World

BIAS = "model.blocks.1.feedforward.router.bias"


def rows(directory: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_every_choice_is_counted_once_and_the_bias_moves_once_a_step(tmp_path: Path) -> None:
    """Two micro-batches a step; the sign makes every step a move of at most the rate, and their sum a multiple of it."""
    run = expert_trainer(tmp_path, recipe(packs=2, log_every=3, steps=7, save_every=7))
    run.fit()
    found = [row for row in rows(tmp_path) if "load/counts" in row]
    assert [row["step"] for row in found] == [3, 6, 7]
    counted = sum(sum(row["load/counts"][0]) for row in found)  # type: ignore[index]
    assert counted == 2 * run.tokens and all(row["load/dropped"] == 0 for row in found)
    for row in found:
        (counts,) = row["load/counts"]  # type: ignore[misc]
        assert row["load/violation"] == row["load/mean_violation"] == row["load/violation blocks.1.feedforward.router"]
        assert row["load/violation"] == max(counts) * 4 / sum(counts) - 1
    bias = checkpoint.load(tmp_path / "checkpoints" / "step-00000007", World())[0][BIAS]
    assert bias.any() and float(bias.abs().max()) <= 7 * 0.01 * 2
    assert abs(float(bias.sum())) < 1e-7


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """From the middle of a row: counts since the last one are part of the state."""
    setup = recipe(packs=2, log_every=3, steps=6, save_every=4)
    expert_trainer(tmp_path / "whole", setup).fit()
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000006")
    expert_trainer(tmp_path / "cut", setup).fit(resume=True)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    whole, cut = (checkpoint.load(tmp_path / name / "checkpoints" / "step-00000006", World())[0] for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_masked_update_moves_nothing_and_its_counts_are_forgotten() -> None:
    router = Router(4, ExpertsConfig(routed=3, top_k=1, bias_rate=0.1))
    assert router.bias is not None
    counters = Counters(router, World())
    router.counts += torch.tensor([5, 1, 0])
    counters.after_step(torch.tensor(False))
    assert not router.bias.any() and counters.row() == {} and not router.counts.any()
    router.counts += torch.tensor([4, 1, 1])
    counters.after_step(torch.tensor(True))
    assert counters.state_dict() == {"": [4, 1, 1]}
    assert counters.row()["load/violation"] == 1.0 and counters.row() == {}
    torch.testing.assert_close(router.bias, torch.tensor([-2.0, 1.0, 1.0]) * 0.2 / 3)


def test_a_network_without_experts_has_no_loads() -> None:
    counters = Counters(torch.nn.Linear(2, 2), World())
    counters.after_step(torch.tensor(True))
    assert counters.row() == {} and counters.state_dict() == {}
