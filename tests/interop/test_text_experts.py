"""Mixtures of experts of others: logits of Qwen3-MoE with its mask lifted, of LLaDA2 by hand; the same files back, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("transformers")

import transformers

import unveil
from tests.interop.test_text import SIZES, V, expected, logits, rotated, sequences, tokenizer
from tests.mistakes import answered
from unveil.interop.tensors import WEIGHTS
from unveil.interop.text import network, read, write
from unveil.nn.layout import Bidirectional, BlockCausal, Causal, Layout

ROTATION = 2e-5
"""They form the angles of the rotation in float32."""
IDS = {"bos_token_id": 256, "eos_token_id": 257, "mask_token_id": 258}
LAYOUTS: dict[str, Layout] = {"qwen3_moe": Causal(), "sdar_moe": BlockCausal(4), "lladamoe": Bidirectional(), "llada2_moe": BlockCausal(8)}


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, shape in shapes.items():
        state[name] = torch.randn(shape, generator=generator, dtype=torch.float64) * (0.4 if "gate.weight" in name else 0.2)
        state[name] += "norm" in name
    return state


def qwen3(kind: str, folder: Path) -> Any:
    """The twin, written as ``kind`` is published; the first layer of some is dense."""
    dense = [] if kind == "sdar_moe" else [0]
    experts = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "mlp_only_layers": dense, "head_dim": 8}
    settings = transformers.Qwen3MoeConfig(**SIZES, **experts, norm_topk_prob=kind != "lladamoe")
    made = transformers.Qwen3MoeForCausalLM(settings)
    made.set_experts_implementation("eager")  # the others know no float64
    made.load_state_dict(drawn({name: tuple(p.shape) for name, p in made.state_dict().items()}))
    made = made.double().eval()
    folder.mkdir(exist_ok=True)
    made.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | IDS | {"model_type": kind}
    if kind == "lladamoe":
        named = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "vocab_size", "rms_norm_eps")
        config = {name: config[name] for name in (*named, "max_position_embeddings", "num_experts_per_tok")} | IDS
        config |= {"model_type": "llada", "num_experts": 6, "expert_intermediate_size": 20, "dense_intermediate_size": 48}
        config |= {"qk_layernorm": True, "moe_layer_freq": [0, 1], "rope_theta": 1e6, "norm_topk_prob": None, "routed_scaling_factor": 1}
        config |= {"partial_rotary_factor": 1, "shared_expert_intermediate_size": None, "clip_qkv": None}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer(folder)
    return made


@pytest.mark.parametrize("kind", ["qwen3_moe", "sdar_moe", "lladamoe"])
def test_logits_are_the_twins_and_the_files_come_back(kind: str, tmp_path: Path) -> None:
    made = qwen3(kind, tmp_path / "theirs")
    found = read(tmp_path / "theirs")
    for given, ours in zip(sequences(), logits(found.model, sequences()), strict=True):
        torch.testing.assert_close(ours, expected(made, given, LAYOUTS[kind]), rtol=0, atol=ROTATION)
    there_and_back(kind, found, tmp_path)


def there_and_back(kind: str, found: Any, folder: Path) -> None:
    assert found.model.layout == LAYOUTS[kind]
    assert write(folder / "ours", found.recipe, found.tokenizer, found.model) == kind
    first, second = (load_file(folder / name / WEIGHTS) for name in ("theirs", "ours"))
    assert first.keys() == second.keys() and all(torch.equal(first[name].double(), second[name].double()) for name in first)
    again = read(folder / "ours")
    assert again.recipe.model == found.recipe.model and again.model.layout == found.model.layout
    assert again.tokenizer.vocabulary == found.tokenizer.vocabulary


# LLaDA2 ----------------------------------------------------------------------------------------------------------------------

LLADA2 = {
    "model_type": "llada2_moe",
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "num_shared_experts": 2,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "partial_rotary_factor": 0.5,
    "rope_theta": 600000,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "use_qk_norm": True,
    "use_bias": False,
    "use_qkv_bias": False,
    "score_function": "sigmoid",
    "norm_topk_prob": True,
    "block_size": 8,
    **IDS,
}


def llada2_shapes(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    d, e, heads, kv = c["hidden_size"], c["head_dim"], c["num_attention_heads"], c["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.word_embeddings.weight": (c["vocab_size"], d), "model.norm.weight": (d,)}
    shapes["lm_head.weight"] = (c["vocab_size"], d)

    def gated(name: str, hidden: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.gate_proj.weight": (hidden, d), f"{name}.up_proj.weight": (hidden, d), f"{name}.down_proj.weight": (d, hidden)}

    for i in range(c["num_hidden_layers"]):
        block: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,)}
        block |= {"attention.query_key_value.weight": ((heads + 2 * kv) * e, d), "attention.dense.weight": (d, heads * e)}
        block |= {"attention.query_layernorm.weight": (e,), "attention.key_layernorm.weight": (e,)}
        if i < c["first_k_dense_replace"]:
            block |= gated("mlp", c["intermediate_size"])
        else:
            block |= {"mlp.gate.weight": (c["num_experts"], d), "mlp.gate.expert_bias": (c["num_experts"],)}
            for expert in range(c["num_experts"]):
                block |= gated(f"mlp.experts.{expert}", c["moe_intermediate_size"])
            block |= gated("mlp.shared_experts", c["num_shared_experts"] * c["moe_intermediate_size"])
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in block.items()}
    return shapes


def llada2(w: dict[str, Tensor], tokens: Tensor, allowed: Tensor) -> Tensor:
    """The network for one sequence, from its description, expert by expert and token by token."""
    c: dict[str, Any] = LLADA2
    heads, kv, e = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]

    def norm(name: str, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + c["rms_norm_eps"]).sqrt() * w[f"{name}.weight"]

    def gated(name: str, x: Tensor) -> Tensor:
        hidden = F.silu(x @ w[f"{name}.gate_proj.weight"].T) * (x @ w[f"{name}.up_proj.weight"].T)
        return hidden @ w[f"{name}.down_proj.weight"].T

    def routed(name: str, x: Tensor) -> Tensor:
        scores = (x @ w[f"{name}.gate.weight"].T).sigmoid()
        choice = scores + w[f"{name}.gate.expert_bias"]
        size = c["num_experts"] // c["n_group"]
        best = [float(group.sort(descending=True).values[:2].sum()) for group in choice.split(size)]
        kept = sorted(range(c["n_group"]), key=lambda g: -best[g])[: c["topk_group"]]
        open_to = [i for i in range(c["num_experts"]) if i // size in kept]
        chosen = sorted(open_to, key=lambda i: -float(choice[i]))[: c["num_experts_per_tok"]]
        total = scores[chosen].sum()
        return sum((scores[i] / total * c["routed_scaling_factor"] * gated(f"{name}.experts.{i}", x) for i in chosen), torch.zeros_like(x))

    turned = int(e * c["partial_rotary_factor"])
    angles = torch.arange(len(tokens)).double()[:, None] / c["rope_theta"] ** (torch.arange(0, turned, 2).double() / turned)
    x = w["model.word_embeddings.weight"][tokens]
    for i in range(c["num_hidden_layers"]):
        block = f"model.layers.{i}"
        qkv = (norm(f"{block}.input_layernorm", x) @ w[f"{block}.attention.query_key_value.weight"].T).unflatten(-1, (-1, e))
        q, k, v = qkv.split((heads, kv, kv), dim=1)
        q, k = norm(f"{block}.attention.query_layernorm", q), norm(f"{block}.attention.key_layernorm", k)
        q, k = (torch.cat((rotated(y[..., :turned], angles), y[..., turned:]), dim=-1) for y in (q, k))
        k, v = (y.repeat_interleave(heads // kv, dim=1) for y in (k, v))
        scores = torch.einsum("qhe,khe->hqk", q, k) / e**0.5
        mixed = torch.einsum("hqk,khe->qhe", scores.masked_fill(~allowed, -torch.inf).softmax(-1), v).flatten(1)
        x = x + mixed @ w[f"{block}.attention.dense.weight"].T
        y = norm(f"{block}.post_attention_layernorm", x)
        if i < c["first_k_dense_replace"]:
            x = x + gated(f"{block}.mlp", y)
        else:
            x = x + torch.stack([routed(f"{block}.mlp", row) for row in y]) + gated(f"{block}.mlp.shared_experts", y)
    return norm("model.norm", x) @ w["lm_head.weight"].T


def llada2_folder(folder: Path) -> dict[str, Tensor]:
    state = drawn(llada2_shapes(LLADA2))
    # the bias stays in float32, as it is stored
    state = {name: tensor.float().double() if name.endswith("expert_bias") else tensor for name, tensor in state.items()}
    folder.mkdir(exist_ok=True)
    save_file(state, folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(LLADA2))
    tokenizer(folder)
    return state


def test_llada2_is_its_twin_and_comes_back(tmp_path: Path) -> None:
    state = llada2_folder(tmp_path / "theirs")
    found = read(tmp_path / "theirs")
    assert found.model.config.rotary_width == 6
    for given, ours in zip(sequences(), logits(found.model, sequences()), strict=True):
        at = torch.arange(len(given))
        torch.testing.assert_close(ours, llada2(state, given, BlockCausal(8).allows(at[:, None], at)), rtol=0, atol=1e-6)
    there_and_back("llada2_moe", found, tmp_path)


def test_finished_blocks_are_kept(tmp_path: Path) -> None:
    """Experts and the part of a head that is turned, through the cache of finished blocks and in a batch."""
    llada2_folder(tmp_path)
    run: Any = unveil.load(tmp_path)
    run.model.double().compute_dtype = torch.float64
    settings = {"seed": 1, "length": 6, "temperature": 1.0}
    *_, both = run.sample(["abcdefghijk", "x"], **settings)
    *_, plain = run.sample(["abcdefghijk", "x"], cache="none", **settings)
    assert [row.tokens.tolist() for row in both.rows] == [row.tokens.tolist() for row in plain.rows]
    assert sum(row.reused for row in both.rows) > 0


def test_weights_in_bfloat16_leave_the_bias_as_it_is(tmp_path: Path) -> None:
    state = llada2_folder(tmp_path)
    bias = {name: tensor.float() for name, tensor in state.items() if name.endswith("expert_bias")}
    save_file({name: bias.get(name, tensor.bfloat16()) for name, tensor in state.items()}, tmp_path / WEIGHTS)
    model = read(tmp_path).model
    router: Any = model.blocks[1].feedforward.router  # type: ignore[union-attr]
    assert router.weight.dtype == torch.bfloat16 and not router.counts.any()
    assert torch.equal(router.bias, bias["model.layers.1.mlp.gate.expert_bias"])


def test_matrices_in_eight_bits_beside_experts(tmp_path: Path) -> None:
    """Attention and dense layers are rounded; experts, their router and its bias are as they lie there."""
    pytest.importorskip("torchao")
    llada2_folder(tmp_path)
    run: Any = unveil.load(tmp_path, weights="int8")
    whole = read(tmp_path).model
    blocks: Any = (run.model.blocks[1], whole.blocks[1])
    ours, theirs = (block.feedforward for block in blocks)
    assert torch.equal(ours.gate_up.weight, theirs.gate_up.weight) and torch.equal(ours.router.bias, theirs.router.bias.double())
    assert not ours.router.counts.any() and not isinstance(ours.router.bias, torch.nn.Parameter)
    found, exact = (torch.cat(logits(model.double(), sequences()[:1])) for model in (run.model, whole))
    assert 0 < float((found - exact).norm() / exact.norm()) < 0.1


# The published ones ----------------------------------------------------------------------------------------------------------

LLADA_MOE = {"model_type": "llada", "vocab_size": 157184, "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16}
LLADA_MOE |= {"num_key_value_heads": 16, "num_experts": 64, "num_experts_per_tok": 8, "expert_intermediate_size": 1024}
LLADA_MOE |= {"dense_intermediate_size": 8192, "shared_expert_intermediate_size": None, "moe_layer_freq": [1] * 16, "rope_theta": 50000}
LLADA_MOE |= {"max_position_embeddings": 8192, "qk_layernorm": True, "rms_norm_eps": 1e-5, "tie_word_embeddings": False}
LLADA2_MINI = {**LLADA2, "vocab_size": 157184, "hidden_size": 2048, "intermediate_size": 5120, "moe_intermediate_size": 512}
LLADA2_MINI |= {"num_hidden_layers": 20, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 256}
LLADA2_MINI |= {"num_experts_per_tok": 8, "num_shared_experts": 1, "n_group": 8, "topk_group": 4, "max_position_embeddings": 32768}
SDAR_MOE = {"model_type": "sdar_moe", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48}
SDAR_MOE |= {"num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8}
SDAR_MOE |= {"moe_intermediate_size": 768, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "rope_theta": 1e6}
SDAR_MOE |= {"max_position_embeddings": 32768, "tie_word_embeddings": False}


def qwen3_shapes(d: int, v: int, depth: int, q: int, kv: int, head: int, experts: int, hidden: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, d), "model.norm.weight": (d,), "lm_head.weight": (v, d)}
    for i in range(depth):
        block: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,)}
        block |= {"self_attn.q_proj.weight": (q, d), "self_attn.k_proj.weight": (kv, d), "self_attn.v_proj.weight": (kv, d)}
        block |= {"self_attn.o_proj.weight": (d, q), "self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,)}
        block["mlp.gate.weight"] = (experts, d)
        for e in range(experts):
            block |= {f"mlp.experts.{e}.gate_proj.weight": (hidden, d), f"mlp.experts.{e}.up_proj.weight": (hidden, d)}
            block[f"mlp.experts.{e}.down_proj.weight"] = (d, hidden)
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in block.items()}
    return shapes


PUBLISHED = {
    "LLaDA-MoE-7B-A1B": (LLADA_MOE, qwen3_shapes(2048, 157184, 16, 2048, 2048, 128, 64, 1024), 7.36),
    "LLaDA2.0-mini": ({k: v for k, v in LLADA2_MINI.items() if k != "block_size"}, llada2_shapes(LLADA2_MINI), 16.26),
    "SDAR-30B-A3B": (SDAR_MOE, qwen3_shapes(2048, 151936, 48, 4096, 512, 128, 128, 768), 30.53),
}
"""Settings, weights, and parameters in 10^9."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_and_shapes_are_the_published(name: str) -> None:
    given, shapes, size = PUBLISHED[name]
    built, parts, _ = network(given, "config.json")
    ours = {**dict(built.named_parameters()), **{name: b for name, b in built.named_buffers() if name.endswith("bias")}}
    assert ours.keys() == {part.ours for part in parts}
    found = {name: tuple(piece.shape) for part in parts for name, piece in zip(part.theirs, part.pieces(ours[part.ours]), strict=True)}
    assert found == shapes
    assert round(sum(p.numel() for p in built.parameters()) / 1e9, 2) == size
    assert built.layout == {"LLaDA2.0-mini": BlockCausal(32), "SDAR-30B-A3B": BlockCausal(4)}.get(name, Bidirectional())


MISTAKES = {
    "a gate that is not theirs": ({"score_function": "softmax"}, "score_function is 'softmax'"),
    "biases": ({"use_bias": True}, "use_bias is true"),
    "no experts at all": ({"num_experts": 0}, "num_experts is 0"),
    "groups that do not divide": ({"n_group": 3}, "model.experts.groups"),
    "more than a head to turn": ({"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5"),
    "an odd part of a head": ({"partial_rotary_factor": 0.25}, "model.rotary_width"),
    "more experts than there are": ({"num_experts": 12, "n_group": 4}, "gate.weight' has shape [8, 32], wanted [12, 32]"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_one_line_names_what_is_wrong(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llada2_folder(tmp_path)
    changed, words = MISTAKES[name]
    (tmp_path / "config.json").write_text(json.dumps(LLADA2 | changed))
    assert words in answered(["sample", str(tmp_path)], capsys)
