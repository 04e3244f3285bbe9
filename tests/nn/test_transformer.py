"""The network against the plain Llama of `transformers`, and its fast paths against each other."""

from __future__ import annotations

import pytest
import torch

from unveil.config import TransformerConfig
from unveil.nn.head import cross_entropy
from unveil.nn.layout import Annealed, Bidirectional, BlockCausal, Causal
from unveil.nn.packed import Packed
from unveil.nn.transformer import Transformer

V = 23
VARIANTS = {
    "plain": {},
    "grouped": {"kv_heads": 2},
    "q/k-norm": {"qk_norm": True},
    "tied": {"tie": True},
    "grouped, windowed": {"kv_heads": 1, "window": 3},
}


def _network(
    dtype: torch.dtype = torch.float64, layout: Causal | Bidirectional | BlockCausal | None = None, **switches: object
) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(width=32, depth=2, heads=4, init="normal", init_std=0.3, **switches)  # type: ignore[arg-type]
    network = Transformer(config, V, layout or Causal(config.window)).to(dtype)
    network.compute_dtype = dtype
    return network


def _sequences(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, V, (n,), generator=generator) for n in lengths]


@pytest.mark.parametrize("switches", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_pack_equals_its_sequences_one_by_one(switches: dict[str, object]) -> None:
    """Logits, loss and gradients, whatever else is in the pack."""
    network, sequences = _network(**switches), _sequences(7, 7, 12, 1)
    batch = Packed.of(sequences)
    targets, weights = torch.randint(0, V, (27,)), torch.rand(27, dtype=torch.float64)
    hidden = network(batch)
    total, _ = network.head.reduce(hidden, cross_entropy, weights, targets)
    packed = torch.autograd.grad(total, list(network.parameters()))
    single = [torch.zeros_like(p) for p in network.parameters()]
    for s, h, t, w in zip(sequences, batch.split(hidden), batch.split(targets), batch.split(weights), strict=True):
        alone = network(Packed.of([s]))
        torch.testing.assert_close(alone, h, rtol=0, atol=1e-12)
        part, _ = network.head.reduce(alone, cross_entropy, w, t)
        single = [a + b for a, b in zip(single, torch.autograd.grad(part, list(network.parameters())), strict=True)]
    for a, b in zip(packed, single, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("switches", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["float64", "float32"])
def test_cached_equals_uncached_in_a_ragged_batch(switches: dict[str, object], dtype: torch.dtype, tolerance: float) -> None:
    _assert_cached_equals_uncached(_network(dtype, **switches), tolerance)


@pytest.mark.parametrize("switches", [{}, {"kv_heads": 1, "window": 3}], ids=["plain", "grouped, windowed"])
def test_a_compiled_decoding_step_is_the_same(switches: dict[str, object]) -> None:
    network = _network(**switches)
    network.compile_decoding(backend="aot_eager")
    _assert_cached_equals_uncached(network, 1e-12)


@torch.no_grad()
def _assert_cached_equals_uncached(network: Transformer, tolerance: float) -> None:
    sequences = _sequences(9, 6, 14)
    whole = [network(Packed.of([s])) for s in sequences]
    prompts = [4, 1, 9]
    cache = network.new_cache(3, 5)  # too small: it has to grow
    start = network.prefill(Packed.of([s[:n] for s, n in zip(sequences, prompts, strict=True)]), cache, range(3))
    torch.testing.assert_close(start, torch.cat([w[:n] for w, n in zip(whole, prompts, strict=True)]), rtol=0, atol=tolerance)
    for step in range(5):
        hidden = network.decode(torch.stack([s[n + step] for s, n in zip(sequences, prompts, strict=True)]), cache)
        expected = torch.stack([w[n + step] for w, n in zip(whole, prompts, strict=True)])
        torch.testing.assert_close(hidden, expected, rtol=0, atol=tolerance)


@torch.no_grad()
def test_cache_rows_are_selected_and_joined() -> None:
    network, sequences = _network(), _sequences(6, 3, 8)
    caches = []
    for s in sequences:
        caches.append(network.new_cache(1, len(s) + 1))
        network.prefill(Packed.of([s]), caches[-1], [0])
    joined = caches[0].join(caches[1]).join(caches[2]).select([2, 0])
    assert joined.lengths == [8, 6]
    hidden = network.decode(torch.tensor([4, 5]), joined)
    for row, (s, token) in enumerate([(sequences[2], 4), (sequences[0], 5)]):
        expected = network(Packed.of([torch.cat([s, torch.tensor([token])])]))[-1]
        torch.testing.assert_close(hidden[row], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("switches", [{}, {"kv_heads": 2}, {"tie": True}], ids=["plain", "grouped", "tied"])
def test_logits_and_gradients_equal_llamas(switches: dict[str, object]) -> None:
    transformers = pytest.importorskip("transformers")
    network = _network(**switches)
    groups = network.config.kv_heads or 4
    config = transformers.LlamaConfig(
        vocab_size=V, hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=groups,
        rms_norm_eps=1e-6, tie_word_embeddings=network.config.tie, attn_implementation="eager",
    )  # fmt: skip
    llama = transformers.LlamaForCausalLM(config).double()
    ours = network.state_dict()
    weights = {"model.embed_tokens": ours["embedding.weight"], "model.norm": ours["norm.weight"], "lm_head": ours["head.weight"]}
    for i in range(2):
        block = {n.removeprefix(f"blocks.{i}."): w for n, w in ours.items()}
        q, k, v = block["attention.qkv.weight"].split([32, 8 * groups, 8 * groups])
        gate, up = block["feedforward.gate_up.weight"].chunk(2)
        renamed = {
            "self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v, "self_attn.o_proj": block["attention.out.weight"],
            "mlp.gate_proj": gate, "mlp.up_proj": up, "mlp.down_proj": block["feedforward.down.weight"],
            "input_layernorm": block["attention_norm.weight"], "post_attention_layernorm": block["feedforward_norm.weight"],
        }  # fmt: skip
        weights |= {f"model.layers.{i}.{name}": w for name, w in renamed.items()}
    llama.load_state_dict({f"{name}.weight": w for name, w in weights.items()}, strict=True)
    (tokens,) = _sequences(11)
    logits = network.head(network(Packed.of([tokens])))
    theirs_logits = llama(input_ids=tokens[None]).logits[0]
    torch.testing.assert_close(logits, theirs_logits, rtol=0, atol=1e-5)  # their rotary angles are float32 whatever the dtype
    (a,) = torch.autograd.grad(logits.square().sum(), network.embedding.weight)
    (b,) = torch.autograd.grad(theirs_logits.square().sum(), llama.model.embed_tokens.weight)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_causal_network_does_not_see_ahead_and_a_bidirectional_one_does() -> None:
    (tokens,) = _sequences(8)
    changed = tokens.clone()
    changed[-1] = (changed[-1] + 1) % V
    for layout, blind in ((Causal(), 7), (BlockCausal(4), 4), (Bidirectional(), 0)):
        network = _network(layout=layout)
        a, b = network(Packed.of([tokens])), network(Packed.of([changed]))
        same = (a == b).all(-1)
        assert same[:blind].all() and not same[blind:].any()


def test_named_initialisations() -> None:
    stds = {}
    for init in ("normal", "depth-scaled", "zero-out"):
        torch.manual_seed(0)
        network = Transformer(TransformerConfig(width=128, depth=8, heads=4, init=init), V, Causal())  # type: ignore[arg-type]
        stds[init] = network.blocks[3].attention.out.weight.std().item()  # type: ignore[union-attr, operator]
        assert network.blocks[3].attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.02)  # type: ignore[union-attr, operator]
    assert stds["normal"] == pytest.approx(0.02, rel=0.02)
    assert stds["depth-scaled"] == pytest.approx(0.02 / 4, rel=0.02)
    assert stds["zero-out"] == 0


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("init", ["normal", "depth-scaled", "zero-out"])
def test_everything_learns_from_any_initialisation(init: str, told: bool) -> None:
    """Two zeros in a row, a gate and a matrix, would keep each other at 0."""
    torch.manual_seed(0)
    config = TransformerConfig(width=16, depth=2, heads=2, init=init, time_conditioning=told)  # type: ignore[arg-type]
    network = Transformer(config, V, Bidirectional())
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameters(), 0.5)
    batch = Packed.of(_sequences(7, 9))
    for _ in range(4):
        optimizer.zero_grad()
        cross_entropy(network.head(network(batch, torch.tensor([0.3, 0.6]))), batch.tokens_T).sum().backward()
        optimizer.step()
    assert [name for name, p in network.named_parameters() if torch.equal(p, before[name])] == []


def test_weights_keep_their_dtype_while_the_arithmetic_runs_in_another() -> None:
    network = _network(torch.float32)
    network.compute_dtype = torch.bfloat16
    hidden = network(Packed.of(_sequences(5)))
    total, _ = network.head.reduce(hidden, cross_entropy, torch.ones(5), torch.zeros(5, dtype=torch.int64))
    total.backward()
    assert hidden.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 and p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters())


def test_flops_count_every_matrix_once() -> None:
    network = _network()
    matrices = sum(p.numel() for n, p in network.named_parameters() if p.dim() == 2 and n != "embedding.weight")
    assert network.flops_per_token(100) == 6 * matrices + 12 * 2 * 32 * 100


def test_ragged_packs_do_not_recompile() -> None:
    """Fifty packs of all shapes: one graph for the block, one for the loss, and at most one more."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    network = _network(torch.float32)
    network.compile_blocks(backend="aot_eager")
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        lengths = torch.randint(2, 40, (int(torch.randint(3, 9, (), generator=generator)),), generator=generator).tolist()
        batch = Packed.of(_sequences(*lengths))
        total, _ = network.head.reduce(network(batch), cross_entropy, torch.ones(sum(lengths)), batch.tokens_T)
        total.backward()
    assert 2 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3


def test_another_pattern_of_open_edges_does_not_recompile() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    network, eager = _network(torch.float32), _network(torch.float32)
    network.compile_blocks(backend="aot_eager")
    batch = Packed.of(_sequences(9, 4))
    for share in (0.1, 0.4, 0.7, 0.9):
        layout = Annealed(torch.rand(16, 16) < share)
        torch.testing.assert_close(network(batch, layout=layout), eager(batch, layout=layout), rtol=0, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
