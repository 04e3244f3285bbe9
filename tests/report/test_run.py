from __future__ import annotations

from pathlib import Path

import pytest

from unveil.errors import UserError
from unveil.metrics.compression import Score
from unveil.report.evidence import Evidence
from unveil.report.run import COLOURS, RunReport


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    folder = tmp_path / "my-run"
    folder.mkdir()
    (folder / "recipe.toml").write_text('family = "discrete"\n[model]\nwidth = 8\n')
    (folder / "environment.json").write_text('{"torch": "2.13", "cpu": {"cores": 2, "flags": ["a", "b"]}}')
    (folder / "metrics.jsonl").write_text(
        '{"step": 1, "tokens": 10, "train/loss": 3.0, "train/bound": 4.0}\n'
        '{"step": 1, "tokens": 10, "eval/bits_per_byte": 2.0}\n'
        '{"step": 2, "tokens": 20, "train/loss": 2.5, "train/bound": 3.5}\n'
        '{"step": 3, "tok'
    )
    (folder / "timing.jsonl").write_text(
        "".join(
            f'{{"step": {i}, "tokens": {i}, "tokens_per_second": {r}, "seconds": {60 * i}, "utilisation": 0.5}}\n'
            for i, r in ((1, 10), (2, 3000), (3, 2000))
        )
    )
    return folder


def test_a_directory_is_read_and_a_torn_last_line_passed_over(directory: Path) -> None:
    run = RunReport.read(directory, COLOURS + 1)
    assert (run.name, run.index, run.recipe["model"]["width"]) == ("my-run", 1, 8)
    assert run.loss == ([10.0, 20.0], [4.0, 3.5])
    assert run.series("eval/bits_per_byte") == ([10.0], [2.0])
    assert run.versions == [("torch", "2.13"), ("cpu.cores", "2"), ("cpu.flags", "a, b")]


def test_costs_are_medians_and_totals(directory: Path) -> None:
    Evidence(costs={"parameters": 1500, "flops_per_token": 9000, "peak_flops": 3.2e11, "memory_bytes": 2**30}).save(directory)
    costs = RunReport.read(directory).costs
    assert {name: value for name, (_, value) in costs.items()} == {
        "parameters": "1.5 k",
        "FLOPs per token": "9 k",
        "tokens trained on": "20",
        "training time": "3.0 min",
        "tokens per second": "2 k",
        "utilisation": "50%",
        "peak memory": "1.00 GiB",
    }
    assert "320 GFLOP/s" in costs["utilisation"][0]


def test_best_baseline_is_the_primed_one_with_the_fewest_bits(directory: Path) -> None:
    assert RunReport.read(directory).best_baseline is None
    Evidence(baselines=[Score("xz", 1.2, 1.5), Score("order-3", 3.0, 1.4)]).save(directory)
    assert RunReport.read(directory).best_baseline == ("order-3", 1.4)


def test_what_is_no_run_or_damaged_is_said(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"recipe\.toml"):
        RunReport.read(tmp_path)
    (directory / "metrics.jsonl").write_text("nonsense\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: is damaged"):
        RunReport.read(directory)
    (directory / "recipe.toml").write_text("= 1")
    with pytest.raises(UserError, match="is not TOML"):
        RunReport.read(directory)
