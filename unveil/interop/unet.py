"""``UNet2DModel`` of diffusers as our UNet: what its settings mean, and the names of its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from unveil.config import UNetConfig
from unveil.errors import UserError
from unveil.interop.settings import Settings
from unveil.interop.state import KERNEL, PIXEL, Part, joined, pair
from unveil.nn.convolution import Conv
from unveil.nn.unet import UNet
from unveil.nn.unet_blocks import Attention, Level, ResBlock

CLASS = "UNet2DModel"
DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
NULL_CLASS = "_null_class"
"""Ours, in their config: the last row of the class table stands for no class. Their readers pass over names with an underscore."""
Resample = Literal["conv", "resnet"]

_OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Of attention, in files of 2022."""


def renamed(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their weights under today's names."""
    state = dict(found)
    for old, new in _OLD_NAMES.items():
        state = {name.replace(old, new) if ".attentions." in name else name: tensor for name, tensor in state.items()}
    return state


def config(given: Mapping[str, Any], source: str) -> UNetConfig:
    """Our settings for theirs. Raises UserError for one that our UNet does not have, by its name."""
    s = Settings(given, DEFAULTS, source)
    s.require("center_input_sample", False)
    s.require("time_embedding_type", "positional")
    s.require("mid_block_scale_factor", 1)
    s.require("act_fn", "silu", "swish")
    s.require("class_embed_type", None)
    s.require("attn_norm_num_groups", None, s.count("norm_num_groups"))
    down, up, channels = s["down_block_types"], s["up_block_types"], s["block_out_channels"]
    if not len(down) == len(up) == len(channels):
        raise s.refusal("block_out_channels", channels, f"{len(down)} down blocks and {len(up)} up blocks want as many")
    attends_down, downsample = _kinds(s, "down_block_types", "downsample_type", "DownBlock2D", "ResnetDownsampleBlock2D", "AttnDownBlock2D")
    attends_up, upsample = _kinds(s, "up_block_types", "upsample_type", "UpBlock2D", "ResnetUpsampleBlock2D", "AttnUpBlock2D")
    where = {(False, False): "none", (True, True): "both", (True, False): "down", (False, True): "up"}
    told = s.require("resnet_time_scale_shift", "default", "scale_shift")
    rows = s.count("num_class_embeds") if s["num_class_embeds"] is not None else 0
    null = bool(given.get(NULL_CLASS, not rows))
    return UNetConfig(
        in_channels=s.count("in_channels"),
        out_channels=s.count("out_channels"),
        classes=rows - null if rows else 0,
        null_class=null,
        channels=tuple(channels),
        attention=tuple(where[pair] for pair in zip(attends_down, reversed(attends_up), strict=True)),  # type: ignore[misc]
        layers=s.count("layers_per_block"),
        middle=_middle(s, told),
        head_width=0 if s["attention_head_dim"] is None else s.count("attention_head_dim"),
        groups=s.count("norm_num_groups"),
        norm_eps=float(s.number("norm_eps")),
        dropout=float(s.number("dropout")),
        condition="shift" if told == "default" else "scale-shift",
        condition_width=0 if s["time_embedding_dim"] is None else s.count("time_embedding_dim"),
        downsample="resnet" if downsample == "resnet" else "conv" if s.require("downsample_padding", 0, 1) else "corner-conv",
        upsample=upsample,
        frequency_shift=float(s.number("freq_shift")),
        cosine_first=bool(s["flip_sin_to_cos"]),
    )


def _kinds(s: Settings, key: str, resample_key: str, plain: str, resnet: str, attending: str) -> tuple[list[bool], Resample]:
    """Which levels attend, and how those but the last change the resolution, which must be one way."""
    ways: dict[str, Resample] = {plain: "conv", resnet: "resnet", attending: s.require(resample_key, "conv", "resnet")}
    for name in s[key]:
        if name not in ways:
            raise s.refusal(key, name, "only " + ", ".join(ways) + " are supported")
    found = {ways[name] for name in s[key][:-1]}
    if len(found) > 1:
        raise s.refusal(key, ", ".join(s[key]), f"with {resample_key} '{s[resample_key]}' levels change resolution in two ways")
    return [name == attending for name in s[key]], found.pop() if found else "conv"


def _middle(s: Settings, told: str) -> Literal["attention", "bare-attention", "plain", "none"]:
    if s.require("mid_block_type", "UNetMidBlock2D", None) is None:
        return "none"
    if not s["add_attention"]:
        return "plain"
    return "bare-attention" if told == "scale_shift" and s["attn_norm_num_groups"] is None else "attention"


def settings(c: UNetConfig, size: int | Sequence[int] | None) -> dict[str, Any]:
    """Their settings for ours; what is left out has their default. Raises UserError for what their class does not have."""
    for name, value, plain in (("embedding", c.embedding, 0), ("augmentation", c.augmentation, 0), ("level", c.level, "sinusoidal")):
        if value != plain:
            raise UserError(f"model.{name}", f"is {value}, which {CLASS} does not have", "export a network without it")
    if c.middle == "bare-attention" and c.condition == "shift":
        raise UserError("model.middle", f"is 'bare-attention' with a shift, which {CLASS} does not have", "export a network without it")
    down, up = ["resnet" if way == "resnet" else "conv" for way in (c.downsample, c.upsample)]
    plain_down = {"conv": "DownBlock2D", "resnet": "ResnetDownsampleBlock2D"}[down]
    plain_up = {"conv": "UpBlock2D", "resnet": "ResnetUpsampleBlock2D"}[up]
    return {
        "_class_name": CLASS,
        NULL_CLASS: c.null_class,
        "sample_size": size if size is None or isinstance(size, int) else list(size),
        "in_channels": c.in_channels,
        "out_channels": c.out_channels or c.in_channels,
        "time_embedding_dim": c.condition_width or None,
        "freq_shift": int(c.frequency_shift) if c.frequency_shift.is_integer() else c.frequency_shift,
        "flip_sin_to_cos": c.cosine_first,
        "down_block_types": ["AttnDownBlock2D" if a in ("both", "down") else plain_down for a in c.attention],
        "up_block_types": ["AttnUpBlock2D" if a in ("both", "up") else plain_up for a in reversed(c.attention)],
        "mid_block_type": None if c.middle == "none" else "UNetMidBlock2D",
        "add_attention": c.middle != "plain",
        "attn_norm_num_groups": c.groups if c.middle == "attention" else None,
        "block_out_channels": list(c.channels),
        "layers_per_block": c.layers,
        "downsample_padding": 0 if c.downsample == "corner-conv" else 1,
        "downsample_type": down,
        "upsample_type": up,
        "dropout": c.dropout,
        "attention_head_dim": c.head_width or None,
        "norm_num_groups": c.groups,
        "norm_eps": c.norm_eps,
        "resnet_time_scale_shift": "default" if c.condition == "shift" else "scale_shift",
        "num_class_embeds": c.classes + c.null_class if c.classes else None,
    }


def parts(network: UNet) -> list[Part]:
    """Every weight of ours and what it is called there."""
    found = pair("condition.enter", "time_embedding.linear_1") + pair("condition.leave", "time_embedding.linear_2")
    if network.condition.classes is not None:
        found += [Part("condition.classes.weight", ("class_embedding.weight",))]
    found += pair("enter", "conv_in", KERNEL) + pair("norm", "conv_norm_out") + pair("leave", "conv_out", KERNEL)
    told: list[str] = []
    for ours, theirs, module in _modules(network):
        if isinstance(module, ResBlock):
            told.append(f"{theirs}.time_emb_proj")
            for name in ("norm1", "norm2"):
                found += pair(f"{ours}.{name}", f"{theirs}.{name}")
            for name in ("conv1", "conv2"):
                found += pair(f"{ours}.{name}", f"{theirs}.{name}", KERNEL)
            if module.shortcut is not None:
                found += pair(f"{ours}.shortcut", f"{theirs}.conv_shortcut", PIXEL)
        elif isinstance(module, Attention):
            if module.norm is not None:
                found += pair(f"{ours}.norm", f"{theirs}.group_norm")
            found += joined(f"{ours}.qkv", [f"{theirs}.to_{x}" for x in "qkv"]) + pair(f"{ours}.out", f"{theirs}.to_out.0")
        elif isinstance(module, Conv):
            found += pair(ours, f"{theirs}.conv", KERNEL)
    return found + joined("tell", told, network.rows)


def _modules(network: UNet) -> Iterator[tuple[str, str, nn.Module]]:
    """Blocks, attention and resampling with their names here and there, in the order in which they run."""
    levels = [(f"down.{i}", f"down_blocks.{i}", "downsamplers.0", level) for i, level in enumerate(network.down)]
    levels.append(("middle", "mid_block", "", network.middle))
    levels += [(f"up.{i}", f"up_blocks.{i}", "upsamplers.0", level) for i, level in enumerate(network.up)]
    for ours, theirs, resample, level in levels:
        assert isinstance(level, Level)
        for i, (block, attention) in enumerate(level.pairs()):
            yield f"{ours}.blocks.{i}", f"{theirs}.resnets.{i}", block
            yield f"{ours}.attention.{i}", f"{theirs}.attentions.{i}", attention
        if level.resample is not None:
            yield f"{ours}.resample", f"{theirs}.{resample}", level.resample
