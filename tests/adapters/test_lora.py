"""Adapters on our matrices: against plain twins, and against ``peft`` on a stack of torch's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("peft")

import peft

from unveil.adapters import bits, lora
from unveil.config import AdapterConfig, LatentConfig, TransformerConfig
from unveil.errors import UserError
from unveil.nn.affine import Affine
from unveil.nn.layout import BlockCausal, Causal, Layout
from unveil.nn.linear import Linear
from unveil.nn.packed import Packed
from unveil.nn.partial import Span, new_store, read
from unveil.nn.quantised import Quantised
from unveil.nn.transformer import Transformer

RANK = AdapterConfig(rank=3, alpha=5.0)
NETWORKS: dict[str, tuple[dict[str, Any], Layout]] = {
    "grouped": ({"kv_heads": 1, "qkv_bias": True}, Causal()),
    "blocks": ({"qk_norm": True, "feedforward": "gelu"}, BlockCausal(4)),
    "latent": ({"latent": LatentConfig(width=8, query=8, plain=8, rotary=4, value=8)}, Causal()),
}


def network(name: str, dtype: torch.dtype = torch.float64) -> Transformer:
    settings, layout = NETWORKS[name]
    torch.manual_seed(0)
    made = Transformer(TransformerConfig(width=32, depth=2, heads=2, hidden=64, **settings), 40, layout).to(dtype)
    made.compute_dtype = dtype
    return made.eval()


def adapted(name: str, config: AdapterConfig = RANK) -> Transformer:
    made = network(name)
    lora.wrap(made, config)
    for parameter_name, p in made.named_parameters():
        if "lora_B" in parameter_name:
            nn.init.normal_(p, std=0.3)
    return made


BATCH = Packed.of([torch.arange(11), torch.arange(3, 8)])


def logits(model: Transformer) -> Tensor:
    with torch.no_grad():
        return model.head(model(BATCH))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_fresh_adapter_changes_nothing_and_merged_ones_compute_the_same(name: str) -> None:
    plain = network(name)
    fresh = network(name)
    lora.wrap(fresh, RANK)
    assert torch.equal(logits(fresh), logits(plain))
    trained = {n for n, p in fresh.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in n for n in trained)
    wrapped = adapted(name)
    before = logits(wrapped)
    assert (before - logits(plain)).abs().max() > 0.01
    lora.merge(wrapped)
    torch.testing.assert_close(logits(wrapped), before, rtol=0, atol=1e-12)
    assert [n for n, _ in wrapped.named_parameters()] == [n for n, _ in plain.named_parameters()]


@pytest.mark.parametrize("name", ["grouped", "latent"])
def test_token_by_token_it_computes_what_it_does_at_once(name: str) -> None:
    """Latent attention asks for the matrix itself there."""
    model = adapted(name)
    cache = model.new_cache(1, 16)
    with torch.no_grad():
        model.prefill(Packed.of([torch.arange(4)]), cache, [0])
        made = [model.head(model.decode(torch.tensor([i]), cache)) for i in range(4, 11)]
    torch.testing.assert_close(torch.cat(made), logits(model)[4:11], rtol=0, atol=1e-12)


def test_keys_and_values_alone_are_adapted_too() -> None:
    """The clean half of block diffusion's last layer wants nothing else."""
    model = adapted("blocks")
    x = torch.randn(5, 32, dtype=torch.float64)
    _, by = model._enter(torch.arange(5), torch.arange(5))
    attention: Any = model.blocks[0].attention
    for part, whole in zip(attention.keys_and_values(x, by), attention.project(x, by)[1:], strict=True):
        torch.testing.assert_close(part, whole, rtol=0, atol=1e-12)
    store = new_store(model, 1, 11)
    with torch.no_grad():
        hidden = read(model, [Span(0, 0, 11, 11)], torch.arange(11), store)
    torch.testing.assert_close(model.head(hidden), logits(model)[:11], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["linear", "affine", "int8", "nf4"])
def test_a_layer_and_its_gradients_against_a_plain_twin(kind: str) -> None:
    torch.manual_seed(1)
    stack: Any = Stack(lambda a, b: (Linear if kind != "affine" else Affine)(a, b)).double()
    if kind in ("int8", "nf4"):
        for name, module in list(bits.matrices(stack)):
            bits.put(stack, name, Quantised(bits.stored(module.weight, kind), None, module.muon_slices))  # type: ignore[arg-type]
    lora.wrap(stack, RANK)
    layer: Any = stack.blocks[0].attention.qkv
    a, b = layer.lora_A.default.weight, layer.lora_B.default.weight
    for p in (a, b):
        p.data = torch.randn(p.shape, dtype=torch.float64)
    base, bias = layer.base_layer.matrix(torch.float64).detach(), getattr(layer.base_layer, "bias", None)
    x = torch.randn(7, 32, dtype=torch.float64, requires_grad=True)

    def twin(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return x @ (base + 5.0 / 3 * b @ a).T + (0.0 if bias is None else bias.detach())

    close = 1e-5 if kind == "int8" else 1e-12
    weighing = torch.randn(7, 96, dtype=torch.float64)
    ours = torch.autograd.grad((layer(x) * weighing).sum(), (x, a, b))
    theirs = torch.autograd.grad((twin(x, a, b) * weighing).sum(), (x, a, b))
    torch.testing.assert_close(layer(x), twin(x, a, b), rtol=0, atol=close)
    torch.testing.assert_close(layer(x, slice(32, 80)), twin(x, a, b)[:, 32:80], rtol=0, atol=close)
    torch.testing.assert_close(layer.matrix(torch.float64), base + 5.0 / 3 * b @ a, rtol=0, atol=1e-12)
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


class Stack(nn.Module):
    """A network by our names of any linear layers."""

    def __init__(self, linear: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Module() for _ in range(2))
        for block in self.blocks:
            block.attention = nn.Module()
            block.attention.qkv, block.attention.out = linear(32, 96), linear(96, 32)
        for p in self.parameters():
            nn.init.normal_(p, std=0.2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            attention: Any = block.attention
            x = x + attention.out(torch.tanh(attention.qkv(x)))
        return x


@pytest.mark.parametrize("targets", [(), ("out",)])
def test_peft_reads_what_we_save_and_we_what_it_saves(targets: tuple[str, ...], tmp_path: Path) -> None:
    torch.manual_seed(2)
    ours = Stack(lambda a, b: Linear(a, b)).double()
    theirs = Stack(lambda a, b: nn.Linear(a, b, bias=False)).double()
    theirs.load_state_dict(ours.state_dict())
    bare = copy.deepcopy(ours), copy.deepcopy(theirs)
    lora.wrap(ours, AdapterConfig(rank=3, alpha=5.0, targets=targets))
    for p in ours.parameters():
        if p.requires_grad:
            nn.init.normal_(p)
    lora.save(tmp_path / "ours", ours, "../base")
    x = torch.randn(4, 32, dtype=torch.float64)
    read = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "ours"), autocast_adapter_dtype=False)
    torch.testing.assert_close(read(x), ours(x), rtol=0, atol=1e-12)
    assert lora.base(tmp_path / "ours") == "../base"
    read.save_pretrained(str(tmp_path / "theirs"))
    lora.load(tmp_path / "theirs", bare[0])
    torch.testing.assert_close(bare[0](x), ours(x), rtol=0, atol=1e-12)
    adapters = 4 if not targets else 2
    assert sum("lora_A" in name for name, _ in bare[0].named_parameters()) == adapters


@pytest.mark.parametrize(
    ("settings", "word"), [({"use_dora": True}, "variant"), ({"target_modules": ["nothing"]}, "fits no matrix"), ({"r": 4}, "shape")]
)
def test_adapters_that_are_not_computed_here(settings: dict[str, Any], word: str, tmp_path: Path) -> None:
    made: Any = Stack(lambda a, b: Linear(a, b))
    lora.wrap(made, RANK)
    lora.save(tmp_path, made)
    replace(made.peft_config["default"], **settings).save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match=word):
        lora.load(tmp_path, Stack(lambda a, b: Linear(a, b)))
