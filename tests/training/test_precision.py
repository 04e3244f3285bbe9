from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.training.toy import network
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
