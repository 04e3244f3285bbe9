"""``DiTTransformer2DModel`` of diffusers as our DiT: what its settings mean, and the names of its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from unveil.config import DiTConfig
from unveil.errors import UserError
from unveil.interop.settings import Settings
from unveil.interop.state import Layout, Part, joined, pair
from unveil.nn.dit import DiT

CLASS = "DiTTransformer2DModel"
DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "dropout": 0.0,
    "norm_num_groups": 32,
    "attention_bias": True,
    "sample_size": 32,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "upcast_attention": False,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-5,
}
_EMBEDDER = "norm1.emb"


def renamed(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their weights, without the table of positions that older files hold: it follows from the size."""
    return {name: tensor for name, tensor in found.items() if name != "pos_embed.pos_embed"}


def config(given: Mapping[str, Any], found: Mapping[str, Tensor], source: str) -> DiTConfig:
    """Our settings for theirs. Raises UserError for one that our DiT does not have, by its name.

    Their blocks each hold an embedder of noise level and class. In the published weights all are the same one; those of a network that
    was trained there have gone their own ways, which only ``found``, the weights, tell.
    """
    s = Settings(given, DEFAULTS, source)
    s.require("attention_bias", True)
    s.require("activation_fn", "gelu-approximate")
    s.require("norm_type", "ada_norm_zero")
    s.require("norm_elementwise_affine", False)
    heads = s.count("num_attention_heads")
    return DiTConfig(
        in_channels=s.count("in_channels"),
        out_channels=0 if s["out_channels"] is None else s.count("out_channels"),
        classes=s.count("num_embeds_ada_norm"),
        size=s.count("sample_size"),
        patch=s.count("patch_size"),
        width=heads * s.count("attention_head_dim"),
        depth=s.count("num_layers"),
        heads=heads,
        feedforward_norm_eps=float(s.number("norm_eps")),
        dropout=float(s.number("dropout")),
        embedders=_embedders(found),
    )


def _embedders(found: Mapping[str, Tensor]) -> Literal["shared", "per-block"]:
    first = {name: value for name, value in found.items() if name.startswith(f"transformer_blocks.0.{_EMBEDDER}")}
    for name, value in found.items():
        block, inside, rest = name.partition(f".{_EMBEDDER}")
        if block.startswith("transformer_blocks") and inside:
            theirs = first.get(f"transformer_blocks.0{inside}{rest}")
            if theirs is not None and not torch.equal(value, theirs):
                return "per-block"
    return "shared"


def settings(c: DiTConfig, size: int | Sequence[int] | None) -> dict[str, Any]:
    """Their settings for ours; what is left out has their default. Raises UserError for what their class does not have."""
    absent = (
        ("embedding", c.embedding, not c.embedding),
        ("augmentation", c.augmentation, not c.augmentation),
        ("level", c.level, c.level == "sinusoidal"),
        ("classes", c.classes, c.classes > 0),
        ("null_class", c.null_class, c.null_class),
        ("hidden", c.hidden, c.hidden in (0, 4 * c.width)),
    )
    for name, value, fits in absent:
        if not fits:
            raise UserError(f"model.{name}", f"is {value}, which {CLASS} does not have", "export a network without it")
    if size not in (None, c.size, (c.size, c.size)):
        raise UserError("size", f"is {size}, the network was trained at {c.size}", f"export it at {c.size}")
    return {
        "_class_name": CLASS,
        "num_attention_heads": c.heads,
        "attention_head_dim": c.width // c.heads,
        "in_channels": c.in_channels,
        "out_channels": c.out_channels or c.in_channels,
        "num_layers": c.depth,
        "dropout": c.dropout,
        "sample_size": c.size,
        "patch_size": c.patch,
        "num_embeds_ada_norm": c.classes,
        "norm_eps": c.feedforward_norm_eps,
    }


def parts(network: DiT) -> list[Part]:
    """Every weight of ours and what it is called there; a shared embedder stands in each of their blocks."""
    c = network.config
    patch, channels = c.patch, network.out_channels
    enter = Layout(lambda theirs: theirs.flatten(1), lambda ours: ours.unflatten(1, (c.in_channels, patch, patch)))
    # rows of the last matrix: row, column, channel there; channel, row, column here
    leave = Layout(
        lambda theirs: theirs.unflatten(0, (patch, patch, channels)).movedim(2, 0).flatten(0, 2),
        lambda ours: ours.unflatten(0, (channels, patch, patch)).movedim(0, 2).flatten(0, 2),
    )
    found = pair("enter", "pos_embed.proj", enter) + pair("tell", "proj_out_1")
    found += [Part(f"leave.{kind}", (f"proj_out_2.{kind}",), leave) for kind in ("weight", "bias")]
    for i in range(c.depth):
        ours, theirs = f"blocks.{i}", f"transformer_blocks.{i}"
        condition, embedder = f"condition.{i % len(network.condition)}", f"{theirs}.{_EMBEDDER}"
        found += pair(f"{condition}.enter", f"{embedder}.timestep_embedder.linear_1")
        found += pair(f"{condition}.leave", f"{embedder}.timestep_embedder.linear_2")
        found += [Part(f"{condition}.classes.weight", (f"{embedder}.class_embedder.embedding_table.weight",))]
        found += pair(f"{ours}.tell", f"{theirs}.norm1.linear")
        found += joined(f"{ours}.qkv", [f"{theirs}.attn1.to_{x}" for x in "qkv"]) + pair(f"{ours}.out", f"{theirs}.attn1.to_out.0")
        found += pair(f"{ours}.up", f"{theirs}.ff.net.0.proj") + pair(f"{ours}.down", f"{theirs}.ff.net.2")
    return found
