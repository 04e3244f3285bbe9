"""What a GPU computes against what a CPU does: the masks on any machine, gradients where there is a GPU."""

from __future__ import annotations

import pytest
import torch

from tests.nn.twins import dense_attention
from unveil.nn import flex
from unveil.nn.attention import attention
from unveil.nn.block_attention import block_diffusion_attention
from unveil.nn.layout import Annealed, Bidirectional, BlockCausal, Causal, Layout

OPENED = Annealed(torch.rand(128, 128, generator=torch.Generator().manual_seed(0)) < 0.3)
LAYOUTS: list[Layout] = [Causal(), Bidirectional(), Causal(3), Bidirectional(40), BlockCausal(4), OPENED]
LENGTHS = [5, 5, 150, 1]


def drawn(copies: int, groups: int, dtype: torch.dtype, device: str = "cpu") -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(groups)
    total = sum(LENGTHS)
    heads = [torch.randn(copies * total, h, 16, dtype=dtype, generator=generator) for h in (4, groups, groups)]
    bounds = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist(), total], dtype=torch.int32)
    return *(x.to(device) for x in heads), bounds.to(device)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout}".partition("=tensor")[0])
@pytest.mark.parametrize("groups", [4, 2])
def test_the_mask_is_the_layout_within_each_sequence(layout: Layout, groups: int) -> None:
    q, k, v, bounds = drawn(1, groups, torch.float64)
    ours = flex.packed(q, k, v, bounds, layout, 0.3)
    torch.testing.assert_close(ours, attention(q, k, v, bounds, max(LENGTHS), layout, 0.3), rtol=0, atol=1e-12)
    wide = flex.packed(q, k, torch.cat((v, v), -1), bounds, layout, 0.25)
    torch.testing.assert_close(wide, dense_attention(q, k, v, LENGTHS, layout).repeat(1, 1, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("block", [1, 4, 100])
@pytest.mark.parametrize("noisy_alone", [False, True])
def test_two_copies_see_what_block_diffusion_allows(block: int, noisy_alone: bool) -> None:
    q, k, v, bounds = drawn(2, 2, torch.float64)
    q = q[: len(q) // 2] if noisy_alone else q
    theirs = block_diffusion_attention(q, k, v, bounds, max(LENGTHS), block)
    torch.testing.assert_close(flex.two_copies(q, k, v, bounds, block), theirs, rtol=0, atol=1e-12)


def test_the_layers_of_a_pack_share_a_mask_which_goes_with_it() -> None:
    q, k, v, bounds = drawn(1, 4, torch.float32)
    before = len(flex._MASKS)
    for layout in (Causal(), Causal(), Bidirectional()):
        flex.packed(q, k, v, bounds, layout, 1.0)
    assert len(flex._MASKS) == before + 1 and len(flex._MASKS[bounds]) == 2
    del bounds
    assert len(flex._MASKS) == before


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.float64, 1e-10)], ids=["float32", "float64"])
@pytest.mark.parametrize("groups", [4, 2])
def test_values_and_gradients_are_those_of_the_cpu(dtype: torch.dtype, tolerance: float, groups: int) -> None:
    for copies in (1, 2):
        there, here = drawn(copies, groups, dtype, "cuda"), drawn(copies, groups, dtype)
        for heads in (there, here):
            for x in heads[:3]:
                x.requires_grad_()
        weight = torch.randn(here[0].shape, dtype=dtype)
        if copies == 1:
            results = [attention(*x, max(LENGTHS), BlockCausal(4)) for x in (there, here)]
        else:
            results = [block_diffusion_attention(*x, max(LENGTHS), 4) for x in (there, here)]
        torch.testing.assert_close(results[0].cpu(), results[1], rtol=0, atol=tolerance)
        grads = [torch.autograd.grad((y * weight.to(y.device)).sum(), heads[:3]) for y, heads in zip(results, (there, here), strict=True)]
        for mine, plain in zip(*grads, strict=True):
            torch.testing.assert_close(mine.cpu(), plain, rtol=0, atol=tolerance)
