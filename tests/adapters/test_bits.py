"""Matrices in few bits: what they stand for, how they multiply, and how a network gets them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("torchao")

from torchao.quantization import NF4Tensor

from unveil.adapters import bits
from unveil.adapters.fingerprint import Fingerprint
from unveil.adapters.normal_float import rounded
from unveil.config import TransformerConfig
from unveil.errors import UserError
from unveil.nn.affine import Affine
from unveil.nn.layout import Causal
from unveil.nn.linear import Linear
from unveil.nn.packed import Packed
from unveil.nn.quantised import Quantised, dense
from unveil.nn.transformer import Transformer
from unveil.training.weights import weights

KINDS: tuple[bits.Weights, ...] = ("int8", "nf4")
NF4_GAP = 0.3038
"""The widest step between two of the sixteen normal floats, from -1 to -0.6962."""


def layer(bias: bool, seed: int = 0) -> Linear:
    torch.manual_seed(seed)
    made = (Affine if bias else Linear)(64, 48)
    for p in made.parameters():
        nn.init.normal_(p)
    return made


def network(**settings: Any) -> Transformer:
    config = TransformerConfig(width=32, depth=2, heads=2, hidden=64, qkv_bias=True, **settings)
    torch.manual_seed(0)
    return Transformer(config, 40, Causal())


def test_int8_rounds_each_row_by_its_own_scale() -> None:
    weight = layer(False).weight.detach() * torch.logspace(-3, 3, 48)[:, None]
    made = dense(bits.stored(weight, "int8"), torch.float32)
    step = weight.abs().amax(1, keepdim=True) / 127.5
    assert ((weight - made).abs() <= step * 0.5001).all()
    whole = made / step
    assert (whole - whole.round()).abs().max() < 1e-3 and not torch.equal(weight, made)


def test_nf4_takes_one_of_sixteen_numbers_in_every_group() -> None:
    weight = layer(False).weight.detach()
    made = dense(bits.stored(weight, "nf4"), torch.float32)
    for group, few in zip(weight.reshape(-1, bits.GROUP), made.reshape(-1, bits.GROUP), strict=True):
        assert len(few.unique()) <= 16
        # half of the widest step, and what rounding the scale adds
        assert (group - few).abs().max() <= group.abs().max() * (NF4_GAP / 2 + 0.03)


def test_nf4_is_torchaos_bit_for_bit() -> None:
    torch.manual_seed(0)
    weight = torch.randn(300, 64 * 60)
    ours, theirs = rounded(weight, 64, 16, ""), NF4Tensor.from_tensor(weight, 64, 16)
    for part in ("quantized_data", "quantized_scalers", "quantization_factor", "scaler_mean"):
        assert torch.equal(getattr(ours, part), getattr(theirs, part)), part
    assert torch.equal(dense(ours, torch.float32), theirs.get_original_weight())
    weight[7, :64] = 0.0
    assert not dense(bits.stored(weight, "nf4"), torch.float32)[7, :64].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [False, True])
def test_it_multiplies_as_its_dense_twin_forward_and_back(kind: bits.Weights, bias: bool) -> None:
    plain = layer(bias)
    held = Quantised(bits.stored(plain.weight, kind), plain.bias.data if isinstance(plain, Affine) else None, plain.muon_slices)
    twin = copy.deepcopy(plain).double()
    twin.weight.data = held.matrix(torch.float64)
    x = torch.randn(5, 64, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    for rows in (None, slice(16, None), slice(0, 16)):
        ours, theirs = held(x, rows), twin(y, rows)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # int8's scales are applied in float32
        weighing = torch.randn_like(ours)
        (a,), (b,) = torch.autograd.grad(ours, x, weighing), torch.autograd.grad(theirs, y, weighing)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_another_dtype_leaves_the_bits(kind: bits.Weights) -> None:
    held = Quantised(bits.stored(layer(False).weight, kind), torch.ones(48), (48,))
    before = held.matrix(torch.float32)
    held.double()
    assert held.bias is not None and held.bias.dtype == torch.float64 and torch.equal(held.matrix(torch.float32), before)


def test_what_nf4_divides_by_nothing() -> None:
    """Where all groups have one scale, and where that is 0."""
    for value in (0.0, 3.0):
        weight = torch.full((16, 64), value)
        assert torch.equal(dense(bits.stored(weight, "nf4"), torch.float32).abs(), weight)
    with pytest.raises(UserError, match="multiple of 64 weights, w has 15"):
        bits.stored(torch.ones(3, 5), "nf4", "w")


class Told(Mapping[str, Tensor]):
    """Notes what it is asked for."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state, self.asked = state, list[str]()

    def __getitem__(self, name: str) -> Tensor:
        self.asked.append(name)
        return self.state[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("kind", ["full", *KINDS])
def test_a_network_without_weights_gets_them_one_at_a_time(kind: bits.Weights, tie: bool) -> None:
    whole = network(tie=tie)
    source = Told(weights(whole))
    with torch.device("meta"):
        empty = network(tie=tie)
    bits.fill(empty, source, kind, "source")
    assert sorted(source.asked) == sorted(source.state), "each is read once"
    assert (empty.head.weight is empty.embedding.weight) == tie
    assert not any(p.requires_grad or p.is_meta for p in empty.parameters())
    matrices = {f"{name}.weight" for name, _ in bits.matrices(empty)}
    assert len(matrices) == 8
    for name, p in whole.named_parameters():
        found = empty.get_parameter(name)
        if kind == "full" or name not in matrices:
            assert torch.equal(found, p)
        else:
            assert torch.equal(dense(found, torch.float32), dense(bits.stored(p, kind), torch.float32))
            whole.get_parameter(name).data = dense(found, torch.float32)
    batch = Packed.of([torch.arange(9), torch.arange(5)])
    with torch.no_grad():
        torch.testing.assert_close(empty.head(empty(batch)), whole.head(whole(batch)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda s: s.pop("norm.weight"), "'norm.weight' is missing"),
        (lambda s: s.update(extra=torch.ones(1)), "'extra'"),
        (lambda s: s.update({"norm.weight": torch.ones(3)}), r"\[3\], wanted \[32\]"),
    ],
)
def test_weights_of_another_network_are_refused(change: Any, word: str) -> None:
    state = dict(weights(network()))
    change(state)
    with torch.device("meta"):
        empty = network()
    with pytest.raises(UserError, match=word):
        bits.fill(empty, state, "int8", "source")


def test_a_fingerprint_is_of_the_weights_and_of_nothing_else() -> None:
    state = {"a": torch.arange(6.0), "b": torch.ones(2, 3)}

    def value(state: Mapping[str, Tensor]) -> str:
        seen = Fingerprint()
        for name in state:
            seen.see(name, state[name])
        return seen.value()

    assert value(state) == value(dict(reversed(state.items())))
    others = [{**state, "a": state["a"] + 1e-6}, {**state, "b": torch.ones(3, 2)}, {**state, "a": state["a"].bfloat16()}, {"a": state["a"]}]
    assert len({value(other) for other in [state, *others]}) == 5
