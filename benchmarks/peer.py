"""The peer: the Llama layout of `transformers`, in each configuration that could be its best on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from unveil.config import TransformerConfig
from unveil.environment import device

PRECISIONS = ("float32", "bfloat16 autocast", "bfloat16")
"""Weights and compute float32; float32 weights under autocast; weights, gradients and moments all bfloat16."""

NAME = f"transformers {transformers.__version__} Llama sdpa"

transformers.logging.set_verbosity_error()


def llama(model: TransformerConfig, size: int) -> Any:
    """A ``LlamaForCausalLM`` of the same size, freshly initialised, float32."""
    config = transformers.LlamaConfig(
        vocab_size=size,
        hidden_size=model.width,
        num_hidden_layers=model.depth,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads or model.heads,
        intermediate_size=model.hidden,
        rms_norm_eps=model.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        tie_word_embeddings=model.tie,
        attn_implementation="sdpa",
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).to(device())


def trainer(
    model: TransformerConfig, size: int, precision: str, compiled: bool, ragged: bool = False, build: Callable[..., Any] | None = None
) -> Callable[..., None]:
    """A whole step: forward with its own loss, backward, clip at 1, fused AdamW.

    Returns ``step(tokens_BL, labels_BL, mask_BL=None)``. ``ragged`` compiles for batches of any length; ``build`` makes
    another network.
    """
    network = (build or llama)(model, size).train()
    if precision == "bfloat16":
        network = network.bfloat16()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    forward = torch.compile(network, dynamic=ragged) if compiled else network

    def step(tokens_BL: Tensor, labels_BL: Tensor, mask_BL: Tensor | None = None) -> None:
        autocast = torch.autocast(device().type, torch.bfloat16) if precision.endswith("autocast") else contextlib.nullcontext()
        with autocast:
            loss = forward(input_ids=tokens_BL, attention_mask=mask_BL, labels=labels_BL, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def padded(sequences: Sequence[Tensor], left: bool = False) -> tuple[Tensor, Tensor]:
    """Tokens and attention mask ``[B, longest]``, padded with token 0."""
    side = "left" if left else "right"
    tokens_BL = nn.utils.rnn.pad_sequence(list(sequences), batch_first=True, padding_side=side)
    mask_BL = nn.utils.rnn.pad_sequence([torch.ones_like(s) for s in sequences], batch_first=True, padding_side=side)
    return tokens_BL.to(device()), mask_BL.to(device())


def generator(network: Any, prompts: Sequence[Tensor], new: int, compiled: bool) -> Callable[[], Tensor]:
    """Greedy ``generate`` of ``new`` tokens for each prompt; a call returns them, ``[B, new]``.

    Eager with the cache that grows; ``compiled`` with the static one, the only one whose shapes stay.
    """
    tokens_BL, mask_BL = padded(prompts, left=True)
    network.eval()
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": new, "use_cache": True}
    if compiled:
        network.compile(dynamic=False)
        options |= {"cache_implementation": "static", "disable_compile": True}  # compiled already, its one prefill too
    return lambda: network.generate(tokens_BL, attention_mask=mask_BL, **options)[:, tokens_BL.shape[1] :]


@torch.no_grad()
def copy_weights(ours: Any, theirs: Any) -> None:
    """Give the peer our weights: afterwards both compute the same function."""
    theirs.model.embed_tokens.weight.copy_(ours.embedding.weight)
    theirs.model.norm.weight.copy_(ours.norm.weight)
    theirs.lm_head.weight.copy_(ours.head.weight)
    for block, layer in zip(ours.blocks, theirs.model.layers, strict=True):
        layer.input_layernorm.weight.copy_(block.attention_norm.weight)
        layer.post_attention_layernorm.weight.copy_(block.feedforward_norm.weight)
        attention, mlp = layer.self_attn, layer.mlp
        _split(block.attention.qkv.weight, attention.q_proj, attention.k_proj, attention.v_proj)
        _split(block.feedforward.gate_up.weight, mlp.gate_proj, mlp.up_proj)
        attention.o_proj.weight.copy_(block.attention.out.weight)
        mlp.down_proj.weight.copy_(block.feedforward.down.weight)


def _split(fused: Tensor, *parts: Any) -> None:
    for rows, part in zip(fused.split([len(p.weight) for p in parts]), parts, strict=True):
        part.weight.copy_(rows)
