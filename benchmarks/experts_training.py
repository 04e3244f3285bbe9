"""Tokens per second of a whole training step of a 20 M-parameter DeepSeek-V3, against `transformers`' on batches without padding."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import transformers

from benchmarks import peer, setting
from benchmarks.measure import Block, Row, compare, fastest, rate, say
from unveil.config import ExpertsConfig, LatentConfig, TransformerConfig
from unveil.environment import device
from unveil.nn.packed import Packed

EXPERTS = ExpertsConfig(routed=32, top_k=4, shared=1, hidden=128, dense=1, groups=4, kept_groups=2, scale=2.5)
LATENT = LatentConfig(width=64, query=128, plain=32, rotary=32, value=64)
MODEL = TransformerConfig(width=256, depth=6, heads=4, hidden=704, latent=LATENT, experts=EXPERTS)
"""19.9 M parameters with the vocabulary of the other benchmarks, 6.4 M of them active in a token."""
PRODUCTS = ("grouped_mm", "eager")
"""Its two ways through the experts that do not copy a matrix per token."""
BATCH, LENGTH, STEPS = 8, 256, 3


def rows() -> list[Row]:
    return [row("compiled", True), row("eager", False)]


def row(name: str, compiled: bool, model: TransformerConfig = MODEL, size: int = setting.VOCABULARY, batch: int = BATCH) -> Row:
    """Ours compiled or eager; the peer at its best of precision, product and, where ours is, compilation."""
    tokens_BL = torch.randint(0, size - 6, (batch, LENGTH), generator=torch.Generator().manual_seed(0)).to(device())

    def candidate(precision: str, product: str, mode: str, steps: int = 1) -> Block:
        step = peer.trainer(model, size, precision, mode == "compiled", build=partial(deepseek, product=product))
        return lambda: rate(lambda: step(tokens_BL, tokens_BL), tokens_BL.numel(), steps)

    say(f"{name}: the peer's configuration")
    # float32 products do not compile there: its own fallback takes their place, which is another loop over experts
    modes = ("compiled", "eager") if compiled else ("eager",)
    ways = [(precision, product, mode) for precision in peer.PRECISIONS for product in PRODUCTS for mode in modes]
    ways = [way for way in ways if way[1:] != ("eager", "compiled")]  # the loop's index tensors have no static shape
    best = fastest({", ".join(way): partial(candidate, *way) for way in ways})
    precision, product, mode = best.split(", ")
    ours = setting.block(setting.trainer(model, size, compiled), [Packed.of(list(tokens_BL))], tokens_BL.numel(), STEPS)
    theirs = candidate(precision, product, mode, STEPS)
    floor = setting.floor(model, size, Packed.of(list(tokens_BL)))
    peer_name = f"transformers {transformers.__version__} DeepseekV3, {best}"
    return compare(name, ours, theirs, peer_name=peer_name, unit="tokens/s", floor=floor)


def deepseek(model: TransformerConfig, size: int, product: str = "grouped_mm") -> Any:
    """A ``DeepseekV3ForCausalLM`` of the same size, freshly initialised, float32."""
    latent, experts = model.latent, model.experts
    config = transformers.DeepseekV3Config(
        vocab_size=size,
        hidden_size=model.width,
        intermediate_size=model.hidden,
        num_hidden_layers=model.depth,
        num_attention_heads=model.heads,
        num_key_value_heads=model.heads,
        q_lora_rank=latent.query or None,
        kv_lora_rank=latent.width,
        qk_nope_head_dim=latent.plain,
        qk_rope_head_dim=latent.rotary,
        v_head_dim=latent.value,
        first_k_dense_replace=experts.dense,
        n_routed_experts=experts.routed,
        num_experts_per_tok=experts.top_k,
        n_shared_experts=experts.shared,
        moe_intermediate_size=experts.hidden,
        n_group=experts.groups,
        topk_group=experts.kept_groups,
        norm_topk_prob=experts.normalise,
        routed_scaling_factor=experts.scale,
        rms_norm_eps=model.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        rope_interleave=False,
        attn_implementation="sdpa",
        experts_implementation=product,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    network = transformers.DeepseekV3ForCausalLM(config).to(device())
    # it leaves routers at zero and experts as they were allocated: a load like ours wants random ones
    for p in network.parameters():
        if p.dim() >= 2:
            torch.nn.init.normal_(p, std=model.init_std)
    return network
