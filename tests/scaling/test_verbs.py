"""What `unveil scaling plan` prints and writes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from unveil import cli
from unveil import recipe as recipes
from unveil.scaling.cost import model_scale


def test_the_recipe_of_a_plan_loads_and_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "my.toml"
    cli.main(["scaling", "plan", "llada-python", "--compute", "1e15", "--out", str(path), "--data.context", "128"])
    recipe = recipes.load(str(path))
    spent = model_scale(recipe) * recipe.training.steps * recipe.training.packs * recipe.data.packing_length
    assert spent == pytest.approx(1e15, rel=0.01) and recipe.data.context == 128 and recipe.family == "discrete"
    assert f"unveil train {path}" in capsys.readouterr().out
    cli.main(["plan", str(path)])
    assert "FLOPs per token" in capsys.readouterr().out


def test_lines_to_paste_are_the_same_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["scaling", "plan", "ar-python", "--compute", "1e20"]
    cli.main([*line, "--out", str(tmp_path / "whole.toml")])
    capsys.readouterr()
    cli.main(line)
    shown = capsys.readouterr().out
    assert "5 times outside 1e+17 to 2e+19" in shown and shown.count("extrapolated") == 1 and "by chinchilla" in shown
    lines = shown[shown.index("base = ") :]
    assert tomllib.loads(lines)["base"] == "ar-python"
    (tmp_path / "pasted.toml").write_text(lines)
    assert not recipes.differences(recipes.load(str(tmp_path / "pasted.toml")), recipes.load(str(tmp_path / "whole.toml")))


def test_a_time_is_a_budget(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("unveil.training.precision.peak_flops", lambda dtype, device: 1e11)
    cli.main(["scaling", "plan", "ar-python", "--minutes", "30"])
    assert "30.0 min" in (shown := capsys.readouterr().out) or "29.9 min" in shown or "30.1 min" in shown
