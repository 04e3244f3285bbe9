"""DeepSeek-V3's layout both ways: logits of `transformers`, the further layers, files in FP8 blocks, experts apart and in one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

pytest.importorskip("transformers")

import transformers

from tests.interop.test_text import ROTATION, V, logits, sequences, tokenizer
from tests.mistakes import answered
from unveil.interop import deepseek
from unveil.interop.tensors import WEIGHTS
from unveil.interop.text import network, read, write
from unveil.nn.packed import Packed

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": V,
}
SIZES |= {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 6, "max_position_embeddings": 64}
SIZES |= {"n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 3, "moe_intermediate_size": 12, "first_k_dense_replace": 1}
SIZES |= {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "rms_norm_eps": 1e-6}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 32, "beta_slow": 1}
VARIANTS: dict[str, dict[str, Any]] = {
    "low-rank queries": {"q_lora_rank": 12},
    "full queries, stretched": {"q_lora_rank": None, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "rope_theta": 1e4}},
    "all dense": {"q_lora_rank": 12, "first_k_dense_replace": 3},
    "pairs apart": {"q_lora_rank": 12, "rope_interleave": False},
}


def theirs(folder: Path, variant: str) -> Any:
    made = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**SIZES | VARIANTS[variant]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in (*made.named_parameters(), *made.named_buffers()):
            if p.is_floating_point() and "inv_freq" not in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.2 + ("norm" in name))
    made = made.eval()
    made.set_experts_implementation("eager")
    folder.mkdir()
    made.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | {"bos_token_id": 256, "eos_token_id": 257}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer(folder)
    return made


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_they_save_is_read_with_their_logits_and_comes_back(variant: str, tmp_path: Path) -> None:
    made = theirs(tmp_path / "theirs", variant)
    found = read(tmp_path / "theirs")
    assert found.model.config.mtp.depths == 0, "their class leaves the further layers out, and so do its files"
    for given, ours in zip(sequences(), logits(found.model, sequences()), strict=True):
        torch.testing.assert_close(ours, made(given[None]).logits[0].detach(), rtol=0, atol=ROTATION)
    write(tmp_path / "ours", found.recipe, found.tokenizer, found.model)
    first, second = (load_file(tmp_path / name / WEIGHTS) for name in ("theirs", "ours"))
    assert first.keys() == second.keys()
    if variant != "pairs apart":  # written as the release has them
        assert all(torch.equal(first[name], second[name]) for name in first)
    again = transformers.DeepseekV3ForCausalLM.from_pretrained(tmp_path / "ours").eval()
    again.set_experts_implementation("eager")
    torch.testing.assert_close(again(sequences()[0][None]).logits, made(sequences()[0][None]).logits, rtol=0, atol=ROTATION)


@pytest.fixture
def ahead(tmp_path: Path) -> Path:
    """A folder with a further layer, as released: with copies of embedding and head."""
    theirs(tmp_path / "without", "low-rank queries")
    found = read(tmp_path / "without")
    settings = json.loads((tmp_path / "without" / "config.json").read_text()) | {"num_nextn_predict_layers": 1}
    built, names, _ = network(settings, "config.json")
    generator = torch.Generator().manual_seed(1)
    built = built.to_empty(device="cpu")
    with torch.no_grad():
        for name, p in (*built.named_parameters(), *built.named_buffers()):
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2 + ("norm" in name) if p.is_floating_point() else p)
    recipe = found.recipe
    object.__setattr__(recipe, "model", built.config)
    write(tmp_path / "ahead", recipe, found.tokenizer, built)
    assert len(names) > len(network({**settings, "num_nextn_predict_layers": 0}, "config.json")[1])
    return tmp_path / "ahead"


def ahead_of(folder: Path) -> list[Tensor]:
    from unveil.nn.mtp import states_ahead

    model = read(folder).model
    with torch.no_grad():
        return states_ahead(model, Packed.of(sequences()))


def test_the_further_layer_has_the_next_number_and_copies(ahead: Path, tmp_path: Path) -> None:
    state = load_file(ahead / WEIGHTS)
    layer = {name.removeprefix("model.layers.3.") for name in state if name.startswith("model.layers.3.")}
    assert {"enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight", "mlp.gate.e_score_correction_bias"} <= layer
    assert state["model.layers.3.eh_proj.weight"].shape == (32, 64)
    assert torch.equal(state["model.layers.3.embed_tokens.weight"], state["model.embed_tokens.weight"])
    assert torch.equal(state["model.layers.3.shared_head.head.weight"], state["lm_head.weight"])
    found = read(ahead)
    assert found.model.config.mtp.depths == 1
    write(tmp_path / "again", found.recipe, found.tokenizer, found.model)
    again = load_file(tmp_path / "again" / WEIGHTS)
    assert state.keys() == again.keys() and all(torch.equal(state[name], again[name]) for name in state)


def test_files_in_fp8_are_read_and_written(ahead: Path, tmp_path: Path) -> None:
    full = read(ahead)
    write(tmp_path / "fp8", full.recipe, full.tokenizer, full.model, in_fp8=True)
    first = load_file(tmp_path / "fp8" / WEIGHTS)
    codes = {name for name, tensor in first.items() if tensor.dtype == torch.float8_e4m3fn}
    assert {name + deepseek.SCALE for name in codes} == {name for name in first if name.endswith(deepseek.SCALE)}
    exact = load_file(ahead / WEIGHTS)
    high = ("embed_tokens", "norm", "lm_head", "mlp.gate.", "eh_proj", "shared_head")
    assert {name for name in exact if name not in codes} == {name for name in exact if any(part in name for part in high)}
    assert json.loads((tmp_path / "fp8" / "config.json").read_text())["quantization_config"]["weight_block_size"] == [128, 128]
    for name in codes:
        error = first[name].float() * first[name + deepseek.SCALE] - exact[name]
        assert error.abs().max() <= exact[name].abs().max() / 28 + 1e-6  # half a step of E4M3 at the top: 448 / 16 over 2
    for a, b in zip(ahead_of(tmp_path / "fp8"), ahead_of(ahead), strict=True):
        assert 0 < (a - b).norm() / b.norm() < 0.3
    found = read(tmp_path / "fp8")
    write(tmp_path / "again", found.recipe, found.tokenizer, found.model, in_fp8=True)
    again = load_file(tmp_path / "again" / WEIGHTS)
    assert first.keys() == again.keys()
    for name, tensor in first.items():
        if name in codes:
            assert torch.equal(tensor.view(torch.uint8), again[name].view(torch.uint8)), name
        else:  # 448 times a scale, over 448, may miss it by a digit
            torch.testing.assert_close(tensor, again[name], rtol=2e-7, atol=0)


def test_experts_in_one_tensor_are_read_as_each_apart(ahead: Path, tmp_path: Path) -> None:
    state, fused = load_file(ahead / WEIGHTS), dict[str, Tensor]()
    for layer in (1, 2, 3):
        at = f"model.layers.{layer}.mlp.experts"
        gates, ups, downs = ([state.pop(f"{at}.{e}.{part}_proj.weight") for e in range(8)] for part in ("gate", "up", "down"))
        fused[f"{at}.gate_up_proj"] = torch.stack([torch.cat(pair) for pair in zip(gates, ups, strict=True)])
        fused[f"{at}.down_proj"] = torch.stack(downs)
    apart = ahead_of(ahead)
    save_file(state | fused, ahead / WEIGHTS)
    assert all(torch.equal(a, b) for a, b in zip(ahead_of(ahead), apart, strict=True))


def test_fp8_without_scales_is_said(ahead: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = read(ahead)
    write(tmp_path / "fp8", full.recipe, full.tokenizer, full.model, in_fp8=True)
    state = load_file(tmp_path / "fp8" / WEIGHTS)
    gone = state.pop("model.layers.1.self_attn.o_proj.weight" + deepseek.SCALE)
    assert gone.shape == (1, 1)
    save_file(state, tmp_path / "fp8" / WEIGHTS)
    line = answered(["sample", str(tmp_path / "fp8"), "--prompt", "a"], capsys)
    assert "o_proj.weight_scale_inv" in line and "missing" in line and "both whole" in line


def test_a_llama_with_stretched_positions_is_theirs(tmp_path: Path) -> None:
    from tests.interop.test_text import SIZES as LLAMA

    scaling = YARN | {"rope_theta": 1e4}
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**LLAMA, "rope_parameters": scaling})).eval()
    made.save_pretrained(tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text()) | {"bos_token_id": 256, "eos_token_id": 257}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    tokenizer(tmp_path / "theirs")
    found = read(tmp_path / "theirs")
    write(tmp_path / "ours", found.recipe, found.tokenizer, found.model)
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ours").eval()
    for given, ours in zip(sequences(), logits(found.model, sequences()), strict=True):
        for model in (made, again):
            torch.testing.assert_close(ours, model(given[None]).logits[0].detach(), rtol=0, atol=ROTATION)
