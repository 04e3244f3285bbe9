"""Folders of language models that are not whole: one error that names the thing, through the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend

pytest.importorskip("transformers")

import unveil
from tests.interop.test_text import V, published
from tests.mistakes import answered
from unveil.interop.tensors import WEIGHTS

LAST = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("mistakes") / "dream"
    published("Dream", place)
    (place / "tokenizer_config.json").write_text("{}")
    return place


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "dream")


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


def twice(folder: Path) -> None:
    sharded(folder)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}))
    for name in "ab":
        save_file({LAST: torch.ones(32, 48)}, folder / f"{name}.safetensors")


MISTAKES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "a weight is missing": (lambda f: reweighted(f, lambda s: s.pop(LAST)), (f"{WEIGHTS}: weight '{LAST}' is missing", "both whole")),
    "a weight is left over": (
        lambda f: reweighted(f, lambda s: s.update({"model.extra": torch.ones(1)})),
        (f"{WEIGHTS}: weight 'model.extra' is not one of", "both whole"),
    ),
    "a weight is misshapen": (
        lambda f: reweighted(f, lambda s: s.update({LAST: torch.ones(3, 5)})),
        (f"{WEIGHTS}: weight '{LAST}' has shape [3, 5], wanted [32, 48]", "both whole"),
    ),
    "a weight lies in two files": (twice, (f"b.safetensors: weight '{LAST}' lies in a.safetensors too", "one download")),
    "no such model": (lambda f: reconfigured(f, model_type="mamba"), ("config.json: model_type is 'mamba'", "not read", "did you mean")),
    "no mask token": (unmasked, ("config.json: mask_token_id is missing", "write mask_token_id into it")),
    "a mask beyond the network": (lambda f: reconfigured(f, mask_token_id=V), ("config.json: its special tokens fit no network of 300",)),
    "no weights but pickled ones": (pickled, ("pytorch_model.bin: holds pickled weights", "can run code", "safetensors")),
    "a file that was cut": (cut, (f"{WEIGHTS}: is truncated or corrupted", "download it again")),
    "a shard that is not there": (sharded, ("model-00002-of-00002.safetensors: is missing", "the whole download")),
    "a listing without places": (
        lambda f: ((f / WEIGHTS).unlink(), (f / f"{WEIGHTS}.index.json").write_text("{}")),
        (f"{WEIGHTS}.index.json: is corrupted: no weight_map", "the whole download"),
    ),
    "settings that are no JSON": (lambda f: (f / "config.json").write_text("{"), ("config.json: is no JSON", "download it again")),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), ("tokenizer.json: is missing", "the whole folder")),
    "a tokenizer that is none": (lambda f: (f / "tokenizer.json").write_text("[]"), ("tokenizer.json: is no tokenizer.json",)),
    "a tokenizer of another model": (lambda f: larger(f), ("tokenizer.json: has 301 tokens, the network knows 300", "same download")),
}


def larger(folder: Path) -> None:
    made = Backend.from_file(str(folder / "tokenizer.json"))
    made.add_tokens([f"more{i}" for i in range(V + 1 - made.get_vocab_size())])
    made.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("name", MISTAKES)
def test_one_line_names_what_is_wrong(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    break_it, words = MISTAKES[name]
    break_it(folder)
    said = answered(["sample", str(folder)], capsys)
    assert all(word in said for word in words), said


def test_the_folder_is_whole_before(folder: Path) -> None:
    assert unveil.load(folder).model is not None
