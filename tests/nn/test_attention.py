"""The packed operator against one softmax over a dense mask, values and gradients, for every layout."""

from __future__ import annotations

import pytest
import torch

from tests.nn.twins import dense_attention
from unveil.nn.attention import TILE, _opened, _tiles, attention
from unveil.nn.layout import Annealed, Bidirectional, BlockCausal, Causal, Layout


def opened(share: float, period: int = TILE) -> Annealed:
    return Annealed(torch.rand(period, period, generator=torch.Generator().manual_seed(0)) < share)


LAYOUTS: list[Layout] = [
    Causal(), Bidirectional(), Causal(3), Causal(100), Bidirectional(40), Bidirectional(280), BlockCausal(4), BlockCausal(100),
    opened(0.02), opened(0.6, 4)
]  # fmt: skip
LENGTHS = {"equal": [6, 6, 6], "ragged": [5, 5, 7, 1], "past a tile": [TILE + 44, 17, 17]}


def _inputs(lengths: list[int], heads: int, groups: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(sum(lengths))
    total = sum(lengths)
    qkv = [torch.randn(total, h, 8, dtype=dtype, generator=generator).requires_grad_() for h in (heads, groups, groups)]
    bounds = [0, *torch.tensor(lengths).cumsum(0).tolist(), total, total]
    return *qkv, torch.tensor(bounds, dtype=torch.int32), torch.randn(total, heads, 8, dtype=dtype, generator=generator)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout}".partition("=tensor")[0])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=["float64", "float32"])
def test_equals_the_dense_mask(layout: Layout, lengths: list[int], groups: int, dtype: torch.dtype, tolerance: float) -> None:
    q, k, v, bounds, weight = _inputs(lengths, 4, groups, dtype)
    ours = attention(q, k, v, bounds, max(lengths), layout)
    theirs = dense_attention(q, k, v, lengths, layout)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    for mine, plain in zip(
        torch.autograd.grad((ours * weight).sum(), (q, k, v)), torch.autograd.grad((theirs * weight).sum(), (q, k, v)), strict=True
    ):
        torch.testing.assert_close(mine, plain, rtol=0, atol=tolerance)


def test_a_sequence_does_not_see_what_else_is_in_the_pack() -> None:
    q, k, v, bounds, _ = _inputs([4, 9, 4], 2, 2, torch.float64)
    before = attention(q, k, v, bounds, 9, Bidirectional())
    with torch.no_grad():
        for x in (q, k, v):
            x[:4] += 1.0
    after = attention(q, k, v, bounds, 9, Bidirectional())
    assert torch.equal(before[4:], after[4:]) and not torch.equal(before[:4], after[:4])


def test_masks_stay_small_and_few() -> None:
    """However long the sequence: no mask beyond a tile, equal ones shared, and no masked tile where a whole one would do."""
    masks = [t.mask for t in _tiles(0, 100, 16 * TILE) if t.mask is not None]
    assert all(m.numel() <= TILE * TILE for m in masks)
    assert len({id(m) for m in masks}) <= 3
    diagonal = [t for t in _tiles(2, TILE, 4 * TILE) if t.mask is not None]
    assert diagonal == []


@pytest.mark.parametrize(("share", "end"), [(0.0, Causal()), (1.0, Bidirectional())], ids=["shut", "open"])
def test_annealing_begins_causal_and_ends_bidirectional(share: float, end: Layout) -> None:
    """Values and gradients, past a tile."""
    lengths = [TILE + 44, 17]
    q, k, v, bounds, weight = _inputs(lengths, 4, 2, torch.float64)
    results = [attention(q, k, v, bounds, max(lengths), layout) for layout in (opened(share), end)]
    torch.testing.assert_close(*results, rtol=0, atol=1e-13)
    for ours, plain in zip(*(torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in results), strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)


def test_a_pattern_is_never_more_than_two_masks() -> None:
    tiles = _opened(opened(0.5, 8).open_PP, 50)
    assert len({t.mask.untyped_storage().data_ptr() for t in tiles if t.mask is not None}) == 2
    covered = torch.zeros(50, 50, dtype=torch.int64)
    for t in tiles:
        covered[t.q0 : t.q1, t.k0 : t.k1] += 1
    assert bool((covered == 1).all())


def test_heads_that_do_not_divide_are_refused() -> None:
    q, k, v, bounds, _ = _inputs([4], 3, 2, torch.float32)
    with pytest.raises(ValueError, match="no multiple"):
        attention(q, k, v, bounds, 4, Causal())
