"""Mixtures of experts as our transformer: Qwen3-MoE, SDAR-MoE, LLaDA-MoE, LLaDA2; attention and norms are ``decoder``'s Qwen3."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from unveil.config import ExpertsConfig, TransformerConfig
from unveil.errors import UserError
from unveil.interop import decoder
from unveil.interop.settings import Settings
from unveil.nn.self_attention import head_width

_QWEN: dict[str, Any] = {
    "num_experts": None,
    "num_local_experts": None,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
_LLADA: dict[str, Any] = {
    "num_experts": None,
    "num_experts_per_tok": None,
    "expert_intermediate_size": None,
    "dense_intermediate_size": None,
    "shared_expert_intermediate_size": None,
    "qk_layernorm": False,
    "moe_layer_freq": [],
    "clip_qkv": None,
    "moe_router_enable_expert_bias": False,
    "moe_router_score_function": "softmax",
    "routed_scaling_factor": 1.0,
    "partial_rotary_factor": 1.0,
}
_LLADA2: dict[str, Any] = {
    "num_experts": 16,
    "num_shared_experts": 0,
    "num_experts_per_tok": 2,
    "n_group": 8,
    "topk_group": 4,
    "moe_intermediate_size": None,
    "first_k_dense_replace": 0,
    "routed_scaling_factor": 2.5,
    "partial_rotary_factor": 0.5,
    "score_function": "sigmoid",
    "norm_topk_prob": True,
    "moe_router_enable_expert_bias": True,
    "use_qk_norm": True,
    "use_qkv_bias": False,
    "use_bias": False,
    "norm_head": False,
}


def qwen3(given: Mapping[str, Any], source: str) -> tuple[TransformerConfig, int, int]:
    """As ``decoder.llama``, of a Qwen3-MoE or an SDAR-MoE."""
    s = _settings(given, _QWEN, source)
    s.require("decoder_sparse_step", 1)
    config, size, context = decoder.llama(given, "qwen3", source)
    plain = s["mlp_only_layers"] or []
    if plain != list(range(len(plain))):
        raise s.refusal("mlp_only_layers", plain, "only the first layers can be without experts")
    experts = ExpertsConfig(
        routed=s.count("num_experts" if s["num_experts"] is not None else "num_local_experts"),
        top_k=s.count("num_experts_per_tok"),
        hidden=s.count("moe_intermediate_size"),
        dense=len(plain),
        gate="softmax",
        normalise=bool(s["norm_topk_prob"]),
        bias=False,
    )
    return dataclasses.replace(config, experts=experts), size, context


def llada(given: Mapping[str, Any], source: str) -> tuple[TransformerConfig, int, int]:
    """As ``decoder.llama``, of a LLaDA-MoE, whose weights of experts are their scores, whatever ``norm_topk_prob`` says."""
    s = _settings(given, _LLADA, source)
    s.require("clip_qkv", None)
    s.require("moe_router_enable_expert_bias", None, False)
    s.require("moe_router_score_function", None, "softmax")
    s.require("routed_scaling_factor", 1)
    hidden, shared = s.count("expert_intermediate_size"), s["shared_expert_intermediate_size"] or 0
    if shared % hidden:
        raise s.refusal("shared_expert_intermediate_size", shared, f"a multiple of expert_intermediate_size = {hidden} is wanted")
    routed = s["moe_layer_freq"]
    dense = 0 if not isinstance(routed, list) else sum(not entry for entry in routed)
    if isinstance(routed, list) and any(routed[:dense]):
        raise s.refusal("moe_layer_freq", routed, "only the first layers can be without experts")
    wide = {"intermediate_size": s["dense_intermediate_size"] or hidden}
    config, size, context = decoder.llama({**_headed(given), **wide}, "qwen3" if s["qk_layernorm"] else "llama", source)
    experts = ExpertsConfig(
        routed=s.count("num_experts"),
        top_k=s.count("num_experts_per_tok"),
        hidden=hidden,
        dense=dense,
        shared=shared // hidden,
        gate="softmax",
        normalise=False,
        bias=False,
    )
    return dataclasses.replace(config, experts=experts, rotary_width=_rotated(s, config)), size, context


def llada2(given: Mapping[str, Any], source: str) -> tuple[TransformerConfig, int, int]:
    """As ``decoder.llama``, of a LLaDA2."""
    s = _settings(given, _LLADA2, source)
    for key, wanted in (("use_qkv_bias", False), ("use_bias", False), ("norm_head", False), ("score_function", "sigmoid")):
        s.require(key, wanted)
    for key in ("norm_topk_prob", "moe_router_enable_expert_bias"):
        s.require(key, True)
    config, size, context = decoder.llama(_headed(given), "qwen3" if s["use_qk_norm"] else "llama", source)
    shared = s["num_shared_experts"]
    experts = ExpertsConfig(
        routed=s.count("num_experts"),
        top_k=s.count("num_experts_per_tok"),
        shared=s.count("num_shared_experts") if shared else 0,
        hidden=s.count("moe_intermediate_size"),
        dense=s.count("first_k_dense_replace") if s["first_k_dense_replace"] else 0,
        groups=s.count("n_group"),
        kept_groups=s.count("topk_group"),
        normalise=s["num_experts_per_tok"] > 1,
        scale=float(s.number("routed_scaling_factor")),
    )
    return dataclasses.replace(config, experts=experts, rotary_width=_rotated(s, config)), size, context


def _settings(given: Mapping[str, Any], defaults: Mapping[str, Any], source: str) -> Settings:
    return Settings({key: value for key, value in given.items() if key in defaults}, defaults, source)


def _headed(given: Mapping[str, Any]) -> dict[str, Any]:
    """With the width of a head, which is that of the state over the heads where it is left out."""
    heads, width = given.get("num_attention_heads"), given.get("hidden_size")
    known = given.get("head_dim") is not None or type(heads) is not int or type(width) is not int or heads < 1
    return dict(given) if known else {**given, "head_dim": width // heads}  # type: ignore[operator]


def _rotated(s: Settings, c: TransformerConfig) -> int:
    """``rotary_width``."""
    factor = s.number("partial_rotary_factor")
    if not 0 < factor <= 1:
        raise s.refusal("partial_rotary_factor", factor, "a share above 0 is wanted")
    width = int(head_width(c) * factor)
    return 0 if width == head_width(c) else width


# Ours as theirs --------------------------------------------------------------------------------------------------------------


def settings(c: TransformerConfig, kind: str, vocabulary: int, context: int) -> dict[str, Any]:
    """Their settings for ours, of one of the kinds above. Raises UserError for what it does not have."""
    e = c.experts
    partial = kind == "llada2_moe"
    plain = dataclasses.replace(c, experts=ExpertsConfig(), rotary_width=0 if partial else c.rotary_width)
    found = decoder.llama_settings(plain, vocabulary, context)
    score: dict[str, Any] = {"gate": "sigmoid" if partial else "softmax", "bias": partial}
    if not partial:
        score |= {"groups": 1, "scale": 1.0}
    if kind in ("qwen3_moe", "sdar_moe"):
        score |= {"shared": 0}
    if kind == "lladamoe":
        score |= {"normalise": False}
    for name, wanted in score.items():
        if (value := getattr(e, name)) != wanted:
            raise UserError(f"model.experts.{name}", f"is {value}, '{kind}' has {wanted}", "train with that to export")
    if partial and e.normalise != (e.top_k > 1):
        problem = f"is {str(e.normalise).lower()} with top_k {e.top_k}, '{kind}' has {str(e.top_k > 1).lower()}"
        raise UserError("model.experts.normalise", problem, "train with that to export")
    if kind != "llada2_moe" and kind != "lladamoe" and not c.qk_norm:
        raise UserError("model.qk_norm", f"is false, '{kind}' has it", "train with it to export")
    found |= {"model_type": kind, "num_experts": e.routed, "num_experts_per_tok": e.top_k}
    if kind == "llada2_moe":
        found |= {"architectures": ["LLaDA2MoeModelLM"], "use_qk_norm": c.qk_norm, "use_qkv_bias": False, "use_bias": False}
        found |= {"num_shared_experts": e.shared, "moe_intermediate_size": e.hidden, "first_k_dense_replace": e.dense}
        found |= {"n_group": e.groups, "topk_group": e.kept_groups, "routed_scaling_factor": e.scale, "score_function": "sigmoid"}
        found |= {"norm_topk_prob": True, "moe_router_enable_expert_bias": True, "norm_head": False}
        found |= {"partial_rotary_factor": (c.rotary_width or head_width(c)) / head_width(c)}
    elif kind == "lladamoe":
        if head_width(c) * c.heads != c.width:
            raise UserError("model.head_width", f"is {c.head_width}, LLaDA-MoE's is the width over the heads", "train with 0 to export")
        found |= {"architectures": ["LLaDAMoEModelLM"], "qk_layernorm": c.qk_norm, "norm_topk_prob": False}
        found |= {"expert_intermediate_size": e.hidden, "dense_intermediate_size": found.pop("intermediate_size")}
        found |= {"shared_expert_intermediate_size": e.shared * e.hidden or None, "routed_scaling_factor": 1}
        found |= {"moe_layer_freq": [int(layer >= e.dense) for layer in range(c.depth)], "partial_rotary_factor": 1}
    else:
        found |= {"architectures": ["Qwen3MoeForCausalLM" if kind == "qwen3_moe" else "SDARMoeForCausalLM"]}
        found |= {"moe_intermediate_size": e.hidden, "norm_topk_prob": e.normalise}
        found |= {"decoder_sparse_step": 1, "mlp_only_layers": list(range(e.dense))}
    return found
