"""MDLM, BD3-LM and SEDD: one diffusion transformer over tokens, told the noise level, under slightly different names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unveil.config import ScoreConfig, TransformerConfig
from unveil.errors import UserError
from unveil.interop.pickled import is_buffer
from unveil.interop.settings import Settings
from unveil.interop.state import Part, pair
from unveil.nn.self_attention import head_width

BACKBONE = "backbone."
"""Before every name of MDLM's and BD3-LM's; SEDD has none."""
_MDLM_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50258,
    "model_length": 1024,
    "hidden_dim": 768,
    "cond_dim": 129,
    "n_blocks": 12,
    "n_heads": 12,
    "dropout": 0.1,
    "time_conditioning": False,
    "block_size": 1,
    "cross_attn": True,
    "adaln": True,
    "causal": False,
    "var_min": True,
    "sampling_eps_min": 1e-3,
    "sampling_eps_max": 0.999,
}
_SEDD_DEFAULTS: dict[str, Any] = {"hidden_size": 768, "cond_dim": 128, "length": 1024, "n_blocks": 12, "n_heads": 12, "dropout": 0.1}
_BLOCK = {"attention_norm": "norm1", "attention.qkv": "attn_qkv", "attention.out": "attn_out", "feedforward_norm": "norm2"}


def mdlm(given: Mapping[str, Any], source: str) -> tuple[TransformerConfig, int, int]:
    """Our settings, the number of tokens and the longest context, of an MDLM or a BD3-LM. Raises UserError as ``decoder.llama``."""
    s = Settings({key: value for key, value in given.items() if key in _MDLM_DEFAULTS}, _MDLM_DEFAULTS, source)
    s.require("causal", False)
    told = bool(s["time_conditioning"])
    if told and not s["adaln"]:
        raise s.refusal("time_conditioning", True, "adaln is false: the network has no way to hear of it")
    config = _config(s, "hidden_dim", s.count("cond_dim") if s["adaln"] else 0, told)
    return config, s.count("vocab_size"), s.count("model_length")


def sedd(given: Mapping[str, Any], source: str) -> tuple[TransformerConfig, int, int]:
    """As ``mdlm``, of a SEDD: its settings lie in tables. The absorbing chain has a token more than the data."""
    model, graph = (given.get(key) for key in ("model", "graph"))
    if not isinstance(model, Mapping) or not isinstance(graph, Mapping) or graph.get("type") not in ("absorb", "uniform"):
        raise UserError(source, "names no model and no graph of type absorb or uniform", "take the config.json of a SEDD")
    s = Settings({key: value for key, value in model.items() if key in _SEDD_DEFAULTS}, _SEDD_DEFAULTS, source)
    tokens = Settings({"tokens": given.get("tokens")}, {"tokens": 50257}, source).count("tokens")
    return _config(s, "hidden_size", s.count("cond_dim"), True), tokens + (graph["type"] == "absorb"), s.count("length")


def ratios(given: Mapping[str, Any], source: str) -> ScoreConfig:
    """The objective of a SEDD. Raises UserError for the uniform chain, whose tokenizer has no mask to say what is to be uncovered."""
    if given["graph"]["type"] == "uniform":
        raise UserError(source, "graph.type is uniform: no token marks what is to be uncovered", "take a SEDD of the chain absorb")
    if given["model"].get("scale_by_sigma", True) is not True:
        raise UserError(source, "model.scale_by_sigma is false, with masks", "take a SEDD whose scores are scaled")
    noise = given.get("noise") or {}
    if noise.get("type", "loglinear") == "loglinear":
        return ScoreConfig()
    if noise["type"] != "geometric":
        raise UserError(source, f"noise.type is {noise['type']!r}", "take a SEDD with noise loglinear or geometric")
    s = Settings({key: noise[key] for key in ("sigma_min", "sigma_max") if key in noise}, {"sigma_min": 1e-4, "sigma_max": 20.0}, source)
    return ScoreConfig(schedule="geometric", sigma_min=s.number("sigma_min"), sigma_max=s.number("sigma_max"))


def _config(s: Settings, width: str, condition: int, told: bool) -> TransformerConfig:
    return TransformerConfig(
        width=s.count(width),
        depth=s.count("n_blocks"),
        heads=s.count("n_heads"),
        hidden=4 * s.count(width),
        norm="layer",
        norm_eps=1e-5,
        feedforward="gelu",
        head_bias=True,
        condition=condition,
        time_conditioning=told,
        dropout=float(s.number("dropout")),
    )


def parts(c: TransformerConfig, prefix: str) -> list[Part]:
    """Every weight of ours and what it is called there."""
    out = f"{prefix}output_layer"
    found = [Part("embedding.weight", (f"{prefix}vocab_embed.embedding",)), Part("norm.weight", (f"{out}.norm_final.weight",))]
    found += pair("head", f"{out}.linear")
    if c.condition:
        found += pair("level.enter", f"{prefix}sigma_map.mlp.0") + pair("level.leave", f"{prefix}sigma_map.mlp.2")
        found += pair("tell", f"{out}.adaLN_modulation")
    for i in range(c.depth):
        ours, theirs = f"blocks.{i}", f"{prefix}blocks.{i}"
        for a, b in _BLOCK.items():
            found.append(Part(f"{ours}.{a}.weight", (f"{theirs}.{b}.weight",)))
        found += pair(f"{ours}.feedforward.up", f"{theirs}.mlp.0") + pair(f"{ours}.feedforward.down", f"{theirs}.mlp.2")
        found += pair(f"{ours}.tell", f"{theirs}.adaLN_modulation") if c.condition else []
    return found


def without_buffers(found: Mapping[str, Tensor], c: TransformerConfig, source: str) -> dict[str, Tensor]:
    """Their weights without what follows from the settings. Raises UserError for rotary frequencies that do not."""
    wanted = frequencies(c)
    for name, tensor in found.items():
        if name.endswith("rotary_emb.inv_freq") and not (tensor.shape == wanted.shape and torch.allclose(tensor.float(), wanted)):
            problem = f"'{name}' are no frequencies to base {c.rope_theta:g}"
            raise UserError(source, problem, "convert a model with plain rotary positions")
    return {name: tensor for name, tensor in found.items() if not is_buffer(name)}


def frequencies(c: TransformerConfig) -> Tensor:
    """Of the rotation, float32 ``[E / 2]``, as they are stored there."""
    return 1.0 / c.rope_theta ** (torch.arange(0, head_width(c), 2).float() / head_width(c))


def buffers(c: TransformerConfig, prefix: str, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """What is stored there beside the parameters."""
    found = {f"{prefix}rotary_emb.inv_freq": frequencies(c)}
    if settings.get("model_type") == "bd3lm" and settings.get("var_min", _MDLM_DEFAULTS["var_min"]):
        found |= {name: torch.tensor(settings.get(name, _MDLM_DEFAULTS[name])) for name in ("sampling_eps_min", "sampling_eps_max")}
    return found


def mdlm_settings(c: TransformerConfig, vocabulary: int, context: int) -> dict[str, Any]:
    """Their settings for ours. Raises UserError for what MDLM does not have."""
    given = {"hidden_dim": c.width, "n_blocks": c.depth, "n_heads": c.heads, "dropout": c.dropout}
    like = _config(Settings(given, _MDLM_DEFAULTS, "model"), "hidden_dim", c.condition, c.time_conditioning)
    for name in (field.name for field in dataclasses.fields(c) if not field.name.startswith("init")):
        if getattr(c, name) != getattr(like, name):
            problem = f"is {getattr(c, name)}, which MDLM does not have"
            raise UserError(f"model.{name}", problem, f"train with {getattr(like, name)} to export")
    return {
        "architectures": ["MDLM"],
        "model_type": "mdlm",
        "vocab_size": vocabulary,
        "model_length": context,
        "hidden_dim": c.width,
        "cond_dim": c.condition,
        "n_blocks": c.depth,
        "n_heads": c.heads,
        "dropout": c.dropout,
        "time_conditioning": c.time_conditioning,
        **({} if c.condition else {"adaln": False}),
    }
