from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.toy import ToyFamily, ToyLoader, evaluate, network, recipe, trainer, variant
from unveil.errors import UserError
from unveil.training import budget, checkpoint, precision
from unveil.training.interrupt import Interrupted
from unveil.training.loop import Trainer
from unveil.training.parallel import World


def rows(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def same_state(a: Path, b: Path) -> None:
    """The last checkpoints of two runs hold the same bits."""
    (one, host), (two, other) = (
        checkpoint.load(checkpoint.folder(d / "checkpoints", checkpoint.steps(d / "checkpoints")[-1]), World()) for d in (a, b)
    )
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert {**host, "seconds": 0} == {**other, "seconds": 0}


def test_a_run_learns_and_writes_its_rows(tmp_path: Path) -> None:
    run = trainer(tmp_path, recipe({"lr": 0.01}, steps=40, log_every=10, evaluate_every=20), evaluate=evaluate)
    last = run.fit()
    found = rows(tmp_path)
    assert [(r["step"], "train/nll" in r, "eval/mean" in r) for r in found] == [
        (10, True, False),
        (20, True, False),
        (20, False, True),
        (30, True, False),
        (40, True, False),
        (40, False, True),
    ]
    train = [r for r in found if "train/nll" in r]
    assert train[-1]["train/nll"] < 0.8 * train[0]["train/nll"]
    assert all("train/empty" not in r and r["train/count"] == 1.0 for r in train)
    assert train[-1]["lr"] == pytest.approx(0.01 * 0.1)
    assert last["train/nll"] == train[-1]["train/nll"] and last["step"] == 40
    assert last["tokens"] == sum(len(batch.tokens_T) for batch, _ in (next(loader) for loader in [ToyLoader()] for _ in range(40)))
    timing = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert [r["step"] for r in timing] == [10, 20, 30, 40]
    assert all(r["tokens_per_second"] > 0 and r["utilisation"] > 0 for r in timing)
    assert checkpoint.steps(tmp_path / "checkpoints") == [40]


@pytest.mark.parametrize("name", ["adamw", "muon", "real", "compiled cell", pytest.param("compiled", marks=pytest.mark.slow)])
def test_killed_in_the_middle_of_a_step_and_resumed_is_bit_for_bit_the_straight_run(tmp_path: Path, name: str) -> None:
    """``muon``: with EMA, accumulation over ragged packs and dropout; ``real``: the same with the discrete family and the loader,
    with a worker process and, straight, without; ``compiled`` as ``muon``; its ``cell`` a network that compiles in seconds."""
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    arguments = json.dumps({"variant": name, "directory": str(killed), "kill": 6})
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parents[2]
    died = subprocess.run(
        [sys.executable, "-m", "tests.training.toy", arguments], cwd=root, env=environment, capture_output=True, text=True
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert checkpoint.steps(killed / "checkpoints")[-1] == 4
    assert rows(killed)[-1]["step"] == 3
    torch.compiler.reset()
    variant(name, killed).fit(resume=True)
    torch.compiler.reset()
    variant(name, straight, workers=0).fit()
    assert (killed / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
    assert rows(straight)[-1]["step"] == 8
    same_state(killed, straight)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_after_the_step_and_the_resumed_run_is_the_straight_one(tmp_path: Path, number: signal.Signals) -> None:
    class Signalling(ToyLoader):
        def __next__(self) -> Any:
            if self.pack == 4:
                os.kill(os.getpid(), number)
            return super().__next__()

    stopped, straight = tmp_path / "stopped", tmp_path / "straight"
    with pytest.raises(Interrupted) as caught:
        trainer(stopped, recipe(ema=0.9), Signalling()).fit()
    assert caught.value.step == 5
    assert checkpoint.steps(stopped / "checkpoints") == [5]
    trainer(stopped, recipe(ema=0.9)).fit(resume=True)
    trainer(straight, recipe(ema=0.9)).fit()
    assert (stopped / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
    same_state(stopped, straight)


def test_a_bad_pack_moves_nothing_and_is_named_once_however_the_run_was_cut(tmp_path: Path) -> None:
    class Stopping(ToyLoader):
        def __next__(self) -> Any:
            if self.pack == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__next__()

    cut, straight = tmp_path / "cut", tmp_path / "straight"
    with pytest.raises(Interrupted):
        trainer(cut, recipe(log_every=1), Stopping(bad=(3,))).fit()
    trainer(cut, recipe(log_every=1), ToyLoader(bad=(3,))).fit(resume=True)
    trainer(straight, recipe(log_every=1), ToyLoader(bad=(3,))).fit()
    assert (cut / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
    same_state(cut, straight)
    skipped = [r for r in rows(cut) if "skipped_samples" in r]
    assert [(r["step"], r["skipped_samples"]) for r in skipped] == [(4, [30, 31])]
    assert "train/nll" not in next(r for r in rows(cut) if r["step"] == 4)


def test_three_bad_packs_in_a_row_stop_with_the_last_checkpoint_intact(tmp_path: Path) -> None:
    run = trainer(tmp_path, recipe(save_every=2), ToyLoader(bad=(2, 4, 5, 6, 7)))
    with pytest.raises(UserError, match=r"3 times in a row, last at step 7 .*; the checkpoint of step 6 is intact"):
        run.fit()
    tensors, host = checkpoint.load(checkpoint.folder(run.checkpoints, 6), World())
    assert host["masked_in_a_row"] == 2
    assert all(bool(t.isfinite().all()) for t in tensors.values())


def test_bad_packs_are_counted_across_a_resume(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="last at step 5"):
        trainer(tmp_path, recipe(save_every=2), ToyLoader(bad=(2, 3, 4))).fit()
    assert checkpoint.steps(tmp_path / "checkpoints") == [2, 4]
    with pytest.raises(UserError, match="last at step 5"):
        trainer(tmp_path, recipe(save_every=2), ToyLoader(bad=(4,))).fit(resume=True)


class StagedToy(ToyFamily):
    """Its loss counts as much as the step says."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def progress(self, step: int, steps: int) -> None:
        self.told.append((step, steps))

    def loss(self, model: nn.Module, batch: Any, noise: Any) -> dict[str, Any]:
        terms = super().loss(model, batch, noise)
        return {**terms, "nll": terms["nll"]._replace(sum=terms["nll"].sum * (1 + self.told[-1][0]))}


def test_a_family_is_told_every_step_once_however_the_run_was_cut(tmp_path: Path) -> None:
    """Two packs a step, and the second of them is drawn when a signal comes."""

    class Signalling(ToyLoader):
        def __next__(self) -> Any:
            if self.pack == 7:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__next__()

    def run(directory: Path, loader: ToyLoader) -> tuple[Trainer, StagedToy]:
        family = StagedToy()
        return Trainer(family, network(), loader, recipe(packs=2), directory, console=False), family  # type: ignore[arg-type]

    cut, family = run(tmp_path / "cut", Signalling())
    with pytest.raises(Interrupted):
        cut.fit()
    resumed, after = run(tmp_path / "cut", ToyLoader())
    resumed.fit(resume=True)
    straight, whole = run(tmp_path / "straight", ToyLoader())
    straight.fit()
    assert whole.told == [(step, 8) for step in range(8)] == family.told + after.told and len(family.told) == 4
    same_state(tmp_path / "cut", tmp_path / "straight")


def test_the_best_and_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    values = iter([5.0, 3.0, 4.0, 4.5, 6.0, 7.0])
    run = trainer(tmp_path, recipe(steps=6, save_every=1, evaluate_every=1, keep=2), evaluate=lambda model: {"bits": next(values)})
    run.fit()
    assert run.best == (3.0, 2)
    assert checkpoint.steps(run.checkpoints) == [2, 5, 6]


def test_evaluation_and_samples_see_the_averaged_weights_in_evaluation_mode(tmp_path: Path) -> None:
    seen: list[tuple[str, int, bool, float]] = []

    def look(kind: str, model: nn.Module, step: int) -> dict[str, float]:
        seen.append((kind, step, model.training, float(model.head.weight.detach().sum())))  # type: ignore[union-attr]
        return {"x": 1.0}

    run = trainer(
        tmp_path,
        recipe({"lr": 0.1}, steps=4, ema=0.99, evaluate_every=4, sample_every=2),
        evaluate=lambda model: look("evaluate", model, run.step),
        sample=lambda model, step: look("sample", model, step) and None,
    )
    run.fit()
    assert [(kind, step, training) for kind, step, training, _ in seen] == [
        ("sample", 2, False),
        ("evaluate", 4, False),
        ("sample", 4, False),
    ]
    with run.averaged() as model:
        averaged = float(model.head.weight.detach().sum())  # type: ignore[union-attr]
    assert seen[-1][3] == averaged
    assert averaged != float(run.model.head.weight.detach().sum())  # type: ignore[union-attr]
    assert run.model.training
    with pytest.raises(KeyError), run.averaged():
        raise KeyError
    assert run.model.training


def test_minutes_fix_the_steps_and_leave_no_trace_of_the_rehearsal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rehearsed = [0]

    def measured(minutes: float, step: Any, world: World) -> int:
        for _ in range(3):
            step()
            rehearsed[0] += 1
        return 7

    monkeypatch.setattr(budget, "measured_steps", measured)
    muon = {"kind": "muon"}
    timed, fixed = tmp_path / "timed", tmp_path / "fixed"
    run = trainer(timed, recipe(muon, minutes=2.0, ema=0.9, save_every=2), model=network(dropout=0.1))
    run.fit()
    trainer(fixed, recipe(muon, steps=7, ema=0.9, save_every=2), model=network(dropout=0.1)).fit()
    assert rehearsed == [3] and run.step == 7
    assert (timed / "metrics.jsonl").read_bytes() == (fixed / "metrics.jsonl").read_bytes()
    same_state(timed, fixed)
    monkeypatch.setattr(budget, "measured_steps", lambda *_: 99)
    again = trainer(timed, recipe(muon, minutes=2.0, ema=0.9, save_every=2), model=network(dropout=0.1))
    assert again.fit(resume=True)["step"] == 7 and again.steps == 7


def test_a_resumed_run_keeps_what_the_probe_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "matmul_rate", lambda m, n, k, dtype, *_: 9e9 if dtype == torch.bfloat16 else 1e9)
    trainer(tmp_path, recipe(steps=2, dtype="auto", compile="auto")).fit()
    monkeypatch.setattr(precision, "matmul_rate", lambda m, n, k, dtype, *_: 1e9)
    resumed = trainer(tmp_path, recipe(steps=3, dtype="auto", compile="auto"))
    resumed.fit(resume=True)
    assert resumed.dtype == torch.bfloat16 and resumed.model.compute_dtype == torch.bfloat16
    assert resumed.step == 3 and not resumed.compiled


def test_a_run_that_is_there_asks_for_resume(tmp_path: Path) -> None:
    trainer(tmp_path, recipe(steps=1)).fit()
    with pytest.raises(UserError, match="holds a run at step 1; go on with --resume"):
        trainer(tmp_path, recipe(steps=2)).fit()


def test_resume_without_a_checkpoint_starts(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "tokens": 3}\n')
    trainer(tmp_path, recipe(steps=2, log_every=1)).fit(resume=True)
    assert [r["step"] for r in rows(tmp_path)] == [1, 2] and "train/nll" in rows(tmp_path)[0]


def test_a_checkpoint_of_another_network_names_the_weight(tmp_path: Path) -> None:
    trainer(tmp_path, recipe(steps=1)).fit()
    other = trainer(tmp_path, recipe(steps=2))
    other.model.extra = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"checkpoint of step 1: weight 'extra\.weight' is missing"):
        other.fit(resume=True)


def test_other_threads_are_said_to_break_the_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(tmp_path, recipe(steps=1)).fit()
    trainer(tmp_path, recipe(steps=2, threads=2), console=True).fit(resume=True)
    assert "not bit for bit: threads 1 -> 2" in capsys.readouterr().out


def test_packs_must_divide_among_the_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "join", staticmethod(lambda: World(0, 2)))
    with pytest.raises(UserError, match=r"training\.packs: 3 packs a step do not divide among 2 ranks"):
        trainer(tmp_path, recipe(packs=3))
