"""Experts: against a loop over tokens, DeepSeek's own numbers, and `transformers`; packed, checkpointed, cached and compiled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unveil.config import ExpertsConfig, LatentConfig, TransformerConfig
from unveil.nn import grouped as products
from unveil.nn.block_diffusion import two_stream
from unveil.nn.grouped import grouped, plan
from unveil.nn.layout import Bidirectional, BlockCausal, Causal, Layout
from unveil.nn.moe import Experts
from unveil.nn.packed import Packed
from unveil.nn.partial import Span, new_store, read
from unveil.nn.transformer import Transformer, active

V = 23
VARIANTS = {
    "plain": {"routed": 6, "top_k": 2},
    "shared": {"routed": 6, "top_k": 3, "shared": 2, "scale": 2.5},
    "groups": {"routed": 8, "top_k": 2, "shared": 1, "groups": 4, "kept_groups": 2, "scale": 2.5},
    "softmax": {"routed": 6, "top_k": 2, "gate": "softmax", "bias": False, "normalise": False},
    "one of many, most of them empty": {"routed": 64, "top_k": 1},
}


def layer(**switches: object) -> Experts:
    torch.manual_seed(0)
    made = Experts(10, ExpertsConfig(**{"hidden": 7, **switches})).double()  # type: ignore[arg-type]
    for p in made.parameters():
        p.data.normal_(0.0, 0.4)
    if made.router.bias is not None:
        made.router.bias.normal_(0.0, 0.1)
    return made


def network(dtype: torch.dtype = torch.float64, layout: Layout | None = None, **switches: object) -> Transformer:
    torch.manual_seed(0)
    experts = ExpertsConfig(routed=8, top_k=2, shared=1, hidden=12, dense=1, groups=4, kept_groups=2, scale=2.5)
    base = {"width": 32, "depth": 3, "heads": 4, "hidden": 64, "init": "normal", "init_std": 0.3, "experts": experts}
    made = Transformer(TransformerConfig(**{**base, **switches}), V, layout or Causal()).to(dtype)  # type: ignore[arg-type]
    made.compute_dtype = dtype
    for name, buffer in made.named_buffers():
        if name.endswith("bias"):
            buffer.normal_(0.0, 0.1)
    return made


def sequences(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, V, (n,), generator=generator) for n in lengths]


def token_by_token(made: Experts, x_TD: torch.Tensor) -> torch.Tensor:
    """The plain twin: every expert of every token on its own."""
    out = []
    chosen, weights, _ = made.router(x_TD)
    for x, experts, shares in zip(x_TD, chosen.tolist(), weights, strict=True):
        total = torch.zeros_like(x) if made.shared is None else made.shared(x)
        for expert, share in zip(experts, shares, strict=True):
            gate, up = (made.gate_up.weight[expert] @ x).chunk(2)
            total = total + share * (made.down.weight[expert] @ (F.silu(gate) * up))
        out.append(total)
    return torch.stack(out)


@pytest.mark.parametrize("switches", VARIANTS.values(), ids=VARIANTS.keys())
def test_outputs_and_gradients_equal_a_loop_over_tokens(switches: dict[str, object]) -> None:
    made = layer(**switches)
    x = torch.randn(17, 10, dtype=torch.float64, requires_grad=True)
    wanted = [x, *made.parameters()]
    fast, slow = made(x), token_by_token(made, x)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-13)
    probe = torch.randn_like(fast)
    for a, b in zip(torch.autograd.grad((fast * probe).sum(), wanted), torch.autograd.grad((slow * probe).sum(), wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    # a gradient without strides, as of a plain sum
    assert torch.isfinite(torch.autograd.grad(made(x).sum(), x)[0]).all()


def test_bfloat16_products_in_pieces_are_those_of_the_whole() -> None:
    """Rows of one expert cut where the operator cuts them, and an expert without any: within what bfloat16 rounds."""
    torch.manual_seed(0)
    lengths = [70, 0, 5, 32]
    chosen = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[torch.randperm(107)][:, None]
    by = plan(chosen, 4)
    assert by.ends_E.tolist() == [70, 70, 75, 107]
    x, weight, grad = torch.randn(107, 16), torch.randn(4, 24, 16), torch.randn(107, 24)
    narrow = [t.bfloat16().requires_grad_() for t in (x, weight)]
    found = grouped(narrow[0], narrow[1], by)
    wide = [t.detach().double().requires_grad_() for t in narrow]
    wanted = torch.cat([part @ wide[1][e].T for e, part in enumerate(wide[0].split(lengths))])
    torch.testing.assert_close(found.double(), wanted, rtol=2**-7, atol=1e-2)
    gradients = torch.autograd.grad(found, narrow, grad.bfloat16())
    for a, b in zip(gradients, torch.autograd.grad(wanted, wide, grad.bfloat16().double()), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2**-7, atol=2e-1)
    assert not gradients[1][1].any()


def test_torchs_grouped_product_as_it_is_called_on_a_gpu_equals_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its three forms, by its own implementation for CPUs."""
    found = []
    for fused in (False, True):
        monkeypatch.setattr(products, "_fused", lambda *operands, chosen=fused: chosen)
        torch.manual_seed(0)
        by = plan(torch.randint(0, 5, (30, 2)), 6)  # nobody goes to the last expert
        x, weight = torch.randn(60, 16, requires_grad=True), torch.randn(6, 24, 16, requires_grad=True)
        out = grouped(x, weight, by)
        found.append([out, *torch.autograd.grad((out * torch.randn(60, 24)).sum(), (x, weight))])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)
    assert not found[1][2][5].any()


def test_a_token_is_treated_alike_in_any_company() -> None:
    """And none is dropped, though all want the same experts."""
    made = layer(routed=6, top_k=2)
    x = torch.randn(1, 10, dtype=torch.float64)
    torch.testing.assert_close(made(x.repeat(40, 1)), made(x).repeat(40, 1), rtol=0, atol=1e-13)


@torch.no_grad()
def test_deepseeks_own_layer(data_dir: Path) -> None:
    stored = np.load(data_dir / "golden" / "dsv3_moe.npz")
    state = {name.removeprefix("inputs.moe.state."): torch.from_numpy(stored[name]) for name in stored if ".moe.state" in name}
    ours = Experts(16, ExpertsConfig(routed=8, top_k=2, shared=1, hidden=12, groups=4, kept_groups=2, scale=2.5))
    both = [torch.cat((state[f"{e}.w1.weight"], state[f"{e}.w3.weight"])) for e in (*(f"experts.{i}" for i in range(8)), "shared_experts")]
    ours.load_state_dict(
        {
            "router.weight": state["gate.weight"],
            "router.bias": state["gate.bias"],
            "gate_up.weight": torch.stack(both[:8]),
            "down.weight": torch.stack([state[f"experts.{i}.w2.weight"] for i in range(8)]),
            "shared.gate_up.weight": both[8],
            "shared.down.weight": state["shared_experts.w2.weight"],
        }
    )
    found = ours(torch.from_numpy(stored["inputs.moe.x"]).flatten(0, 1))
    torch.testing.assert_close(found, torch.from_numpy(stored["outputs.moe.y"]).flatten(0, 1), rtol=1e-6, atol=5e-6)  # values up to 29


def deepseek(ours: Transformer) -> tuple[torch.nn.Module, dict[str, str]]:
    transformers = pytest.importorskip("transformers")
    latent, experts = ours.config.latent, ours.config.experts
    theirs = transformers.DeepseekV3ForCausalLM(
        transformers.DeepseekV3Config(
            vocab_size=V, hidden_size=32, intermediate_size=64, num_hidden_layers=3, first_k_dense_replace=1, num_attention_heads=4,
            num_key_value_heads=4, q_lora_rank=latent.query, kv_lora_rank=latent.width, qk_nope_head_dim=latent.plain,
            qk_rope_head_dim=latent.rotary, v_head_dim=latent.value, rms_norm_eps=1e-6, rope_interleave=False,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, n_routed_experts=experts.routed,
            n_shared_experts=experts.shared,
            num_experts_per_tok=experts.top_k, moe_intermediate_size=experts.hidden, n_group=experts.groups, topk_group=experts.kept_groups,
            norm_topk_prob=experts.normalise, routed_scaling_factor=experts.scale, attn_implementation="eager",
        )
    )  # fmt: skip
    names = {
        "attention.q_down": "self_attn.q_a_proj", "attention.q_norm": "self_attn.q_a_layernorm", "attention.q_up": "self_attn.q_b_proj",
        "attention.kv_down": "self_attn.kv_a_proj_with_mqa", "attention.kv_norm": "self_attn.kv_a_layernorm",
        "attention.kv_up": "self_attn.kv_b_proj", "attention.out": "self_attn.o_proj",
    }  # fmt: skip
    return theirs, names


def qwen(ours: Transformer) -> tuple[torch.nn.Module, dict[str, str]]:
    transformers = pytest.importorskip("transformers")
    experts = ours.config.experts
    theirs = transformers.Qwen3MoeForCausalLM(
        transformers.Qwen3MoeConfig(
            vocab_size=V, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
            head_dim=8, rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, num_experts=experts.routed,
            num_experts_per_tok=experts.top_k, moe_intermediate_size=experts.hidden, norm_topk_prob=True, mlp_only_layers=[0],
            decoder_sparse_step=1, attn_implementation="eager",
        )
    )  # fmt: skip
    names = {"attention.out": "self_attn.o_proj", "attention.q_norm": "self_attn.q_norm", "attention.k_norm": "self_attn.k_norm"}
    return theirs, names


QWEN = ExpertsConfig(routed=8, top_k=3, hidden=12, dense=1, gate="softmax", bias=False)
PEERS = {
    "DeepSeek-V3": (deepseek, {"latent": LatentConfig(width=16, query=12, plain=8, rotary=8, value=6)}),
    "Qwen3-MoE": (qwen, {"kv_heads": 2, "qk_norm": True, "experts": QWEN}),
}


@pytest.mark.parametrize("peer", PEERS)
def test_logits_and_gradients_equal_transformers(peer: str) -> None:
    """float32, random weights, a bias that is not zero."""
    build, switches = PEERS[peer]
    ours = network(torch.float32, **switches)
    theirs, names = build(ours)
    names |= {"feedforward.router": "mlp.gate", "feedforward.shared.down": "mlp.shared_experts.down_proj"}
    names |= {"attention_norm": "input_layernorm", "feedforward_norm": "post_attention_layernorm"}

    def renamed(named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Ours under their names."""
        top = {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight", "head.weight": "lm_head.weight"}
        found = {}
        for full, tensor in named.items():
            if full in top:
                found[top[full]] = tensor
                continue
            _, index, rest = full.split(".", 2)
            name, kind = rest.rsplit(".", 1)
            at = f"model.layers.{index}."
            if name == "attention.qkv":
                parts = zip("qkv", tensor.split((32, 16, 16)), strict=True)
                found |= {f"{at}self_attn.{letter}_proj.weight": part for letter, part in parts}
            elif name in ("feedforward.gate_up", "feedforward.shared.gate_up") and tensor.dim() == 2:
                inner = "mlp.shared_experts" if "shared" in name else "mlp"
                found |= {f"{at}{inner}.{p}_proj.weight": half for p, half in zip(("gate", "up"), tensor.chunk(2), strict=True)}
            elif tensor.dim() == 3:
                found[f"{at}mlp.experts.{name.removeprefix('feedforward.')}_proj"] = tensor
            elif kind == "bias":
                found[f"{at}mlp.gate.e_score_correction_bias"] = tensor
            else:
                found[f"{at}{names.get(name, 'mlp.down_proj' if name == 'feedforward.down' else name)}.weight"] = tensor
        return found

    theirs.load_state_dict(renamed(ours.state_dict()))
    tokens = sequences(48)[0]
    mine, other = ours.head(ours(Packed.of([tokens]))), theirs(tokens[None]).logits[0]
    torch.testing.assert_close(mine, other, rtol=0, atol=1e-4)
    probe = torch.randn(48, V)
    torch.autograd.backward([(mine * probe).sum(), (other * probe).sum()])
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, grad in renamed({name: p.grad for name, p in ours.named_parameters() if p.grad is not None}).items():
        wanted = gradients.pop(name)
        assert wanted is not None
        torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-4 * max(1.0, float(wanted.abs().max())), msg=name)
    assert not gradients


@torch.no_grad()
def test_a_pack_equals_its_sequences_one_by_one() -> None:
    made, texts = network(), sequences(7, 7, 12, 1)
    alone = torch.cat([made(Packed.of([text])) for text in texts])
    torch.testing.assert_close(made(Packed.of(texts)), alone, rtol=0, atol=1e-12)


@torch.no_grad()
def test_cached_equals_uncached_in_a_ragged_batch() -> None:
    made, texts, prompts = network(), sequences(9, 6, 14), [4, 1, 9]
    whole = [made(Packed.of([text])) for text in texts]
    cache = made.new_cache(3, 5)
    start = made.prefill(Packed.of([text[:n] for text, n in zip(texts, prompts, strict=True)]), cache, range(3))
    torch.testing.assert_close(start, torch.cat([w[:n] for w, n in zip(whole, prompts, strict=True)]), rtol=0, atol=1e-12)
    for step in range(5):
        hidden = made.decode(torch.stack([text[n + step] for text, n in zip(texts, prompts, strict=True)]), cache)
        torch.testing.assert_close(hidden, torch.stack([w[n + step] for w, n in zip(whole, prompts, strict=True)]), rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_part_read_out_of_a_store_equals_the_whole() -> None:
    made, text = network(layout=BlockCausal(4)), sequences(12)[0]
    store, whole = new_store(made, 1, 12), made(Packed.of([text]))
    torch.testing.assert_close(read(made, [Span(0, 0, 8, 8)], text[:8], store), whole[:8], rtol=0, atol=1e-12)
    torch.testing.assert_close(read(made, [Span(0, 8, 4, 12)], text[8:], store), whole[8:], rtol=0, atol=1e-12)


@torch.no_grad()
def test_block_diffusion_between_its_two_ends() -> None:
    text = Packed.of(sequences(11, 5))
    for block, layout in ((11, Bidirectional()), (1, Causal())):
        made = network(layout=layout)
        torch.testing.assert_close(two_stream(made, text, text.tokens_T, block), made(text), rtol=0, atol=1e-12)


def test_a_forward_that_is_run_again_counts_once() -> None:
    """Gradients, routing and counts under checkpointing are those without."""
    batch, found = Packed.of(sequences(9, 14)), []
    for again in (False, True):
        made = network()
        x, by = made._enter(batch.tokens_T, batch.positions_T)
        for block in made.blocks:
            arguments = (x, by, batch.cu_seqlens, batch.max_seqlen, made.layout)
            x = checkpoint(block, *arguments, use_reentrant=False) if again else block(*arguments)
        routers = [block.feedforward.router for block in made.blocks[1:]]
        balances = [router.take(batch.sequence_T, 2) for router in routers]
        (x.square().sum() + sum(balances)).backward()
        counts = [router.counts.clone() for router in routers]
        for router, count in zip(routers, counts, strict=True):
            router.after_step(count, torch.tensor(True))
            assert router.seen is None
        found.append((counts, [p.grad for p in made.parameters()]))
    assert [int(count.sum()) for count in found[1][0]] == [46, 46]
    for a, b in zip(found[0][0], found[1][0], strict=True):
        assert torch.equal(a, b)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_ragged_packs_and_uneven_loads_do_not_recompile() -> None:
    made = network(torch.float32, depth=1, experts=ExpertsConfig(routed=8, top_k=2, hidden=12))
    made.compile_blocks(backend="eager")
    for lengths in ((20, 5), (31, 5)):
        made(Packed.of(sequences(*lengths)))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in ((45, 5), (64, 3, 3), (17, 9)):
            batch = Packed.of(sequences(*lengths))
            hidden = made(batch)
            assert len(made.blocks[0].feedforward.router.seen.scores_TE) == len(batch.tokens_T)
            hidden.square().sum().backward()
    plain = network(torch.float32, depth=1, experts=made.config.experts)
    torch.testing.assert_close(hidden, plain(batch), rtol=0, atol=1e-5)


def test_flops_and_parameters_count_the_experts_of_one_token() -> None:
    made = network()
    expert, attention = 3 * 32 * 12, 4 * 32 * 32
    blocks = 3 * attention + 3 * 32 * 64 + 2 * (3 * expert + 8 * 32)  # two routed and one shared expert, and the router
    assert made.flops_per_token(100) == 6 * (blocks + V * 32) + 12 * 3 * 32 * 100
    vectors = 7 * 32
    assert active(made) == blocks + 2 * V * 32 + vectors
    assert sum(p.numel() for p in made.parameters()) == active(made) + 2 * 6 * expert


def test_deepseek_v3_has_its_published_size() -> None:
    """671.0 B parameters, 37.55 B of them active."""
    experts = ExpertsConfig(routed=256, top_k=8, shared=1, hidden=2048, dense=3, groups=8, kept_groups=4, scale=2.5)
    latent = LatentConfig(width=512, query=1536, plain=128, rotary=64, value=128)
    with torch.device("meta"):
        made = Transformer(
            TransformerConfig(width=7168, depth=61, heads=128, hidden=18432, latent=latent, experts=experts), 129280, Causal()
        )
    assert round(sum(p.numel() for p in made.parameters()) / 1e8) == 6710
    assert round(active(made) / 1e7) == 3755
