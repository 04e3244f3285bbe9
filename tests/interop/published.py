"""Published language models: their settings, and every weight with its shape as their files list them. Written down from the models' own
descriptions, block by block; nothing here asks our code what it thinks.
"""

from __future__ import annotations

from typing import Any

Shapes = dict[str, tuple[int, ...]]

LLADA: dict[str, Any] = {
    "model_type": "llada",
    "architectures": ["LLaDAModelLM"],
    "activation_type": "silu",
    "alibi": False,
    "alibi_bias_max": 8.0,
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "attention_layer_norm_with_affine": True,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 4096,
    "embedding_dropout": 0.0,
    "embedding_size": 126464,
    "eos_token_id": 126081,
    "flash_attention": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "init_fn": "mitchell",
    "init_std": 0.02,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "mask_token_id": 126336,
    "max_sequence_length": 4096,
    "mlp_hidden_size": 12288,
    "mlp_ratio": 4,
    "multi_query_attention": None,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "pad_token_id": 126081,
    "precision": "amp_bf16",
    "residual_dropout": 0.0,
    "rms_norm_eps": 1e-05,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "use_cache": False,
    "vocab_size": 126464,
    "weight_tying": False,
}
DREAM: dict[str, Any] = {
    "model_type": "Dream",
    "architectures": ["DreamModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "pad_token_id": 151643,
    "mask_token_id": 151666,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}


def _sdar(width: int, hidden: int, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": 36, "num_attention_heads": 32}
    sizes |= {"num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 32768, "vocab_size": 151936}
    rest = {"rms_norm_eps": 1e-06, "rope_theta": 1000000, "rope_scaling": None, "tie_word_embeddings": False, "attention_bias": False}
    rest |= {"hidden_act": "silu", "use_sliding_window": False, "sliding_window": None, "bos_token_id": 151643, "eos_token_id": 151643}
    return {"model_type": "sdar", "architectures": ["SDARForCausalLM"], **sizes, **rest, **more}


def _deepseek(width: int, hidden: int, depth: int, heads: int, kv_heads: int) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": depth, "num_attention_heads": heads}
    sizes |= {"num_key_value_heads": kv_heads, "max_position_embeddings": 4096, "vocab_size": 102400}
    rest = {"rms_norm_eps": 1e-06, "rope_theta": 10000.0, "rope_scaling": None, "tie_word_embeddings": False, "attention_bias": False}
    rest |= {"hidden_act": "silu", "pretraining_tp": 1, "bos_token_id": 100000, "eos_token_id": 100001}
    return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **sizes, **rest}


_MDLM = {"vocab_size": 50258, "hidden_dim": 768, "cond_dim": 128, "n_blocks": 12, "n_heads": 12, "dropout": 0.1, "model_length": 1024}


def _bd3lm(block: int) -> dict[str, Any]:
    return {
        "model_type": "bd3lm",
        **_MDLM,
        "block_size": block,
        "cross_attn": True,
        "attn_backend": "flex",
        "causal": False,
        "var_min": True,
        "sampling_eps_min": 1e-3,
        "sampling_eps_max": 0.999,
        "time_conditioning": False,
    }


def _sedd(width: int, depth: int, heads: int, chain: str = "absorb") -> dict[str, Any]:
    absorb = chain == "absorb"
    model = {"name": "small", "type": "ddit", "hidden_size": width, "cond_dim": 128, "length": 1024, "n_blocks": depth, "n_heads": heads}
    noise = {"type": "loglinear" if absorb else "geometric", "sigma_min": 1e-4, "sigma_max": 20}
    graph = {"type": chain, "file": "data", "report_all": False}
    return {"ngpus": 8, "tokens": 50257, "model": {**model, "scale_by_sigma": absorb, "dropout": 0.1}, "graph": graph, "noise": noise}


# Weights ---------------------------------------------------------------------------------------------------------------------


def llada_shapes() -> Shapes:
    d, f, v = 4096, 12288, 126464
    shapes: Shapes = {"model.transformer.wte.weight": (v, d)}
    for i in range(32):
        block: Shapes = {"attn_norm": (d,), "q_proj": (d, d), "k_proj": (d, d), "v_proj": (d, d), "attn_out": (d, d)}
        block |= {"ff_norm": (d,), "ff_proj": (f, d), "up_proj": (f, d), "ff_out": (d, f)}
        shapes |= {f"model.transformer.blocks.{i}.{name}.weight": shape for name, shape in block.items()}
    return shapes | {"model.transformer.ln_f.weight": (d,), "model.transformer.ff_out.weight": (v, d)}


def llama_shapes(d: int, f: int, v: int, depth: int, q: int, kv: int, bias: bool = False, head: int = 0) -> Shapes:
    """q and kv: rows of the projections. head: width of the norms of queries and keys, 0 without."""
    shapes: Shapes = {"model.embed_tokens.weight": (v, d), "model.norm.weight": (d,), "lm_head.weight": (v, d)}
    for i in range(depth):
        block: Shapes = {"input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,)}
        block |= {"self_attn.q_proj.weight": (q, d), "self_attn.k_proj.weight": (kv, d), "self_attn.v_proj.weight": (kv, d)}
        block |= {"self_attn.o_proj.weight": (d, q)}
        block |= {"mlp.gate_proj.weight": (f, d), "mlp.up_proj.weight": (f, d), "mlp.down_proj.weight": (d, f)}
        if bias:
            block |= {"self_attn.q_proj.bias": (q,), "self_attn.k_proj.bias": (kv,), "self_attn.v_proj.bias": (kv,)}
        if head:
            block |= {"self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,)}
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in block.items()}
    return shapes


def dit_shapes(prefix: str, d: int, depth: int, v: int, c: int = 128) -> Shapes:
    shapes: Shapes = {"vocab_embed.embedding": (v, d)}
    shapes |= {"sigma_map.mlp.0.weight": (c, 256), "sigma_map.mlp.0.bias": (c,)}
    shapes |= {"sigma_map.mlp.2.weight": (c, c), "sigma_map.mlp.2.bias": (c,)}
    for i in range(depth):
        block: Shapes = {"norm1.weight": (d,), "attn_qkv.weight": (3 * d, d), "attn_out.weight": (d, d), "norm2.weight": (d,)}
        block |= {"mlp.0.weight": (4 * d, d), "mlp.0.bias": (4 * d,), "mlp.2.weight": (d, 4 * d), "mlp.2.bias": (d,)}
        block |= {"adaLN_modulation.weight": (6 * d, c), "adaLN_modulation.bias": (6 * d,)}
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    shapes |= {"output_layer.norm_final.weight": (d,), "output_layer.linear.weight": (v, d), "output_layer.linear.bias": (v,)}
    shapes |= {"output_layer.adaLN_modulation.weight": (2 * d, c), "output_layer.adaLN_modulation.bias": (2 * d,)}
    return {prefix + name: shape for name, shape in shapes.items()}


_QWEN25 = llama_shapes(3584, 18944, 152064, 28, 3584, 512, bias=True)
_OWT = dit_shapes("backbone.", 768, 12, 50258)
PUBLISHED: dict[str, tuple[dict[str, Any], Shapes]] = {
    "LLaDA-8B": (LLADA, llada_shapes()),
    "LLaDA-1.5": (LLADA, llada_shapes()),
    "Dream-v0-7B": (DREAM, _QWEN25),
    "DiffuCoder-7B": (DREAM, _QWEN25),
    "SDAR-4B": (_sdar(2560, 9728), llama_shapes(2560, 9728, 151936, 36, 4096, 1024, head=128)),
    "SDAR-8B": (_sdar(4096, 12288, block_size=4, mask_token_id=151669), llama_shapes(4096, 12288, 151936, 36, 4096, 1024, head=128)),
    "mdlm-owt": ({"model_type": "mdlm", **_MDLM, "time_conditioning": False}, _OWT),
    **{f"bd3lm-owt-block_size{block}": (_bd3lm(block), _OWT) for block in (4, 8, 16)},
    "bd3lm-owt-block_size1024-pretrain": (_bd3lm(1024), _OWT),
    "sedd-small": (_sedd(768, 12, 12), dit_shapes("", 768, 12, 50258)),
    "sedd-medium": (_sedd(1024, 24, 16), dit_shapes("", 1024, 24, 50258)),
    "sedd-small, uniform": (_sedd(768, 12, 12, "uniform"), dit_shapes("", 768, 12, 50257)),
    "deepseek-llm-7b": (_deepseek(4096, 11008, 30, 32, 32), llama_shapes(4096, 11008, 102400, 30, 4096, 4096)),
    "deepseek-llm-67b": (_deepseek(8192, 22016, 95, 64, 8), llama_shapes(8192, 22016, 102400, 95, 8192, 1024)),
}
BUFFERS: dict[str, Shapes] = {
    "mdlm": {"backbone.rotary_emb.inv_freq": (32,)},
    "bd3lm": {"backbone.rotary_emb.inv_freq": (32,), "sampling_eps_min": (), "sampling_eps_max": ()},
    "sedd": {"rotary_emb.inv_freq": (32,)},
}
"""What is stored there beside the weights, by kind."""
TENSORS = {"LLaDA-8B": 291, "Dream-v0-7B": 339, "SDAR-4B": 399, "SDAR-8B": 399, "deepseek-llm-7b": 273, "deepseek-llm-67b": 858}
"""How many there are."""
PARAMETERS = {
    "LLaDA-8B": 8_015_581_184,
    "Dream-v0-7B": 7_615_616_512,  # half of the total_size, in bytes, that Qwen2.5-7B's index states
    "SDAR-4B": 4_411_424_256,
    "SDAR-8B": 8_190_735_360,  # Qwen3-8B's
    "deepseek-llm-7b": 6_910_365_696,
}
BYTES = {"mdlm-owt": 679e6}
"""Of the published file in float32, to its last digit."""
