"""The published models on the meta device: exactly their weights in their shapes, both ways, and the listing they would be saved with."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.interop.published import BUFFERS, BYTES, PARAMETERS, PUBLISHED, TENSORS, Shapes
from unveil.config import DiscreteRecipe, ScoreConfig, TextDataConfig, TransformerConfig
from unveil.interop import decoder, tensors, told
from unveil.interop.state import exported
from unveil.interop.text import kind_of, network
from unveil.nn.layout import Bidirectional, BlockCausal, Causal
from unveil.text.vocabulary import Vocabulary


def shapes(state: dict[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_and_shapes_are_the_published(name: str) -> None:
    given, expected = PUBLISHED[name]
    built, parts, _ = network(given, "config.json")
    assert built.embedding.weight.device.type == "meta"
    assert shapes(exported(built, parts)) == expected
    theirs = [entry for part in parts for entry in part.theirs]
    assert len(theirs) == len(set(theirs)) == len(expected) == TENSORS.get(name, len(expected))
    assert {part.ours for part in parts} == {entry for entry, _ in built.named_parameters()}
    held = sum(math.prod(shape) for shape in expected.values())
    assert held == sum(p.numel() for p in built.parameters()) == PARAMETERS.get(name, held)
    if name in BYTES:
        assert round(4 * held, -6) == BYTES[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_their_tensors_become_ours_row_by_row(name: str) -> None:
    """The other way: what is read for each of our parameters has its shape, without any of its numbers."""
    given, expected = PUBLISHED[name]
    built, parts, _ = network(given, "config.json")
    ours = dict(built.named_parameters())
    for part in parts:
        pieces = [part.layout.read(torch.empty(expected[entry], device="meta")) for entry in part.theirs]
        assert torch.cat(pieces).shape == ours[part.ours].shape
        if part.rows:
            assert [len(piece) for piece in pieces] == list(part.rows)


LAYOUTS = {"llama": Causal(), "sdar": BlockCausal(4)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_not_in_the_weights(name: str) -> None:
    """Context, attention, and that a network that was autoregressive is read a token later."""
    given, _ = PUBLISHED[name]
    built, _, context = network(given, "config.json")
    kind = kind_of(given, "config.json")
    block = given.get("block_size", 0)
    layout = BlockCausal(block) if kind == "bd3lm" and block < context else LAYOUTS.get(kind, Bidirectional())
    assert built.layout == layout and built.config.shift == (kind == "Dream")
    assert context == {"llada": 4096, "Dream": 131072, "sdar": 32768, "llama": 4096}.get(kind, 1024)
    assert built.config.time_conditioning == (kind == "sedd")
    assert built.config.rope_theta == {"llada": 5e5, "Dream": 1e6, "sdar": 1e6}.get(kind, 1e4)
    assert built.config.norm_eps == (1e-6 if kind in ("Dream", "sdar", "llama") else 1e-5)


@pytest.mark.parametrize("name", ["mdlm-owt", "bd3lm-owt-block_size4", "sedd-small"])
def test_buffers_beside_the_weights(name: str) -> None:
    given, _ = PUBLISHED[name]
    built, _, _ = network(given, "config.json")
    kind = kind_of(given, "config.json")
    found = told.buffers(built.config, "" if kind == "sedd" else told.BACKBONE, given)
    assert shapes(found) == BUFFERS[kind]


def written(name: str, config: TransformerConfig, size: int, context: int) -> dict[str, Any]:
    """Settings as we would write them."""
    given, _ = PUBLISHED[name]
    kind = kind_of(given, "config.json")
    if kind == "sedd":
        v = Vocabulary(size, 50256, 50256, 50257 if size == 50258 else -1, -1, -1, -1)
        recipe = DiscreteRecipe(data=TextDataConfig(), objective=told.objective(given, "config.json"))
        assert isinstance(recipe.objective, ScoreConfig)
        return told.sedd_settings(config, recipe.objective, v, context)
    if kind in ("mdlm", "bd3lm"):
        return told.mdlm_settings(config, size, context)
    if kind == "llada":
        return decoder.llada_settings(config, size, context)
    plain = TransformerConfig(**{**vars(config), "shift": False})
    return decoder.llama_settings(plain, size, context)


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_that_we_write_say_what_theirs_say(name: str) -> None:
    given, _ = PUBLISHED[name]
    built, _, context = network(given, "config.json")
    found = written(name, built.config, len(built.embedding.weight), context)
    for table in ("model", "graph", "noise"):  # of SEDD
        theirs = given.get(table, {})
        assert all(theirs[key] == value for key, value in found.pop(table, {}).items())
    for key in found.keys() & given.keys() - {"model_type", "architectures"}:
        assert found[key] == given[key], key


def test_a_listing_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLaDA-8B in bf16 as save would lay it down: each weight in one file, no file above the limit, the sizes in the listing."""
    monkeypatch.setattr(tensors, "save_file", lambda state, path, metadata: None)
    _, expected = PUBLISHED["LLaDA-8B"]
    state = {name: torch.empty(1, dtype=torch.bfloat16).expand(shape) for name, shape in expected.items()}
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda self: self)  # 16 GB are listed, not made
    monkeypatch.setattr(torch.Tensor, "clone", lambda self: self)
    tensors.save(state, tmp_path)
    listing = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert listing["weight_map"].keys() == expected.keys() and listing["metadata"]["total_size"] == 2 * PARAMETERS["LLaDA-8B"]
    sizes: dict[str, int] = {}
    for name, file in listing["weight_map"].items():
        sizes[file] = sizes.get(file, 0) + 2 * math.prod(expected[name])
    assert max(sizes.values()) <= 4 << 30 and sorted(sizes) == [
        f"model-{i:05d}-of-{len(sizes):05d}.safetensors" for i in range(1, len(sizes) + 1)
    ]


def test_files_of_a_listing_are_read_as_one(tmp_path: Path) -> None:
    state = {f"w{i}": torch.randn(5, i + 1).bfloat16() for i in range(7)}
    tensors.save(state, tmp_path, largest=150)
    assert len(list(tmp_path.glob("model-0000?-of-00002.safetensors"))) == 2
    found, place = tensors.stored(tmp_path)
    assert place == tmp_path and found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)
