"""Llama and its kin as our transformer: what their settings mean, and the names of their weights.

LLaDA is Llama, Dream and DiffuCoder are Qwen2, SDAR is Qwen3, each with the causal mask lifted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from unveil.config import ExpertsConfig, TransformerConfig, YarnConfig
from unveil.errors import UserError
from unveil.interop.settings import Settings
from unveil.interop.state import Part
from unveil.nn.self_attention import head_width
from unveil.nn.transformer import hidden_width


@dataclass(frozen=True)
class Names:
    """What they call their modules; those of a block follow ``block`` and its number."""

    embedding: str
    block: str
    attention_norm: str
    qkv: tuple[str, ...]
    """One each, or one of all rows."""
    out: str
    feedforward_norm: str
    gate_up: tuple[str, str]
    down: str
    norm: str
    head: str
    bias: str = "gate.expert_bias"
    """Of the router, behind ``mlp``."""
    qk_norm: tuple[str, str] = ("self_attn.q_norm", "self_attn.k_norm")
    shared: str = "shared_expert"
    """The experts that every token goes to, as one."""


LLAMA = Names(
    embedding="model.embed_tokens",
    block="model.layers",
    attention_norm="input_layernorm",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.o_proj",
    feedforward_norm="post_attention_layernorm",
    gate_up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    norm="model.norm",
    head="lm_head",
)
LLADA = Names(
    embedding="model.transformer.wte",
    block="model.transformer.blocks",
    attention_norm="attn_norm",
    qkv=("q_proj", "k_proj", "v_proj"),
    out="attn_out",
    feedforward_norm="ff_norm",
    gate_up=("ff_proj", "up_proj"),
    down="ff_out",
    norm="model.transformer.ln_f",
    head="model.transformer.ff_out",
)
LLADA2 = replace(
    LLAMA,
    embedding="model.word_embeddings",
    qkv=("attention.query_key_value",),
    out="attention.dense",
    qk_norm=("attention.query_layernorm", "attention.key_layernorm"),
    shared="mlp.shared_experts",
)

_LLAMA_DEFAULTS: dict[str, Any] = {
    "vocab_size": None,
    "hidden_size": None,
    "intermediate_size": None,
    "num_hidden_layers": None,
    "num_attention_heads": None,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rope_parameters": None,
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
}
_YARN: dict[str, Any] = {
    "factor": None,
    "original_max_position_embeddings": None,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 0.0,
    "truncate": True,
}
_LLADA_DEFAULTS: dict[str, Any] = {
    "d_model": None,
    "n_layers": None,
    "n_heads": None,
    "n_kv_heads": None,
    "mlp_hidden_size": None,
    "embedding_size": None,
    "vocab_size": None,
    "max_sequence_length": 1024,
    "block_type": "llama",
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "rms_norm_eps": 1e-5,
    "rope": True,
    "rope_theta": 10000.0,
    "alibi": False,
    "attention_layer_norm": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "multi_query_attention": None,
    "input_emb_norm": False,
    "weight_tying": False,
}


def llama(given: Mapping[str, Any], kind: str, source: str) -> tuple[TransformerConfig, int, int]:
    """Our settings, the number of tokens and the longest context, of a Llama, Qwen2 or Qwen3 (``kind``).

    Raises UserError for a setting that our transformer does not have, by its name.
    """
    s = Settings({key: value for key, value in given.items() if key in _LLAMA_DEFAULTS}, _LLAMA_DEFAULTS, source)
    for key, wanted in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False), ("use_sliding_window", False)):
        s.require(key, wanted)
    heads, width = s.count("num_attention_heads"), s.count("hidden_size")
    each = (128 if kind == "qwen3" else 0) if s["head_dim"] is None else s.count("head_dim")
    config = TransformerConfig(
        width=width,
        depth=s.count("num_hidden_layers"),
        heads=heads,
        kv_heads=heads if s["num_key_value_heads"] is None else s.count("num_key_value_heads"),
        head_width=0 if each * heads == width else each,
        hidden=s.count("intermediate_size"),
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        norm_eps=float(s.number("rms_norm_eps")),
        rope_theta=theta(s),
        yarn=yarn(s),
        tie=bool(s["tie_word_embeddings"]),
    )
    return config, s.count("vocab_size"), s.count("max_position_embeddings")


def theta(s: Settings) -> float:
    """Base of the rotation; newer files state it in a table of its own."""
    table = s["rope_parameters"]
    return float(table.get("rope_theta", s["rope_theta"]) if isinstance(table, Mapping) else s.number("rope_theta"))


def yarn(s: Settings) -> YarnConfig:
    """How positions are stretched. Raises UserError for another way than YaRN's."""
    key = "rope_parameters" if s["rope_parameters"] is not None else "rope_scaling"
    table = s[key]
    if table is None:
        return YarnConfig()
    kind = table.get("rope_type", table.get("type", "default")) if isinstance(table, Mapping) else None
    if kind == "default":
        return YarnConfig()
    if kind != "yarn" or table.get("attention_factor") is not None:
        raise s.refusal(key, table, "only the default rotation and YaRN's are supported")
    t = Settings({k: v for k, v in table.items() if k in _YARN}, _YARN, s.source)
    t.require("truncate", True)
    return YarnConfig(
        factor=float(t.number("factor")),
        original=t.count("original_max_position_embeddings"),
        fast=float(t.number("beta_fast")),
        slow=float(t.number("beta_slow")),
        mscale=float(t.number("mscale")),
        mscale_all=float(t.number("mscale_all_dim")),
    )


def rotation_settings(c: TransformerConfig) -> dict[str, Any]:
    """``rope_theta`` and, where positions are stretched, ``rope_scaling``."""
    y = c.yarn
    if y.factor == 1:
        return {"rope_theta": c.rope_theta}
    table: dict[str, Any] = {"rope_type": "yarn", "factor": y.factor, "original_max_position_embeddings": y.original}
    table |= {"beta_fast": y.fast, "beta_slow": y.slow}
    if y.mscale_all:
        table |= {"mscale": y.mscale, "mscale_all_dim": y.mscale_all}
    elif y.mscale != 1:
        raise UserError("model.yarn.mscale", f"is {y.mscale:g} with mscale_all 0, which no layout states", "train with 1 to export")
    return {"rope_theta": c.rope_theta, "rope_scaling": table}


def llada(given: Mapping[str, Any], source: str) -> tuple[TransformerConfig, int, int]:
    """As ``llama``, of a LLaDA."""
    s = Settings({key: value for key, value in given.items() if key in _LLADA_DEFAULTS}, _LLADA_DEFAULTS, source)
    for key, wanted in (
        ("block_type", "llama"),
        ("activation_type", "silu"),
        ("layer_norm_type", "rms"),
        ("rope", True),
        ("alibi", False),
        ("attention_layer_norm", False),
        ("include_bias", False),
        ("include_qkv_bias", False),
        ("input_emb_norm", False),
    ):
        s.require(key, wanted)
    heads = s.count("n_heads")
    few = 1 if s["multi_query_attention"] else heads
    config = TransformerConfig(
        width=s.count("d_model"),
        depth=s.count("n_layers"),
        heads=heads,
        kv_heads=few if s["n_kv_heads"] is None else s.count("n_kv_heads"),
        hidden=s.count("mlp_hidden_size"),
        norm_eps=float(s.number("rms_norm_eps")),
        rope_theta=float(s.number("rope_theta")),
        tie=bool(s["weight_tying"]),
    )
    return config, s.count("embedding_size" if s["embedding_size"] is not None else "vocab_size"), s.count("max_sequence_length")


def llama_settings(c: TransformerConfig, vocabulary: int, context: int) -> dict[str, Any]:
    """Their settings for ours, ``model_type`` among them. Raises UserError for what none of them has."""
    _plain(c, "Llama")
    if c.qkv_bias and c.qk_norm:
        raise UserError("model.qk_norm", "with qkv_bias, which neither Qwen2 nor Qwen3 has", "train with one of them, or none")
    kind, name = ("qwen2", "Qwen2") if c.qkv_bias else ("qwen3", "Qwen3") if c.qk_norm else ("llama", "Llama")
    return {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": kind,
        "vocab_size": vocabulary,
        "hidden_size": c.width,
        "intermediate_size": hidden_width(c),
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads or c.heads,
        "head_dim": head_width(c),
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": c.norm_eps,
        **rotation_settings(c),
        "attention_bias": False,
        "tie_word_embeddings": c.tie,
    }


def llada_settings(c: TransformerConfig, vocabulary: int, context: int) -> dict[str, Any]:
    """As ``llama_settings``, for LLaDA."""
    _plain(c, "LLaDA")
    if c.yarn.factor > 1:
        raise UserError("model.yarn.factor", f"is {c.yarn.factor:g}, LLaDA's positions are not stretched", "train with 1 to export")
    for name in ("qkv_bias", "qk_norm"):
        if getattr(c, name):
            raise UserError(f"model.{name}", "is true, which LLaDA does not have", "train without it to export")
    if c.head_width not in (0, c.width // c.heads):
        raise UserError("model.head_width", f"is {c.head_width}, LLaDA's is the width over the heads", "train with 0 to export")
    return {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "d_model": c.width,
        "n_layers": c.depth,
        "n_heads": c.heads,
        "n_kv_heads": c.kv_heads or c.heads,
        "mlp_hidden_size": hidden_width(c),
        "embedding_size": vocabulary,
        "vocab_size": vocabulary,
        "max_sequence_length": context,
        "block_type": "llama",
        "activation_type": "silu",
        "layer_norm_type": "rms",
        "rms_norm_eps": c.norm_eps,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": c.rope_theta,
        "alibi": False,
        "attention_layer_norm": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "multi_query_attention": None,
        "input_emb_norm": False,
        "weight_tying": c.tie,
    }


def _plain(c: TransformerConfig, name: str) -> None:
    if c.latent.width:
        raise UserError("model.latent.width", f"is {c.latent.width}, {name} has no latent attention", "train with 0 to export")
    if c.experts.routed:
        raise UserError("model.experts.routed", f"is {c.experts.routed}, {name} has no experts", "train with 0 to export")
    refuse(c, name, {"rotary_width": 0})


def refuse(c: TransformerConfig, name: str, also: Mapping[str, Any]) -> None:
    """Raises UserError for settings that no decoder has, nor the ``name`` that is wanted, by what it has instead."""
    plain = {"norm": "rms", "feedforward": "swiglu", "head_bias": False, "time_conditioning": False, "condition": 0, "window": 0}
    for key, wanted in {**plain, "shift": False, **also}.items():
        allowed = wanted if isinstance(wanted, tuple) else (wanted,)
        if getattr(c, key) not in allowed:
            raise UserError(f"model.{key}", f"is {getattr(c, key)}, which {name} does not have", f"train with {allowed[0]} to export")


def parts(c: TransformerConfig, names: Names) -> list[Part]:
    """Every weight of ours and what it is called there."""
    rows = tuple(n * head_width(c) for n in (c.heads, c.kv_heads or c.heads, c.kv_heads or c.heads))
    found = [Part("embedding.weight", (f"{names.embedding}.weight",)), Part("norm.weight", (f"{names.norm}.weight",))]
    found += [] if c.tie else [Part("head.weight", (f"{names.head}.weight",))]
    for i in range(c.depth):
        ours, theirs = f"blocks.{i}", f"{names.block}.{i}"
        for kind in ("weight", "bias") if c.qkv_bias else ("weight",):
            apart = rows if len(names.qkv) > 1 else ()
            found.append(Part(f"{ours}.attention.qkv.{kind}", tuple(f"{theirs}.{name}.{kind}" for name in names.qkv), rows=apart))
        if c.qk_norm:
            pairs = zip(("q_norm", "k_norm"), names.qk_norm, strict=True)
            found += [Part(f"{ours}.attention.{a}.weight", (f"{theirs}.{b}.weight",)) for a, b in pairs]
        for a, b in (
            ("attention.out", names.out),
            ("attention_norm", names.attention_norm),
            ("feedforward_norm", names.feedforward_norm),
        ):
            found.append(Part(f"{ours}.{a}.weight", (f"{theirs}.{b}.weight",)))
        found += feedforward(c, i, f"{ours}.feedforward", theirs, names)
    return found


def feedforward(c: TransformerConfig, layer: int, ours: str, theirs: str, names: Names) -> list[Part]:
    """The weights of a layer's feed-forward or experts."""
    if c.experts.routed and layer >= c.experts.dense:
        return _experts(c.experts, ours, theirs, names)
    return _gated(ours, theirs, names.gate_up, names.down)


def _gated(ours: str, theirs: str, gate_up: tuple[str, ...], down: str) -> list[Part]:
    halves = tuple(f"{theirs}.{name}.weight" for name in gate_up)
    return [Part(f"{ours}.gate_up.weight", halves), Part(f"{ours}.down.weight", (f"{theirs}.{down}.weight",))]


def _experts(c: ExpertsConfig, ours: str, theirs: str, names: Names) -> list[Part]:
    mlp, each = f"{theirs}.mlp", range(c.routed)
    halves = tuple(f"{mlp}.experts.{e}.{half}_proj.weight" for e in each for half in ("gate", "up"))
    found = [Part(f"{ours}.router.weight", (f"{mlp}.gate.weight",))]
    found += [Part(f"{ours}.router.bias", (f"{mlp}.{names.bias}",))] if c.bias else []
    found.append(Part(f"{ours}.gate_up.weight", halves, stacked=c.routed))
    found.append(Part(f"{ours}.down.weight", tuple(f"{mlp}.experts.{e}.down_proj.weight" for e in each), stacked=c.routed))
    shared = tuple(f"{names.shared}.{half}_proj" for half in ("gate", "up"))
    return found + (_gated(f"{ours}.shared", theirs, shared, f"{names.shared}.down_proj") if c.shared else [])
