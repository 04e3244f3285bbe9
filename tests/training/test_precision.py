from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.training.toy import network
from unveil.config import TransformerConfig
from unveil.nn.layout import Causal
from unveil.nn.packed import Packed
from unveil.nn.transformer import Transformer
from unveil.training import precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("half", "wanted"), [(5.0, torch.bfloat16), (1.2, torch.float32), (0.3, torch.float32)])
def test_auto_takes_bfloat16_only_where_it_is_clearly_faster(monkeypatch: pytest.MonkeyPatch, half: float, wanted: torch.dtype) -> None:
    monkeypatch.setattr(precision, "matmul_rate", lambda m, n, k, dtype, *_: half if dtype == torch.bfloat16 else 1.0)
    assert precision.compute_dtype("auto", CPU) == wanted
    assert precision.compute_dtype("float32", CPU) == torch.float32


def test_the_peak_is_the_best_of_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "matmul_rate", lambda m, n, k, *_: {512: 5.0, 1024: 9.0}.get(m, 2.0))
    assert precision.peak_flops(torch.float32, CPU) == 9.0


def test_apply_sets_the_compute_dtype_and_leaves_the_masters() -> None:
    model = network()
    precision.apply(model, torch.bfloat16)
    assert model.compute_dtype == torch.bfloat16 and model.head.weight.dtype == torch.float32
    precision.apply(model, torch.float64)
    assert model.compute_dtype == torch.float64 and model.head.weight.dtype == torch.float64
    plain = nn.Linear(2, 2)
    precision.apply(plain, torch.bfloat16)
    assert not hasattr(plain, "compute_dtype")


def test_in_fp8_the_blocks_train_and_nothing_else_changes() -> None:
    model = Transformer(TransformerConfig(width=32, depth=2, heads=2, qkv_bias=True), 50, Causal())
    twin = copy.deepcopy(model)
    precision.train_in_fp8(model)
    batch = Packed.of([torch.arange(20), torch.arange(7)])
    model.eval()
    assert torch.equal(model(batch), twin(batch))
    model.train()
    hidden, exact = model(batch), twin(batch)
    error = (hidden - exact).norm() / exact.norm()
    assert 1e-3 < error < 0.1
    hidden.square().sum().backward()
    exact.square().sum().backward()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        if q.grad is not None:
            assert (p.grad - q.grad).norm() < 0.2 * q.grad.norm(), name  # type: ignore[operator]
    lowered = {name for name, m in model.named_modules() if getattr(m, "low", None) is not None}
    matrices = ("attention.qkv", "attention.out", "feedforward.gate_up", "feedforward.down")
    assert lowered == {f"blocks.{i}.{m}" for i in range(2) for m in matrices}
    assert model.get_submodule("blocks.0.attention.out").low is not model.get_submodule("blocks.0.attention.qkv").low
