"""Folders of language models that are not whole: one error that names the thing, through ``unveil.load``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")

import unveil
from tests.interop.test_text import published
from unveil.errors import UserError
from unveil.interop.tensors import WEIGHTS

LAST = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    published("Dream", tmp_path / "dream")
    return tmp_path / "dream"


def reweighted(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS)


def reconfigured(folder: Path, **settings: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def unmasked(folder: Path) -> None:
    reconfigured(folder, mask_token_id=None)
    place = folder / "tokenizer.json"
    place.write_text(place.read_text().replace("<|mask|>", "<|covered|>"))


def sharded(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    save_file({name: value for name, value in state.items() if name != LAST}, folder / "model-00001-of-00002.safetensors")
    names = {name: f"model-0000{1 + (name == LAST)}-of-00002.safetensors" for name in state}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": names}))


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-40])


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


MISTAKES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "a weight is missing": (lambda f: reweighted(f, lambda s: s.pop(LAST)), (LAST, "missing")),
    "a weight is left over": (lambda f: reweighted(f, lambda s: s.update({"model.extra": torch.ones(1)})), ("model.extra",)),
    "a weight is misshapen": (lambda f: reweighted(f, lambda s: s.update({LAST: torch.ones(3, 5)})), ("[3, 5]", "[32, 48]")),
    "no such model": (lambda f: reconfigured(f, model_type="mamba"), ("mamba",)),
    "no mask token": (unmasked, ("config.json", "mask_token_id is missing")),
    "no weights but pickled ones": (pickled, ("safetensors",)),
    "a file that was cut": (cut, (WEIGHTS,)),
    "a shard that is not there": (sharded, ("model-00002-of-00002.safetensors",)),
    "settings that are no JSON": (lambda f: (f / "config.json").write_text("{"), ("config.json",)),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), ("tokenizer.json",)),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_one_line_names_what_is_wrong(name: str, folder: Path) -> None:
    assert unveil.load(folder).model is not None
    break_it, words = MISTAKES[name]
    break_it(folder)
    with pytest.raises(UserError) as caught:
        unveil.load(folder)
    assert "\n" not in str(caught.value) and caught.value.remedy
    assert all(word in str(caught.value) for word in words), str(caught.value)
