"""The grid, and the runs that go on where they were; one real sweep through the command line."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.scaling.lonely import killed_once
from tests.scaling.made import BASE
from unveil import cli
from unveil.errors import UserError
from unveil.scaling import sweep
from unveil.scaling.configure import Choice
from unveil.scaling.engine import ENGINES, Processes
from unveil.scaling.laws import DEEPSEEK


class Here(Processes):
    """Processes that are none."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def __exit__(self, *error: Any) -> None:
        return None

    def submit(self, function: Any, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future


class Trained:
    """In the place of training: notes what it was asked for and leaves what a run leaves; stops at what ``stops`` names."""

    def __init__(self, **stops: Exception) -> None:
        self.stops, self.asked = stops, list[str]()

    def __call__(self, recipe: Any, directory: Path, resume: bool, console: bool) -> None:
        assert resume and not console
        self.asked.append(directory.name)
        directory.mkdir(exist_ok=True)
        if f"run{len(self.asked)}" in self.stops:
            raise self.stops[f"run{len(self.asked)}"]
        (directory / sweep.FINISHED).write_text("{}")


def second(choice: Choice) -> float:
    return 1.0


def test_a_grid_at_equal_compute() -> None:
    choices = sweep.isoflop(BASE, [1e14, 1e15], [0.5, 1, 2], DEEPSEEK)
    assert len(choices) == 6 and len({c.scale for c in choices.values()}) == 6
    for choice in choices.values():
        assert choice.scale * choice.tokens == pytest.approx(choice.compute, rel=0.01)
        assert choice.recipe.training.save_every and choice.recipe.optimizer.lr == DEEPSEEK.lr(choice.compute)
    with pytest.raises(UserError, match="--sizes"):
        sweep.isoflop(BASE, [1e14], [1, 1.001, 2], DEEPSEEK)


def test_a_grid_of_learning_rates_and_batches_has_one_network() -> None:
    choices = sweep.lr_batch(BASE, [1e14], [0.5, 2], [1, 2], DEEPSEEK)
    assert len(choices) == 4 and len({c.recipe.model for c in choices.values()}) == 1
    assert len({(c.recipe.optimizer.lr, c.batch) for c in choices.values()}) == 4


def test_what_is_finished_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sweep.ENGINES, "local", Here)
    choices = sweep.isoflop(BASE, [1e14], [0.5, 1, 2, 4], DEEPSEEK)
    first, said = Trained(run2=UserError("loss", "is not finite", "lower optimizer.lr")), list[str]()
    sweep.claim("isoflop", choices, tmp_path / "s")
    with pytest.raises(UserError, match=r"loss: is not finite.*goes on"):
        sweep.run(choices, tmp_path / "s", 1, first, second, said.append)
    names = list(choices)
    assert first.asked == names and "[4/4]" in said[3] and "failed" in said[1] and "0.0 min left" in said[3]
    rows = {row[0]: row[-1] for row in sweep.described(choices, tmp_path / "s", lambda c: 120.0, 1000)}
    assert rows[names[0]] == "done" and rows[names[1]] == "2.0"
    again = Trained()
    sweep.run(choices, tmp_path / "s", 1, again, second, said.append)
    assert again.asked == [names[1]]


def test_a_worker_that_dies_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sweep.ENGINES, "local", Here)
    choices = sweep.isoflop(BASE, [1e14], [0.5, 1, 2], DEEPSEEK)
    sweep.claim("isoflop", choices, tmp_path / "s")
    with pytest.raises(UserError, match="worker died"):
        sweep.run(choices, tmp_path / "s", 1, Trained(run2=BrokenProcessPool()), second, lambda line: None)
    again = Trained()
    sweep.run(choices, tmp_path / "s", 2, again, second, lambda line: None)
    assert again.asked == list(choices)[1:]


def test_a_directory_keeps_its_sweep(tmp_path: Path) -> None:
    choices = sweep.isoflop(BASE, [1e14], [0.5, 1, 2], DEEPSEEK)
    sweep.claim("isoflop", choices, tmp_path / "s")
    more = sweep.isoflop(BASE, [1e15], [0.5, 1, 2], DEEPSEEK)
    sweep.claim("isoflop", more, tmp_path / "s")
    assert json.loads((tmp_path / "s" / sweep.FILE).read_text())["runs"] == [*choices, *more]
    with pytest.raises(UserError, match="grid 'isoflop'"):
        sweep.claim("lr-batch", choices, tmp_path / "s")
    name, choice = next(iter(choices.items()))
    (tmp_path / "s" / name).mkdir()
    from unveil import recipe as recipes

    (tmp_path / "s" / name / "recipe.toml").write_text(recipes.dumps(replace(choice.recipe, seed=5)))
    with pytest.raises(UserError, match="seed: 0 now, 5 in"):
        sweep.claim("isoflop", choices, tmp_path / "s")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(UserError, match="no sweep"):
        sweep.claim("isoflop", choices, tmp_path / "other")


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of a sweep of six runs of a few steps, without where it goes."""
    monkeypatch.setenv("UNVEIL_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {i} tells that {i} and {i} are {2 * i}.\n" for i in range(900)))
    settings = "--training.compile off --training.save-every 10000 --data.split tail --evaluation.tokens 512 --sampler.steps 2"
    return f"scaling sweep tiny --data {text} --compute 3e8,1e9 --sizes 9,18,36 {settings}".split()


def test_a_real_sweep_and_its_fit(line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a process of their own. So short, the smallest network is best, and the fit says so."""
    line += ["--out", str(tmp_path / "s")]
    cli.main(line)
    shown = capsys.readouterr().out
    assert shown.count(" done, about ") == 6 and "6 runs" in shown
    assert len(list((tmp_path / "s").glob("*/final/model.safetensors"))) == 6
    cli.main([*line, "--dry"])
    assert capsys.readouterr().out.count("  done\n") == 6
    with pytest.raises(SystemExit) as stopped:
        cli.main(["scaling", "fit", str(tmp_path / "s")])
    assert stopped.value.code == 2 and "--sizes" in capsys.readouterr().err


class Dies:
    """Training whose first worker is killed when it has left something; that run goes on the second time."""

    def __call__(self, recipe: Any, directory: Path, resume: bool, console: bool) -> None:
        directory.mkdir(exist_ok=True)
        if not list(directory.parent.glob("*/begun")):
            (directory / "begun").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        (directory / sweep.FINISHED).write_text("{}")


def test_a_real_ray_cluster_begins_again_what_a_killed_worker_had_begun(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with ENGINES["ray"](2) as engine:
        futures = [engine.submit(killed_once, number, tmp_path) for number in range(3)]
        assert sorted(future.result() for future in futures) == [0, 1, 2]
    assert len(list(tmp_path.glob("begun-*"))) == 1
    assert print.__module__ == "builtins", "Ray would take its place"


@pytest.mark.slow
def test_a_sweep_on_a_real_ray_cluster(tmp_path: Path) -> None:
    """Of two workers, one of which is killed; Ray begins its run again."""
    pytest.importorskip("ray")
    choices = sweep.isoflop(BASE, [1e14], [0.5, 1, 2], DEEPSEEK)
    sweep.claim("isoflop", choices, tmp_path / "s")
    said: list[str] = []
    sweep.run(choices, tmp_path / "s", 2, Dies(), second, said.append, "ray")
    assert all(sweep.finished(tmp_path / "s", name) for name in choices) and len(said) == 3


@pytest.mark.slow
def test_runs_on_ray_are_those_of_local_processes(line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bit for bit."""
    pytest.importorskip("ray")
    line[line.index("--compute") + 1] = "3e8"
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    cli.main([*line, "--out", str(ours), "--training.threads", "1"])
    cli.main([*line, "--out", str(theirs), "--training.threads", "1", "--engine", "ray", "--workers", "2"])
    assert capsys.readouterr().out.count(" done, about ") == 6
    files = sorted(p.relative_to(ours) for p in ours.glob("*/final/model.safetensors"))
    assert len(files) == 3 and all((ours / f).read_bytes() == (theirs / f).read_bytes() for f in files)
