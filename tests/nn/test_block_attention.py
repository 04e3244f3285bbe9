"""The merged parts against one softmax over the dense mask of 2 T x 2 T, values and gradients."""

from __future__ import annotations

import pytest
import torch

from unveil.nn.attention import TILE
from unveil.nn.block_attention import _behind, block_diffusion_attention
from unveil.nn.layout import BlockDiffusion


def _dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int], block: int) -> torch.Tensor:
    times = q.shape[1] // k.shape[1]
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).repeat(2)
    position = torch.cat([torch.arange(n) for n in lengths]).repeat(2)
    clean = torch.arange(len(position)) >= sum(lengths)
    allowed = BlockDiffusion(block).allows(position[:, None], position, clean[:, None], clean) & (sequence[:, None] == sequence)
    scores = torch.einsum("qhe,khe->hqk", q, k.repeat_interleave(times, 1)) * q.shape[2] ** -0.5
    return torch.einsum("hqk,khe->qhe", scores.masked_fill(~allowed, -torch.inf).softmax(-1), v.repeat_interleave(times, 1))


@pytest.mark.parametrize("lengths", [[8, 8], [5, 5, 7, 1], [TILE + 45, 17]], ids=str)
@pytest.mark.parametrize("block", [1, 4, 100, 300])
@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 3e-5)], ids=["float64", "float32"])
def test_equals_the_dense_mask(lengths: list[int], block: int, groups: int, dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(block)
    total = 2 * sum(lengths)
    q, k, v = (torch.randn(total, h, 8, dtype=dtype, generator=generator).requires_grad_() for h in (4, groups, groups))
    weight = torch.randn(total, 4, 8, dtype=dtype, generator=generator)
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist(), total // 2], dtype=torch.int32)
    ours, theirs = block_diffusion_attention(q, k, v, bounds, max(lengths), block), _dense(q, k, v, lengths, block)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    gradients = [torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (ours, theirs)]
    for mine, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, plain, rtol=0, atol=tolerance)


def test_masks_stay_within_a_tile() -> None:
    assert all(t.mask is None or t.mask.numel() <= TILE * TILE for block in (1, 4, 100, 300) for t in _behind(block, 8 * TILE + 3))
