"""Checkpoints that torch pickled: the averaged weights come out, and nothing in them is run."""

from __future__ import annotations

import os
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from unveil.errors import UserError
from unveil.interop import pickled


class Config:
    """What authors pickle beside their weights."""

    def __init__(self) -> None:
        self.width = 3


class Trap:
    """Leaves a file where it is run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def state() -> OrderedDict[str, torch.Tensor]:
    wide = torch.arange(12.0).reshape(3, 4)
    weights = {"_orig_mod.module.first": wide.T, "module.second": wide[1:, :2], "third": torch.ones(2).half()}
    return OrderedDict(weights | {"rotary_emb.inv_freq": torch.ones(2)})


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_weights_come_under_their_names_in_the_network_whatever_their_strides(key: str, tmp_path: Path) -> None:
    found = pickled.read(saved(tmp_path / "a.ckpt", {key: state(), "step": 3, "hyper_parameters": Config()}))
    assert list(found) == ["first", "second", "third", "rotary_emb.inv_freq"]
    for mine, theirs in zip(found.values(), state().values(), strict=True):
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)


def test_averages_take_the_place_of_parameters_and_leave_buffers(tmp_path: Path) -> None:
    weights = state()
    shadows = [torch.full_like(value, 7.0) for name, value in weights.items() if not pickled.is_buffer(name)]
    found = pickled.read(saved(tmp_path / "a.ckpt", {"state_dict": weights, "ema": {"decay": 0.9999, "shadow_params": shadows}}))
    assert [bool((value == 7).all()) for value in found.values()] == [True, True, True, False]


def test_what_is_not_on_the_list_is_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    found = pickled.read(saved(tmp_path / "a.ckpt", {"state_dict": state(), "callbacks": [Trap(mark), Config()]}))
    assert len(found) == 4 and not mark.exists()
    assert torch.load(tmp_path / "a.ckpt", weights_only=False)["callbacks"][0] is None and mark.exists(), "the trap is a real one"


def test_a_weight_that_is_no_tensor_is_refused_and_not_run(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.ckpt", {"state_dict": {"first": torch.ones(1), "second": Trap(tmp_path / "mark")}})
    with pytest.raises(UserError, match="no weights under 'state_dict' or 'model'"):
        pickled.read(path)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"step": 3}, "no weights"),
        ([torch.ones(2)], "no weights"),
        ({"state_dict": {}}, "no weights"),
        ({"state_dict": {3: torch.ones(2)}}, "no weights"),
        ({"model": {"first": torch.ones(2, dtype=torch.int8)}}, "numbers of the kind 'CharStorage'"),
        ({"state_dict": state(), "ema": {"shadow_params": torch.ones(3)}}, "no list of tensors"),
        ({"state_dict": state(), "ema": {"shadow_params": [1.0, 2.0, 3.0]}}, "no list of tensors"),
        ({"state_dict": state(), "ema": {"shadow_params": [torch.ones(2)]}}, "1 averages for 3 parameters"),
        ({"state_dict": {"first": torch.ones(2)}, "ema": {"shadow_params": [torch.ones(3)]}}, r"average of 'first' has shape \[3\]"),
    ],
    ids=["none", "a list", "empty", "no name", "bytes", "one average", "numbers", "too few averages", "misshapen average"],
)
def test_what_holds_no_whole_network_is_named(content: object, problem: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=problem) as caught:
        pickled.read(saved(tmp_path / "a.pth", content))
    assert caught.value.field == str(tmp_path / "a.pth")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole.ckpt", {"state_dict": state()})
    (tmp_path / "cut.ckpt").write_bytes(whole.read_bytes()[:-200])
    (tmp_path / "text.ckpt").write_text("no zip")
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(tmp_path / "short.ckpt", "w") as short:
        for name in source.namelist():
            data = source.read(name)
            short.writestr(name, data[:-4] if "/data/" in name else data)
    for name, problem in (("cut", "no checkpoint of"), ("text", "no checkpoint of"), ("gone", "no checkpoint of"), ("short", "corrupted")):
        with pytest.raises(UserError, match=problem):
            pickled.read(tmp_path / f"{name}.ckpt")
