"""MDLM, BD3-LM and SEDD: one diffusion transformer over tokens, told the noise level, under slightly different names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from unveil.config import ScoreConfig, TransformerConfig
from unveil.errors import UserError
from unveil.interop.pickled import is_buffer
from unveil.interop.settings import Settings
from unveil.interop.state import Part, pair
from unveil.interop.tensors import Some
from unveil.nn.self_attention import head_width
from unveil.text.vocabulary import Vocabulary

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
    return _config(s, "hidden_size", s.count("cond_dim"), True), tokens + (not uniform(given)), s.count("length")


def uniform(given: Mapping[str, Any]) -> bool:
    """Whether the chain of a SEDD is the uniform one, which has no mask."""
    return given["graph"]["type"] == "uniform"


def objective(given: Mapping[str, Any], source: str) -> ScoreConfig:
    """What a SEDD was trained on. Raises UserError for a noise that is none of its authors', and for scores on another scale than ours:
    divided by the noise under the absorbing chain, as they are under the uniform one."""
    chain: Literal["absorb", "uniform"] = "uniform" if uniform(given) else "absorb"
    Settings(given["model"], {**given["model"], "scale_by_sigma": chain == "absorb"}, source).require("scale_by_sigma", chain == "absorb")
    noise = Settings(given.get("noise") or {}, {"type": "loglinear", "sigma_min": 1e-4, "sigma_max": 20.0}, source)
    if noise.require("type", "loglinear", "geometric") == "loglinear":
        return ScoreConfig(chain=chain, schedule="log-linear")
    low, high = noise.number("sigma_min"), noise.number("sigma_max")
    return ScoreConfig(chain=chain, schedule="geometric", sigma_min=float(low), sigma_max=float(high))


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


def without_buffers(found: Mapping[str, Tensor], c: TransformerConfig, source: str) -> Mapping[str, Tensor]:
    """Their weights without what follows from the settings. Raises UserError for rotary frequencies that do not."""
    wanted = frequencies(c)
    for name in found:
        if not name.endswith("rotary_emb.inv_freq"):
            continue
        tensor = found[name]
        if not (tensor.shape == wanted.shape and torch.allclose(tensor.float(), wanted)):
            problem = f"'{name}' are no frequencies to base {c.rope_theta:g}"
            raise UserError(source, problem, "convert a model with plain rotary positions")
    return Some(found, [name for name in found if not is_buffer(name)])


def frequencies(c: TransformerConfig) -> Tensor:
    """Of the rotation, float32 ``[E / 2]``, as they are stored there."""
    return 1.0 / c.rope_theta ** (torch.arange(0, head_width(c), 2).float() / head_width(c))


def buffers(c: TransformerConfig, prefix: str, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """What is stored there beside the parameters."""
    found = {f"{prefix}rotary_emb.inv_freq": frequencies(c)}
    if settings.get("model_type") == "bd3lm" and settings.get("var_min", _MDLM_DEFAULTS["var_min"]):
        found |= {name: torch.tensor(settings.get(name, _MDLM_DEFAULTS[name])) for name in ("sampling_eps_min", "sampling_eps_max")}
    return found


def _check(c: TransformerConfig, theirs: str) -> None:
    """Raises UserError for a setting that this network does not have."""
    given = {"hidden_dim": c.width, "n_blocks": c.depth, "n_heads": c.heads, "dropout": c.dropout}
    like = _config(Settings(given, _MDLM_DEFAULTS, "model"), "hidden_dim", c.condition, c.time_conditioning)
    for name in (field.name for field in dataclasses.fields(c) if not field.name.startswith("init")):
        if getattr(c, name) != getattr(like, name):
            problem = f"is {getattr(c, name)}, which {theirs} does not have"
            raise UserError(f"model.{name}", problem, f"train with {getattr(like, name)} to export")


def mdlm_settings(c: TransformerConfig, vocabulary: int, context: int) -> dict[str, Any]:
    """Their settings for ours. Raises UserError for what MDLM does not have."""
    _check(c, "MDLM")
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


def sedd_settings(c: TransformerConfig, trained: ScoreConfig, vocabulary: Vocabulary, context: int) -> dict[str, Any]:
    """As ``mdlm_settings``, of SEDD. Its scores are over all tokens but the mask, which is the last one: a vocabulary with tokens that are
    no data is refused."""
    _check(c, "SEDD")
    absorb = trained.chain == "absorb"
    none = {i for i in vocabulary.specials if i != vocabulary.end}
    if none != ({vocabulary.size - 1} if absorb else set()):
        problem = f"ids {sorted(none)} are no data, of SEDD's {'the last alone is none' if absorb else 'uniform chain all are'}"
        raise UserError("data.tokenizer", problem, "fine-tune a SEDD to export as one")
    noise = {"type": "loglinear"}
    if trained.schedule == "geometric":
        noise = {"type": "geometric", "sigma_min": trained.sigma_min, "sigma_max": trained.sigma_max}  # type: ignore[dict-item]
    sizes = {"hidden_size": c.width, "cond_dim": c.condition, "length": context, "n_blocks": c.depth, "n_heads": c.heads}
    return {
        "tokens": vocabulary.size - absorb,
        "model": {**sizes, "dropout": c.dropout, "scale_by_sigma": absorb},
        "graph": {"type": trained.chain},
        "noise": noise,
    }
