"""DeepSeek-V3 as our transformer: latent attention, experts, and the layers that predict further ahead; in FP8 blocks as well.

Their rotary pairs are neighbours (``rope_interleave``), ours lie half a vector apart: rows that make rotated values are reordered. The
layers of multi-token prediction follow the trunk's under the next numbers, with copies of embedding and head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unveil.config import ExpertsConfig, LatentConfig, MTPConfig, TransformerConfig
from unveil.errors import UserError
from unveil.interop import decoder
from unveil.interop.settings import Settings
from unveil.interop.state import SAME, Layout, Part
from unveil.interop.tensors import Some
from unveil.nn import fp8
from unveil.nn.transformer import hidden_width

KIND = "deepseek_v3"
SCALE = "_scale_inv"
"""Ends the name of a quantised weight's scales, by which its codes are multiplied, whatever the name says."""
NAMES = replace(decoder.LLAMA, shared="mlp.shared_experts", bias="gate.e_score_correction_bias")
_AHEAD = {"token_norm": "enorm", "state_norm": "hnorm", "project": "eh_proj", "norm": "shared_head.norm"}
_COPIES = {"embed_tokens.weight": "model.embed_tokens.weight", "shared_head.head.weight": "lm_head.weight"}
_QUANTISED = ("self_attn.", "mlp.")

_DEFAULTS: dict[str, Any] = {
    "vocab_size": None,
    "hidden_size": None,
    "intermediate_size": None,
    "moe_intermediate_size": None,
    "num_hidden_layers": None,
    "num_attention_heads": None,
    "n_shared_experts": None,
    "n_routed_experts": None,
    "routed_scaling_factor": 1.0,
    "kv_lora_rank": None,
    "q_lora_rank": None,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": None,
    "first_k_dense_replace": 0,
    "moe_layer_freq": 1,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rope_parameters": None,
    "rope_interleave": True,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "num_nextn_predict_layers": 0,
    "num_mtp_layers": None,
}


def config(given: Mapping[str, Any], source: str) -> tuple[TransformerConfig, int, int]:
    """As ``decoder.llama``, of a DeepSeek-V3."""
    s = Settings({key: value for key, value in given.items() if key in _DEFAULTS}, _DEFAULTS, source)
    for key, wanted in (("hidden_act", "silu"), ("attention_bias", False), ("moe_layer_freq", 1), ("scoring_func", "sigmoid")):
        s.require(key, wanted)
    s.require("topk_method", "noaux_tc")
    depth = s.count("num_hidden_layers")
    dense = s["first_k_dense_replace"] and s.count("first_k_dense_replace")
    experts = ExpertsConfig()
    if dense < depth:
        experts = ExpertsConfig(
            routed=s.count("n_routed_experts"),
            top_k=s.count("num_experts_per_tok"),
            shared=(s["n_shared_experts"] and s.count("n_shared_experts")) or 0,
            hidden=s.count("moe_intermediate_size"),
            dense=dense,
            groups=s.count("n_group"),
            kept_groups=s.count("topk_group"),
            normalise=bool(s["norm_topk_prob"]),
            scale=float(s.number("routed_scaling_factor")),
        )
    ahead = s["num_nextn_predict_layers"] if s["num_mtp_layers"] is None else s["num_mtp_layers"]
    found = TransformerConfig(
        width=s.count("hidden_size"),
        depth=depth,
        heads=s.count("num_attention_heads"),
        hidden=s.count("intermediate_size"),
        norm_eps=float(s.number("rms_norm_eps")),
        rope_theta=decoder.theta(s),
        yarn=decoder.yarn(s),
        tie=bool(s["tie_word_embeddings"]),
        latent=LatentConfig(
            width=s.count("kv_lora_rank"),
            query=0 if s["q_lora_rank"] is None else s.count("q_lora_rank"),
            plain=s.count("qk_nope_head_dim"),
            rotary=s.count("qk_rope_head_dim"),
            value=s.count("v_head_dim"),
        ),
        experts=experts,
        mtp=MTPConfig(depths=ahead or 0),
    )
    return found, s.count("vocab_size"), s.count("max_position_embeddings")


def settings(c: TransformerConfig, vocabulary: int, context: int) -> dict[str, Any]:
    """Their settings for ours. Raises UserError for what a DeepSeek-V3 does not have."""
    e, latent = c.experts, c.latent
    decoder.refuse(c, "DeepSeek-V3", {"qkv_bias": False, "qk_norm": False, "kv_heads": (0, c.heads), "head_width": 0})
    if e.routed:
        for name, wanted in (("gate", "sigmoid"), ("bias", True)):
            if (value := getattr(e, name)) != wanted:
                raise UserError(f"model.experts.{name}", f"is {value}, DeepSeek-V3 has {wanted}", "train with that to export")
    if c.mtp.depths and c.mtp.carry != "normed":
        raise UserError("model.mtp.carry", f"is '{c.mtp.carry}', DeepSeek-V3's is 'normed'", "train with that to export")
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": KIND,
        "vocab_size": vocabulary,
        "hidden_size": c.width,
        "intermediate_size": hidden_width(c),
        "moe_intermediate_size": e.hidden,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.heads,
        "n_shared_experts": e.shared,
        "n_routed_experts": e.routed or e.top_k,
        "routed_scaling_factor": e.scale,
        "kv_lora_rank": latent.width,
        "q_lora_rank": latent.query or None,
        "qk_rope_head_dim": latent.rotary,
        "qk_nope_head_dim": latent.plain,
        "v_head_dim": latent.value,
        "n_group": e.groups,
        "topk_group": e.kept_groups,
        "num_experts_per_tok": e.top_k,
        "first_k_dense_replace": e.dense if e.routed else c.depth,
        "moe_layer_freq": 1,
        "norm_topk_prob": e.normalise,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": c.norm_eps,
        **decoder.rotation_settings(c),
        "rope_interleave": True,
        "attention_bias": False,
        "tie_word_embeddings": c.tie,
        "num_nextn_predict_layers": c.mtp.depths,
    }


def quantisation() -> dict[str, Any]:
    """Their setting for weights in blocks of FP8."""
    size = [fp8.TILE, fp8.TILE]
    return {"quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": size, "activation_scheme": "dynamic"}}


# Names -----------------------------------------------------------------------------------------------------------------------


def parts(c: TransformerConfig, interleaved: bool = True) -> list[Part]:
    """Every weight of ours and what it is called there."""
    found = [Part("embedding.weight", ("model.embed_tokens.weight",)), Part("norm.weight", ("model.norm.weight",))]
    found += [] if c.tie else [Part("head.weight", ("lm_head.weight",))]
    for layer in range(c.depth + c.mtp.depths):
        theirs, depth = f"model.layers.{layer}", f"mtp.{layer - c.depth}"
        ours = f"blocks.{layer}" if layer < c.depth else f"{depth}.block"
        found += _attention(c, f"{ours}.attention", f"{theirs}.self_attn", interleaved)
        for a, b in (("attention_norm", NAMES.attention_norm), ("feedforward_norm", NAMES.feedforward_norm)):
            found.append(Part(f"{ours}.{a}.weight", (f"{theirs}.{b}.weight",)))
        found += decoder.feedforward(c, layer, f"{ours}.feedforward", theirs, NAMES)
        if layer >= c.depth:
            found += [Part(f"{depth}.{a}.weight", (f"{theirs}.{b}.weight",)) for a, b in _AHEAD.items()]
    return found


def _attention(c: TransformerConfig, ours: str, theirs: str, interleaved: bool) -> list[Part]:
    latent = c.latent
    of_heads, of_key = SAME, SAME
    if interleaved:
        of_heads = _halves(c.heads, latent.plain + latent.rotary, latent.rotary)
        of_key = _halves(1, latent.width + latent.rotary, latent.rotary)
    q_up = "q_b_proj" if latent.query else "q_proj"
    rows = [("q_up", q_up, of_heads), ("kv_down", "kv_a_proj_with_mqa", of_key), ("kv_norm", "kv_a_layernorm", SAME)]
    rows += [("kv_up", "kv_b_proj", SAME), ("out", "o_proj", SAME)]
    rows += [("q_down", "q_a_proj", SAME), ("q_norm", "q_a_layernorm", SAME)] if latent.query else []
    return [Part(f"{ours}.{a}.weight", (f"{theirs}.{b}.weight",), layout) for a, b, layout in rows]


def _halves(heads: int, each: int, rotary: int) -> Layout:
    """The last ``rotary`` rows of each head: of pairs that are neighbours, first all first ones, then all second ones."""
    plain, pairs = torch.arange(each - rotary), torch.arange(each - rotary, each)
    order = torch.cat((plain, pairs[0::2], pairs[1::2]))
    index = (torch.arange(heads)[:, None] * each + order).flatten()
    back = index.argsort()
    return Layout(lambda theirs: theirs[index.to(theirs.device)], lambda ours: ours[back.to(ours.device)])


# Weights as they lie in files ------------------------------------------------------------------------------------------------


def without_missing_depths(given: Mapping[str, Any], stored: Mapping[str, Tensor]) -> dict[str, Any]:
    """Settings, without layers that predict further ahead where the files have none: ``transformers`` leaves them out and says so not."""
    layer = f"model.layers.{given.get('num_hidden_layers')}."
    if any(name.startswith(layer) for name in stored):
        return dict(given)
    return {**given, "num_nextn_predict_layers": 0, "num_mtp_layers": 0}


def plain(stored: Mapping[str, Tensor], c: TransformerConfig, source: str) -> Mapping[str, Tensor]:
    """The weights in full, one matrix for each expert and nothing twice, read when they are asked for.

    Raises UserError where a weight in FP8 has no scales.
    """
    copies = {f"model.layers.{c.depth + k}.{name}" for k in range(c.mtp.depths) for name in _COPIES}
    return _Single(_Full(Some(stored, [name for name in stored if name not in copies]), source))


class _Full(Mapping[str, Tensor]):
    """FP8 blocks times their scales, float32."""

    def __init__(self, stored: Mapping[str, Tensor], source: str) -> None:
        self._stored, self._source = stored, source

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._stored[name]
        if tensor.dtype != torch.float8_e4m3fn:
            return tensor
        if name + SCALE not in self._stored:
            raise UserError(self._source, f"'{name}' is in FP8 and its scales '{name + SCALE}' are missing", "take the whole download")
        return fp8.dequantised(tensor, self._stored[name + SCALE].float())

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._stored if not name.endswith(SCALE))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _Single(Mapping[str, Tensor]):
    """A matrix for each expert, where newer files hold all of a layer in one: gate and up, ``[E, 2F, D]``, and down, ``[E, D, F]``."""

    def __init__(self, stored: Mapping[str, Tensor]) -> None:
        self._stored, self._places = stored, dict[str, tuple[str, int, int]]()
        for name in stored:
            head, _, kind = name.rpartition(".")
            if head.endswith("mlp.experts") and kind in ("gate_up_proj", "down_proj"):
                halves = ("gate", "up") if kind == "gate_up_proj" else ("down",)
                for e in range(len(stored[name])):
                    self._places |= {f"{head}.{e}.{half}_proj.weight": (name, e, i) for i, half in enumerate(halves)}
            else:
                self._places[name] = (name, -1, 0)

    def __getitem__(self, name: str) -> Tensor:
        stored, expert, half = self._places[name]
        if expert < 0:
            return self._stored[stored]
        matrix = self._stored[stored][expert]
        return matrix.chunk(2)[half] if stored.endswith("gate_up_proj") else matrix

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def stored(state: Mapping[str, Tensor], c: TransformerConfig, in_fp8: bool) -> dict[str, Tensor]:
    """A state dict as files hold it: with the copies that their further layers have and, if asked for, in blocks of FP8."""
    found = dict(state)
    for layer in range(c.depth, c.depth + c.mtp.depths):
        found |= {f"model.layers.{layer}.{copy}": state[name] for copy, name in _COPIES.items() if name in state}
    if not in_fp8:
        return found
    for name, tensor in state.items():
        inner = name.split(".", 3)[-1]
        if tensor.dim() == 2 and inner.startswith(_QUANTISED) and not inner.startswith("mlp.gate."):
            tiled = fp8.quantised_blocks(tensor)
            found |= {name: tiled.codes[: len(tensor), : tensor.shape[1]], name + SCALE: tiled.scales}
    return found
