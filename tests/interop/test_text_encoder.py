"""Embeddings of an encoder of transformers: its own numbers, pooled, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")

import transformers

from unveil.errors import UserError
from unveil.interop.text_encoder import CLASSES, TextEncoder

TEXTS = ["a red square", "blue"]
KINDS = ["bert", "t5", "clip"]


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_theirs_alone_and_among_others(kind: str, text_encoder_folder: Callable[[str], Path]) -> None:
    folder = text_encoder_folder(kind)
    ours, tokenizer = TextEncoder(folder), transformers.AutoTokenizer.from_pretrained(folder)
    name = {"bert": "BertModel", "t5": "T5EncoderModel", "clip": "CLIPTextModel"}[kind]
    theirs = getattr(transformers, name).from_pretrained(folder)
    together = ours.encode(TEXTS)
    assert together.shape == (2, 8) and ours.width == 8
    for i, text in enumerate(TEXTS):
        with torch.no_grad():
            said = theirs(torch.tensor([tokenizer(text)["input_ids"]]))
        wanted = said.pooler_output[0] if kind == "clip" else said.last_hidden_state[0].mean(0)
        torch.testing.assert_close(together[i], wanted, rtol=0, atol=1e-6)
    assert not torch.allclose(together[0], ours.encode(["a blue square"])[0], atol=1e-3)


def test_long_texts_are_cut(text_encoder_folder: Callable[[str], Path]) -> None:
    encoder = TextEncoder(text_encoder_folder("bert"))
    assert torch.equal(encoder.encode(["red " * 50]), encoder.encode(["red " * 90]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_has_the_digest(kind: str, text_encoder_folder: Callable[[str], Path], tmp_path: Path) -> None:
    ours = TextEncoder(text_encoder_folder(kind))
    ours.save(tmp_path)
    copy = TextEncoder(tmp_path)
    assert copy.digest == ours.digest and torch.equal(copy.encode(TEXTS), ours.encode(TEXTS))
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace('"blue"', '"green"'))
    assert TextEncoder(tmp_path).digest != ours.digest


@pytest.fixture
def copied(text_encoder_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    shutil.copytree(text_encoder_folder("bert"), tmp_path / "bert")
    return tmp_path / "bert"


def test_another_network_is_refused_by_name(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(UserError, match=r"model_type is 'gpt2'.*BertModel"):
        TextEncoder(copied)
    assert "gpt2" not in CLASSES
    with pytest.raises(UserError, match="is missing"):
        TextEncoder(copied / "nothing")


def test_weights_that_lack_one_or_are_pickled_are_refused(copied: Path) -> None:
    state = load_file(copied / "model.safetensors")
    lacking = {name: tensor for name, tensor in state.items() if name != "embeddings.word_embeddings.weight"}
    save_file(lacking, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"missing keys.*word_embeddings"):
        TextEncoder(copied)
    (copied / "model.safetensors").unlink()
    torch.save(state, copied / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        TextEncoder(copied)


def test_a_tokenizer_of_another_network_is_refused(copied: Path) -> None:
    content = json.loads((copied / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {f"word {i}": 7 + i for i in range(5)}
    (copied / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="12 tokens, the network 7"):
        TextEncoder(copied)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copied / name).unlink()
    with pytest.raises(UserError, match="holds no tokenizer"):
        TextEncoder(copied)
