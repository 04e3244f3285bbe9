"""Multi-token prediction against a loop over documents and `transformers`; several tokens appended per row against the whole text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from unveil.autoregressive.family import Autoregressive
from unveil.config import LatentConfig, MTPConfig, NextTokenConfig, NextTokenSamplerConfig, TransformerConfig
from unveil.nn import mtp
from unveil.nn.layout import Bidirectional, Causal
from unveil.nn.mtp import states_ahead
from unveil.nn.packed import Packed
from unveil.nn.transformer import Transformer
from unveil.text.vocabulary import Vocabulary

V = 23
VOCABULARY = Vocabulary(V, *range(V - 6, V))
SMALL = LatentConfig(width=16, query=12, plain=8, rotary=8, value=6)
VARIANTS: dict[str, dict[str, Any]] = {
    "one depth": {"mtp": MTPConfig(depths=1)},
    "two depths, raw": {"mtp": MTPConfig(depths=2, carry="raw"), "kv_heads": 2},
    "two depths, latent": {"mtp": MTPConfig(depths=2), "latent": SMALL},
    "windowed, tied": {"mtp": MTPConfig(depths=2), "kv_heads": 1, "window": 3, "tie": True},
}
LENGTHS = (7, 1, 12, 2, 3, 7)


def config(**switches: Any) -> TransformerConfig:
    return TransformerConfig(width=32, depth=2, heads=4, init="normal", init_std=0.3, **switches)


def network(dtype: torch.dtype = torch.float64, **switches: Any) -> Transformer:
    torch.manual_seed(0)
    made = Transformer(config(**switches), V, Causal(switches.get("window", 0))).to(dtype)
    made.compute_dtype = dtype
    return made


def sequences(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, V - 6, (n,), generator=generator) for n in lengths]


def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def plain_losses(made: Transformer, text: torch.Tensor) -> list[torch.Tensor]:
    """Of one document: the sum of each depth's losses, by the paper's equations, over the places that have a token so far ahead."""
    state, hidden = made.read(Packed.of([text]))
    losses = [F.cross_entropy(hidden[:-1] @ made.head.weight.T, text[1:], reduction="sum")]
    for k, depth in enumerate(made.mtp, start=1):
        count = len(text) - k  # places i whose token i + k exists
        if count <= 1:
            losses.append(torch.zeros((), dtype=torch.float64))
            continue
        before = (hidden if made.config.mtp.carry == "normed" else state)[:count]
        names = dict(depth.named_parameters())
        embedded = rms(made.embedding.weight[text[k:]], names["token_norm.weight"])
        joined = torch.cat((embedded, rms(before, names["state_norm.weight"])), -1) @ names["project.weight"].T
        one = Packed.of([text[:count]])
        _, by = made._enter(one.tokens_T, one.positions_T)
        state = depth.block(joined, by, one.cu_seqlens, count, made.layout, None)  # type: ignore[operator]
        hidden = rms(state, names["norm.weight"])
        losses.append(F.cross_entropy(hidden[:-1] @ made.head.weight.T, text[k + 1 :], reduction="sum"))
    return losses


@pytest.mark.parametrize("switches", VARIANTS.values(), ids=VARIANTS.keys())
def test_packed_terms_are_sums_over_documents_with_their_own_denominators(switches: dict[str, Any]) -> None:
    """Losses and gradients; the denominators count, document by document, the tokens that stand so far behind another."""
    made, texts = network(**switches), sequences(*LENGTHS)
    family = Autoregressive(VOCABULARY, made.config, NextTokenConfig(mtp_weight=0.6), NextTokenSamplerConfig())
    batch, depths = Packed.of(texts), made.config.mtp.depths
    terms, targets = family.loss(made, batch, {}), family.targets(batch, {})
    assert list(terms) == list(targets) == ["nll", *(f"mtp{k}" for k in range(1, depths + 1))]
    assert [term.weight for term in terms.values()] == [1.0, *[0.6 / depths] * depths]
    plain = [plain_losses(made, text) for text in texts if len(text) > 1]
    for k, (name, term) in enumerate(terms.items()):
        assert targets[name] == sum(max(n - k - 1, 0) for n in LENGTHS)
        wanted = torch.stack([losses[k] for losses in plain]).sum()
        torch.testing.assert_close(term.sum, wanted, rtol=1e-12, atol=0)
        found = torch.autograd.grad(term.sum, list(made.parameters()), retain_graph=True, allow_unused=True)
        twin = torch.autograd.grad(wanted, list(made.parameters()), retain_graph=True, allow_unused=True)
        for a, b in zip(found, twin, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_every_parameter_learns_and_plain_prediction_is_untouched() -> None:
    made, bare = network(**VARIANTS["two depths, raw"]), network(kv_heads=2)
    assert all(torch.equal(p, made.get_parameter(name)) for name, p in bare.named_parameters())  # the same seed, the same trunk
    batch = Packed.of(sequences(*LENGTHS))
    assert torch.equal(made(batch), bare(batch)) and torch.equal(states_ahead(made, batch)[0], bare(batch))
    family = Autoregressive(VOCABULARY, made.config, NextTokenConfig(), NextTokenSamplerConfig())
    sum(term.sum for term in family.loss(made, batch, {}).values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and bool(p.grad.any()) for p in made.parameters())


def test_the_weight_falls_after_its_share_of_the_run() -> None:
    made = network(**VARIANTS["two depths, latent"])
    family = Autoregressive(VOCABULARY, made.config, NextTokenConfig(mtp_early=0.5), NextTokenSamplerConfig())
    weights = []
    for step in (0, 49, 50, 99):
        family.progress(step, 100)
        weights.append(family.loss(made, Packed.of(sequences(5)), {})["mtp2"].weight)
    assert weights == [0.15, 0.15, 0.05, 0.05]


def test_flops_and_parameters_of_the_depths() -> None:
    made, bare = network(mtp=MTPConfig(depths=2)), network()
    block = sum(p.numel() for p in made.blocks[0].parameters() if p.dim() == 2)
    assert mtp.parameters(bare) == 0
    assert mtp.parameters(made) == sum(p.numel() for p in made.parameters()) - sum(p.numel() for p in bare.parameters())
    scores = 12.0 * 32 * 10
    assert made.flops_per_token(10) - bare.flops_per_token(10) == 2 * (6.0 * (block + 2 * 32 * 32 + V * 32) + scores)


@torch.no_grad()
def test_logits_equal_transformers() -> None:
    """Its ``MtpModel`` over DeepSeek-V3's layers, with a dense feed-forward in the place of experts."""
    transformers = pytest.importorskip("transformers")
    layers = pytest.importorskip("transformers.modeling_layers")
    if not hasattr(layers, "MtpModel"):
        pytest.skip("this transformers has no multi-token prediction")
    ours, depths = network(latent=SMALL, mtp=MTPConfig(depths=2)), 2
    settings = transformers.DeepseekV3Config(
        vocab_size=V, hidden_size=32, intermediate_size=128, num_hidden_layers=2, first_k_dense_replace=9, num_attention_heads=4,
        num_key_value_heads=4, q_lora_rank=12, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=6, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, rope_interleave=False, max_position_embeddings=64,
        attn_implementation="eager", num_mtp_layers=depths,
    )  # fmt: skip
    main = transformers.DeepseekV3ForCausalLM(settings).double().eval()
    theirs = layers.MtpModel(main, depths)
    for layer in theirs.layers:
        layer.mtp_block.mlp = type(main.model.layers[0].mlp)(settings)
    theirs = theirs.double().eval()
    names = {
        "q_down": "q_a_proj", "q_norm": "q_a_layernorm", "q_up": "q_b_proj", "kv_down": "kv_a_proj_with_mqa", "kv_norm": "kv_a_layernorm",
        "kv_up": "kv_b_proj", "out": "o_proj",
    }  # fmt: skip

    def block(prefix: str) -> dict[str, torch.Tensor]:
        own = {n.removeprefix(prefix).removesuffix(".weight"): w for n, w in ours.state_dict().items() if n.startswith(prefix)}
        gate, up = own["feedforward.gate_up"].chunk(2)
        renamed = {f"self_attn.{names[n.removeprefix('attention.')]}": w for n, w in own.items() if n.startswith("attention.")}
        renamed |= {"mlp.gate_proj": gate, "mlp.up_proj": up, "mlp.down_proj": own["feedforward.down"]}
        return renamed | {"input_layernorm": own["attention_norm"], "post_attention_layernorm": own["feedforward_norm"]}

    state = ours.state_dict()
    weights = {"model.embed_tokens": state["embedding.weight"], "model.norm": state["norm.weight"], "lm_head": state["head.weight"]}
    for i in range(2):
        weights |= {f"model.layers.{i}.{n}": w for n, w in block(f"blocks.{i}.").items()}
    main.load_state_dict({f"{n}.weight": w for n, w in weights.items()})
    for i in range(depths):
        of = {"enorm": "token_norm", "hnorm": "state_norm", "eh_proj": "project", "post_norm": "norm"}
        depth = {f"layers.{i}.{n}": state[f"mtp.{i}.{m}.weight"] for n, m in of.items()}
        depth |= {f"layers.{i}.mtp_block.{n}": w for n, w in block(f"mtp.{i}.block.").items()}
        missing = theirs.load_state_dict({f"{n}.weight": w for n, w in depth.items()}, strict=False)
        assert not missing.unexpected_keys

    (text,) = sequences(14)
    found = main.model(input_ids=text[None], use_cache=False).last_hidden_state
    mine = states_ahead(ours, Packed.of([text]))
    torch.testing.assert_close(mine[0], found[0], rtol=0, atol=2e-5)  # their angles are float32
    cache = transformers.cache_utils.MtpCache(config=settings.get_mtp_config())
    for k in range(depths):
        count = len(text) - k - 1
        found = theirs.forward_layer(k, found[:, :count], torch.arange(k + 1, k + 1 + count)[None], cache, input_ids=text[None, k + 1 :])
        torch.testing.assert_close(ours.head(mine[k + 1][:count]), main.lm_head(found)[0], rtol=0, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("switches", [{}, {"kv_heads": 1, "window": 3}, {"kv_heads": 2, "qk_norm": True}, {"latent": SMALL}], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)], ids=["float64", "float32"])
def test_tokens_appended_several_at_a_time_are_read_as_the_whole_text(
    switches: dict[str, Any], dtype: torch.dtype, tolerance: float
) -> None:
    """Rows of different lengths, cut back by different numbers in between; rows of one length too, and a prompt in chunks."""
    made, texts = network(dtype, **switches), sequences(22, 19, 25)
    whole = [made.read(Packed.of([text])) for text in texts]
    for lengths in ([4, 1, 9], [0, 0, 0]):
        cache = made.new_cache(3, 5)  # too small: it has to grow
        if any(lengths):
            made.prefill(Packed.of([text[:n] for text, n in zip(texts, lengths, strict=True)]), cache, range(3))
        for count, kept in ((3, [3, 3, 3]), (4, [1, 4, 2]), (1, [1, 1, 1]), (5, [0, 2, 5])):
            new = torch.stack([text[n : n + count] for text, n in zip(texts, lengths, strict=True)])
            for mine, row in zip(made.extend(new, cache), (0, 1), strict=True):
                wanted = torch.stack([states[row][n : n + count] for states, n in zip(whole, lengths, strict=True)])
                torch.testing.assert_close(mine, wanted, rtol=0, atol=tolerance * (1 if row else 10))
            lengths = [n + k for n, k in zip(lengths, kept, strict=True)]
            cache.cut(lengths)
    with pytest.raises(ValueError, match="cannot be cut"):
        cache.cut([99, 1, 1])


def test_only_causal_networks_are_extended() -> None:
    made = Transformer(config(), V, Bidirectional())
    with pytest.raises(ValueError, match="causal"):
        made.extend(torch.zeros(1, 2, dtype=torch.int64), made.new_cache(1, 4))
