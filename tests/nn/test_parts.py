"""Norm, rotary embedding, fused matrices."""

from __future__ import annotations

import pytest
import torch

from unveil.nn.linear import Linear
from unveil.nn.norm import RMSNorm
from unveil.nn.rotary import rotate, rotation


def test_rms_norm_has_unit_mean_square_times_the_weight() -> None:
    norm = RMSNorm(16, eps=0.0).double()
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(5, 16, dtype=torch.float64) * 7
    torch.testing.assert_close((norm(x) / norm.weight).square().mean(-1), torch.ones(5, dtype=torch.float64), rtol=1e-12, atol=0)


def test_rms_norm_takes_its_statistics_in_float32() -> None:
    x = torch.full((1, 4096), 300.0, dtype=torch.bfloat16)  # the sum of squares is past what bfloat16 adds up exactly
    assert RMSNorm(4096)(x).float().sub(1).abs().max() < 1e-2


def test_rotation_depends_on_distance_alone_and_keeps_length() -> None:
    q, k = torch.randn(2, 1, 3, 8, dtype=torch.float64)

    def score(i: int, j: int) -> torch.Tensor:
        turned = [rotate(x, rotation(torch.tensor([p]), 8, 100.0, torch.float64)) for x, p in ((q, i), (k, j))]
        torch.testing.assert_close(turned[0].norm(dim=-1), q.norm(dim=-1), rtol=1e-12, atol=0)
        return (turned[0] * turned[1]).sum(-1)

    torch.testing.assert_close(score(9, 4), score(105, 100), rtol=0, atol=1e-12)
    assert (score(9, 4) - score(9, 5)).abs().max() > 1e-3


def test_rotation_is_a_complex_product() -> None:
    x, position = torch.randn(1, 1, 8, dtype=torch.float64), 13
    turned = rotate(x, rotation(torch.tensor([position]), 8, 10000.0, torch.float64))
    angles = position * 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    expected = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones(4, dtype=torch.float64), angles)
    torch.testing.assert_close(torch.complex(turned[..., :4], turned[..., 4:]), expected, rtol=0, atol=1e-12)


def test_slices_must_add_up() -> None:
    with pytest.raises(ValueError, match="do not add up"):
        Linear(4, 10, slices=(4, 4))
