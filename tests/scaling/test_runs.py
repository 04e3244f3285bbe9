"""What a directory of runs says, and what it may not hold."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.scaling.made import BASE, bowl, write
from unveil.errors import UserError
from unveil.scaling.laws import DEEPSEEK
from unveil.scaling.runs import read
from unveil.scaling.sweep import claim, isoflop


def test_points_by_budget_and_what_is_missing(tmp_path: Path) -> None:
    choices = isoflop(BASE, [1e14, 3e14], [0.5, 1, 2], DEEPSEEK)
    claim("isoflop", choices, tmp_path / "s")
    names = list(choices)
    write({name: choices[name] for name in names[:-1]}, tmp_path / "s", bowl(0.5, 0))
    (tmp_path / "s" / names[0] / "evidence.json").unlink()
    found = read(tmp_path / "s")
    assert list(found.unfinished) == [names[0], names[-1]] and [len(points) for points in found.budgets] == [2, 2]
    point, choice = found.points[0], choices[names[1]]
    assert (point.name, point.scale, point.tokens, point.batch) == (names[1], choice.scale, choice.tokens, choice.batch)
    assert found.varies_model and found.family == "autoregressive"


def test_what_is_no_sweep(tmp_path: Path) -> None:
    choices = isoflop(BASE, [1e14], [0.5, 1, 2], DEEPSEEK)
    first, second, third = choices
    write(choices, tmp_path / "s", bowl(0.5, 0))
    other = replace(choices[third].recipe, data=replace(choices[third].recipe.data, limit=77))
    shutil.rmtree(tmp_path / "s" / third)
    write({third: replace(choices[third], recipe=other)}, tmp_path / "s", bowl(0.5, 0))
    with pytest.raises(UserError, match=r"data\.limit: 77 in .*fit them apart"):
        read(tmp_path / "s")
    shutil.rmtree(tmp_path / "s" / third)
    (tmp_path / "s" / second / "metrics.jsonl").write_text('{"step": 1, "tokens": 1}\n')
    with pytest.raises(UserError, match=r"no eval/bits_per_byte; sweep a recipe with data\.validation"):
        read(tmp_path / "s")
    (tmp_path / "s" / second / "metrics.jsonl").write_text('{"step"')
    with pytest.raises(UserError, match="damaged"):
        read(tmp_path / "s")
    for name in (first, second):
        (tmp_path / "s" / name / "evidence.json").unlink()
    with pytest.raises(UserError, match=f"none of its 2 runs is finished: {first}"):
        read(tmp_path / "s")
    (tmp_path / "empty").mkdir()
    for folder, said in (("empty", "no runs"), ("none", "no such directory")):
        with pytest.raises(UserError, match=said):
            read(tmp_path / folder)
