"""Language models of others: the same logits as an independent twin from the same files, the same files back, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from torch import Tensor
from torch.nn import functional as F

from unveil.config import AutoregressiveRecipe, DiscreteRecipe, TextDataConfig, TokenizerConfig, TransformerConfig
from unveil.data.tokenizer import Tokenizer
from unveil.families import family
from unveil.family import Request
from unveil.interop import told
from unveil.interop.state import imported
from unveil.interop.tensors import WEIGHTS
from unveil.interop.text import Foreign, kind_of, network, read, write
from unveil.nn.layout import Bidirectional, BlockCausal, Causal, Layout
from unveil.nn.packed import Packed
from unveil.nn.transformer import Transformer

transformers = pytest.importorskip("transformers")

V = 300
ROTATION = 2e-5
"""They form the angles of the rotation in float32."""
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": V}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 64, "rope_theta": 1e6, "rms_norm_eps": 1e-5}
TWINS = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "Dream": "Qwen2", "sdar": "Qwen3", "llada": "Llama"}


def tokenizer(folder: Path) -> None:
    """Bytes and the tokens of a conversation."""
    made = Tokenizer.train(TokenizerConfig(kind="bytes"), [])._backend
    made.add_special_tokens([AddedToken(text, special=True) for text in ("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")])
    made.save(str(folder / "tokenizer.json"))


def twin(kind: str, **settings: Any) -> Any:
    """A network of ``transformers`` in float64, every weight drawn."""
    name = TWINS[kind]
    extra = {"head_dim": 16} if name == "Qwen3" else {}
    made = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**SIZES, **extra, **settings))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter_name, p in made.named_parameters():
            p.normal_(0, 0.2, generator=generator)
            if "norm" in parameter_name:
                p.add_(1)
    return made.double().eval()


LLADA_NAMES = {
    "model.embed_tokens": "model.transformer.wte",
    "model.norm": "model.transformer.ln_f",
    "lm_head": "model.transformer.ff_out",
    "model.layers": "model.transformer.blocks",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
    "self_attn.o_proj": "attn_out",
    "self_attn.": "",
    "mlp.gate_proj": "ff_proj",
    "mlp.down_proj": "ff_out",
    "mlp.": "",
}


def published(kind: str, folder: Path, **settings: Any) -> Any:
    """The twin, written as its authors publish such a model."""
    folder.mkdir(exist_ok=True)
    made = twin(kind, **settings)
    made.save_pretrained(folder)
    tokenizer(folder)
    config = json.loads((folder / "config.json").read_text()) | {"bos_token_id": 256, "eos_token_id": 257, "mask_token_id": 258}
    config["model_type"] = kind
    if kind == "sdar":
        config["block_size"] = 4
    if kind == "llada":
        state = load_file(folder / WEIGHTS)
        for theirs, ours in LLADA_NAMES.items():
            state = {name.replace(theirs, ours): tensor for name, tensor in state.items()}
        save_file(state, folder / WEIGHTS)
        config = {"model_type": "llada", "d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "mlp_hidden_size": 48}
        config |= {"embedding_size": V, "vocab_size": V, "max_sequence_length": 64, "rope_theta": 1e6, "rms_norm_eps": 1e-5}
        config |= {"mask_token_id": 258, "eos_token_id": 257, "bos_token_id": 256, "weight_tying": False}
    (folder / "config.json").write_text(json.dumps(config))
    return made


def sequences(size: int = V) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, size, (n,), generator=generator) for n in (9, 6, 13)]


@torch.no_grad()
def logits(model: Transformer, given: list[Tensor], time: Tensor | None = None) -> list[Tensor]:
    model.compute_dtype = model.embedding.weight.dtype
    batch = Packed.of(given)
    return batch.split(model.head(model(batch, time)))


@torch.no_grad()
def expected(made: Any, given: Tensor, layout: Layout) -> Tensor:
    """The twin's logits with the causal mask lifted, or with another in its place."""
    at = torch.arange(len(given))
    mask = torch.zeros(1, 1, len(given), len(given), dtype=torch.float64).masked_fill(~layout.allows(at[:, None], at), -torch.inf)
    return made(given[None], attention_mask=mask).logits[0]


LAYOUTS: dict[str, Layout] = {"llama": Causal(), "qwen2": Causal(), "qwen3": Causal(), "sdar": BlockCausal(4)}


@pytest.mark.parametrize("kind", TWINS)
def test_logits_are_the_twins(kind: str, tmp_path: Path) -> None:
    made = published(kind, tmp_path)
    found = read(tmp_path)
    assert isinstance(found.recipe, AutoregressiveRecipe if kind in ("llama", "qwen2", "qwen3") else DiscreteRecipe)
    for given, ours in zip(sequences(), logits(found.model, sequences()), strict=True):
        theirs = expected(made, given, LAYOUTS.get(kind, Bidirectional()))
        if kind == "Dream":
            theirs = torch.cat([theirs[:1], theirs[:-1]])
        torch.testing.assert_close(ours, theirs, rtol=0, atol=ROTATION)


@pytest.mark.parametrize("kind", TWINS)
def test_there_and_back_are_the_same_files(kind: str, tmp_path: Path) -> None:
    published(kind, tmp_path / "theirs")
    found = read(tmp_path / "theirs")
    assert write(tmp_path / "ours", found.recipe, found.tokenizer, found.model) == kind
    first, second = (load_file(tmp_path / name / WEIGHTS) for name in ("theirs", "ours"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    again = read(tmp_path / "ours")
    assert again.recipe.model == found.recipe.model and again.tokenizer.vocabulary == found.tokenizer.vocabulary
    assert again.model.layout == found.model.layout


def test_tied_weights(tmp_path: Path) -> None:
    made = published("llama", tmp_path, tie_word_embeddings=True)
    found = read(tmp_path)
    assert found.model.head.weight is found.model.embedding.weight
    given = sequences()[0]
    torch.testing.assert_close(logits(found.model, [given])[0], expected(made, given, Causal()), rtol=0, atol=ROTATION)


@pytest.mark.parametrize("switches", [{}, {"qkv_bias": True}, {"qk_norm": True, "head_width": 12, "kv_heads": 2}, {"tie": True}])
def test_an_export_loads_in_transformers(switches: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = TransformerConfig(width=32, depth=2, heads=4, init="normal", init_std=0.2, **switches)
    ours = Tokenizer.train(TokenizerConfig(kind="bytes"), [])
    model = Transformer(config, ours.vocabulary.size, Causal()).double()
    recipe = AutoregressiveRecipe(data=TextDataConfig(context=64), model=config)
    write(tmp_path, recipe, ours, model)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    given = sequences(ours.vocabulary.size)[0]
    with torch.no_grad():
        torch.testing.assert_close(theirs(given[None]).logits[0], logits(model, [given])[0], rtol=0, atol=ROTATION)
    spoken = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert spoken.bos_token_id == ours.vocabulary.start and spoken.encode("naïve") == ours.encode("naïve").tolist()


# The diffusion transformer of MDLM and SEDD ---------------------------------------------------------------------------------


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def dit(state: dict[str, Tensor], prefix: str, tokens: Tensor, sigma: float, heads: int, depth: int, allowed: Tensor) -> Tensor:
    """The network of MDLM and SEDD for one sequence, written from its description."""
    w = {name.removeprefix(prefix): tensor for name, tensor in state.items()}

    def affine(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"]

    x = w["vocab_embed.embedding"][tokens]
    frequencies = torch.exp(-math.log(10000) * torch.arange(128) / 128)
    features = torch.cat(((sigma * frequencies).cos(), (sigma * frequencies).sin())).double()
    c = F.silu(affine("sigma_map.mlp.2", F.silu(affine("sigma_map.mlp.0", features))))
    width = x.shape[1] // heads
    angles = torch.arange(len(tokens)).double()[:, None] / 10000 ** (torch.arange(0, width, 2) / width)
    for i in range(depth):
        shift1, scale1, gate1, shift2, scale2, gate2 = affine(f"blocks.{i}.adaLN_modulation", c).chunk(6)
        qkv = (norm(f"blocks.{i}.norm1", x) * (1 + scale1) + shift1) @ w[f"blocks.{i}.attn_qkv.weight"].T
        q, k, v = qkv.unflatten(-1, (3, heads, width)).unbind(1)
        scores = torch.einsum("qhe,khe->hqk", rotated(q, angles), rotated(k, angles)) / width**0.5
        mixed = torch.einsum("hqk,khe->qhe", scores.masked_fill(~allowed, -torch.inf).softmax(-1), v).flatten(1)
        x = x + gate1 * (mixed @ w[f"blocks.{i}.attn_out.weight"].T)
        hidden = affine(f"blocks.{i}.mlp.0", norm(f"blocks.{i}.norm2", x) * (1 + scale2) + shift2)
        x = x + gate2 * affine(f"blocks.{i}.mlp.2", F.gelu(hidden, approximate="tanh"))
    shift, scale = affine("output_layer.adaLN_modulation", c).chunk(2)
    return affine("output_layer.linear", norm("output_layer.norm_final", x) * (1 + scale) + shift)


DIT = {"hidden_dim": 32, "cond_dim": 24, "n_blocks": 2, "n_heads": 4, "model_length": 64, "vocab_size": V, "dropout": 0.1}


def told_state(prefix: str, size: int = V) -> dict[str, Tensor]:
    """Weights under their names, in their shapes."""
    d, c = 32, 24
    shapes: dict[str, tuple[int, ...]] = {"vocab_embed.embedding": (size, d), "rotary_emb.inv_freq": (4,)}
    shapes |= {"sigma_map.mlp.0.weight": (c, 256), "sigma_map.mlp.0.bias": (c,)}
    shapes |= {"sigma_map.mlp.2.weight": (c, c), "sigma_map.mlp.2.bias": (c,)}
    for i in range(2):
        block = {"norm1.weight": (d,), "attn_qkv.weight": (3 * d, d), "attn_out.weight": (d, d), "norm2.weight": (d,)}
        block |= {"mlp.0.weight": (4 * d, d), "mlp.0.bias": (4 * d,), "mlp.2.weight": (d, 4 * d), "mlp.2.bias": (d,)}
        block |= {"adaLN_modulation.weight": (6 * d, c), "adaLN_modulation.bias": (6 * d,)}
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    shapes |= {"output_layer.norm_final.weight": (d,), "output_layer.linear.weight": (size, d), "output_layer.linear.bias": (size,)}
    shapes |= {"output_layer.adaLN_modulation.weight": (2 * d, c), "output_layer.adaLN_modulation.bias": (2 * d,)}
    generator = torch.Generator().manual_seed(2)
    state = {prefix + name: torch.randn(shape, generator=generator, dtype=torch.float64) * 0.2 for name, shape in shapes.items()}
    state[f"{prefix}rotary_emb.inv_freq"] = 1 / 10000 ** (torch.arange(0, 8, 2).float() / 8)
    return state


def told_folder(folder: Path, config: dict[str, Any], state: dict[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(state, folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "bos_token": "<|end|>"}))
    return folder


@pytest.mark.parametrize("kind", ["mdlm", "bd3lm"])
def test_mdlm_and_bd3lm_are_their_twin(kind: str, tmp_path: Path) -> None:
    state, config = told_state("backbone."), {"model_type": kind, **DIT}
    if kind == "bd3lm":
        config |= {"block_size": 4}
        state |= {"sampling_eps_min": torch.tensor(1e-3), "sampling_eps_max": torch.tensor(0.999)}
    found = read(told_folder(tmp_path / "theirs", config, state))
    layout = BlockCausal(4) if kind == "bd3lm" else Bidirectional()
    assert found.model.layout == layout and found.tokenizer.vocabulary.mask == V - 1
    for given, ours in zip(sequences(), logits(found.model, sequences()), strict=True):
        at = torch.arange(len(given))
        torch.testing.assert_close(ours, dit(state, "backbone.", given, 0.0, 4, 2, layout.allows(at[:, None], at)), rtol=0, atol=1e-6)
    assert write(tmp_path / "ours", found.recipe, found.tokenizer, found.model) == kind
    back = load_file(tmp_path / "ours" / WEIGHTS)
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)


@torch.no_grad()
def test_a_folder_with_blocks_is_sampled_through_their_cache_and_scored_block_by_block(tmp_path: Path) -> None:
    found = read(told_folder(tmp_path, {"model_type": "bd3lm", **DIT, "block_size": 4}, told_state("backbone.")))
    assert found.recipe.sampler.cache == "block"
    vocabulary = found.tokenizer.vocabulary
    texts = []
    for cache in ("block", "none"):
        sampler = dataclasses.replace(found.recipe.sampler, stop=(), length=12, cache=cache)  # type: ignore[arg-type]
        kind = family(dataclasses.replace(found.recipe, sampler=sampler), vocabulary)
        state = kind.begin(found.model, [Request(np.array([vocabulary.start, 1]), 12, 0)])
        while state.live:
            (row,) = kind.step(found.model, state).rows  # type: ignore[arg-type]
        texts.append(row.tokens.tolist())
        assert (row.reused > 0) == (cache == "block")
    assert texts[0] == texts[1]
    # three tokens after the start, one of which is scored: the block alone, whole, with one mask
    text, given = torch.tensor([vocabulary.start, 5, 6, 7]), torch.tensor([True, True, False, True])
    value, _ = kind.log_likelihood(found.model, Packed.of([text]), 1, 0, given_T=given)  # type: ignore[call-arg]
    noisy = torch.where(given, text, vocabulary.mask)
    logits_V = logits(found.model, [noisy])[0][2].index_fill(0, torch.tensor([vocabulary.mask]), -math.inf)
    assert float(value) == pytest.approx(float(logits_V.log_softmax(-1)[6]), rel=1e-5)


def test_an_mdlm_that_is_told_the_noise_is_told_it_when_sampled(tmp_path: Path) -> None:
    state = told_state("backbone.")
    found = read(told_folder(tmp_path, {"model_type": "mdlm", **DIT, "time_conditioning": True}, state))
    heard = sampled_levels(found, length=4, order="confidence")
    shares = torch.tensor([4 / 4, 3 / 4, 2 / 4, 1 / 4], dtype=torch.float64)
    expected = (-torch.log1p(-shares)).clamp_max(-math.log(1e-3))  # of time 1, where e^-sigma is 0.001
    torch.testing.assert_close(torch.tensor(heard, dtype=torch.float64), expected, rtol=1e-5, atol=0)


def sampled_levels(found: Foreign, **settings: object) -> list[float]:
    """What the network heard while a text was uncovered."""
    recipe = dataclasses.replace(found.recipe, sampler=dataclasses.replace(found.recipe.sampler, stop=(), **settings))  # type: ignore[arg-type]
    kind, heard = family(recipe, found.tokenizer.vocabulary), list[float]()
    found.model.level.register_forward_hook(lambda module, inputs, _: heard.extend(inputs[0].unique().tolist()))  # type: ignore[union-attr]
    state = kind.begin(found.model, [Request(np.array([found.tokenizer.vocabulary.start]), recipe.sampler.length, 0)])
    while state.live:
        kind.step(found.model, state)  # type: ignore[arg-type]
    return heard


def test_a_sedd_folder_is_sampled_by_analytic_steps(tmp_path: Path) -> None:
    state = told_state("")
    found = read(told_folder(tmp_path / "sedd", SEDD, state))
    heard = sampled_levels(found, length=5, steps=3)
    times = torch.tensor([1.0, 2 / 3, 1 / 3], dtype=torch.float64)
    torch.testing.assert_close(torch.tensor(heard, dtype=torch.float64), -torch.log1p(-0.999 * times), rtol=1e-5, atol=0)


SEDD = {"tokens": V - 1, "graph": {"type": "absorb"}, "noise": {"type": "loglinear"}, "ngpus": 8}
SEDD["model"] = {"hidden_size": 32, "cond_dim": 24, "length": 64, "n_blocks": 2, "n_heads": 4, "scale_by_sigma": True, "dropout": 0.1}


def test_sedd_is_its_twin_at_every_noise_level(tmp_path: Path) -> None:
    """Each sequence of a pack is told its own sigma; given per token it is the same."""
    state = told_state("")
    built, names, context = network(SEDD, "config.json")
    built = built.double().to_empty(device="cpu").eval()
    imported(built, names, told.without_buffers(state, built.config, "x"), "x")
    sigmas = torch.tensor([0.1, 2.0, 7.5])
    given = sequences()
    ours = logits(built, given, sigmas)
    for tokens, sigma, one in zip(given, sigmas.tolist(), ours, strict=True):
        whole = torch.ones(len(tokens), len(tokens), dtype=torch.bool)
        torch.testing.assert_close(one, dit(state, "", tokens, sigma, 4, 2, whole), rtol=0, atol=1e-5)
    by_token = sigmas.repeat_interleave(torch.tensor([len(tokens) for tokens in given]))
    for one, other in zip(ours, logits(built, given, by_token), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert context == 64 and kind_of(SEDD, "x") == "sedd"
