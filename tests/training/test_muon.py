from __future__ import annotations

import pytest
import torch
from torch import nn

from unveil.training.muon import Muon, orthogonalise

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 24)])
def test_bfloat16_is_torchs_muon_bit_for_bit(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}
    steps = Muon([ours], torch.bfloat16, **options), torch.optim.Muon([theirs], **options)
    for _ in range(4):
        ours.grad = theirs.grad = torch.randn(shape)
        for optimizer in steps:
            optimizer.step()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("shape", [(16, 16), (40, 16), (16, 40)])
def test_float32_keeps_the_singular_vectors_and_levels_the_values(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ orthogonalise(matrix, COEFFICIENTS, 5, 1e-7, torch.float32) @ vh.T
    values = inner.diagonal()
    assert float(values.min()) > 0.5 and float(values.max()) < 1.3
    assert float((inner - values.diag()).abs().max()) < 1e-4


def test_a_masked_step_changes_nothing() -> None:
    p = nn.Parameter(torch.ones(4, 4))
    optimizer = Muon([p], torch.float32, lr=0.1)
    p.grad = torch.randn(4, 4)
    optimizer.step()
    before, momentum = p.detach().clone(), optimizer.state[p]["momentum_buffer"].clone()
    optimizer.found_inf = torch.tensor(1.0)
    p.grad = torch.full((4, 4), torch.nan)
    optimizer.step()
    assert torch.equal(p, before) and torch.equal(optimizer.state[p]["momentum_buffer"], momentum)
    optimizer.found_inf = torch.tensor(0.0)
    p.grad = torch.randn(4, 4)
    optimizer.step()
    assert not torch.equal(p, before)
