"""Noise as a pure function of seed and draw."""

from __future__ import annotations

import math

import pytest
import torch

from unveil.gaussian.noise import DRAWS, Noise, start, stream


def streams(seeds, shape=(3, 4), dtype=torch.float32):
    return Noise(seeds, torch.zeros(len(seeds), *shape, dtype=dtype))


def test_draws_are_normal():
    """Moments and tails, and no correlation along a sample, along its draws or between neighbouring seeds: within 4 standard errors."""
    noise = streams(range(100), (100,))
    z = torch.stack([noise.draw() for _ in range(40)]).double()  # [draws, seeds, values]
    n = z.numel()
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96 / n)
    for limit in (1.0, 2.0, 3.0):
        share = math.erfc(limit / math.sqrt(2))
        assert abs((z.abs() > limit).double().mean() - share) < 4 * math.sqrt(share / n)
    for a, b in ((z[1:], z[:-1]), (z[:, 1:], z[:, :-1]), (z[..., 1:], z[..., :-1])):
        assert abs((a * b).mean()) < 4 / math.sqrt(a.numel())
        assert abs((a.square() * b.square()).mean() - 1) < 4 * math.sqrt(8 / a.numel())


def test_streams_differ_by_seed_and_index():
    """No two of 1,000 neighbouring seeds at 100 indices, nor seeds that differ above 2^32 only."""
    seen = {stream(seed, index).initial_seed() for seed in range(1_000) for index in range(100)}
    assert len(seen) == 100_000
    assert stream(1 + 2**32, 0).initial_seed() != stream(1, 0).initial_seed()


def test_the_start_is_no_draw():
    assert (start(3, (3, 4)) != streams([3]).draw()[0]).all()
    assert torch.equal(start(3, (3, 4)), start(3, (3, 4)))


@pytest.mark.parametrize("shape", [(2,), (3, 4), (3, 40, 40)])
def test_a_row_draws_the_same_in_any_company(shape):
    """Alone, in a batch, after a split, behind or ahead of its neighbours, over the ends of blocks."""
    count = DRAWS + 3
    alone = {seed: torch.stack([noise.draw()[0] for _ in range(count)]) for seed in (5, 6, 7) for noise in [streams([seed], shape)]}
    both = streams([5, 6], shape)
    drawn = [both.draw() for _ in range(DRAWS - 1)]
    third = streams([7], shape)
    joined = both.join(third)  # 7 has drawn nothing yet
    drawn2 = [joined.draw() for _ in range(3)]
    swapped = joined.select([2, 0])
    after = swapped.draw()
    for column, seed in enumerate((5, 6)):
        found = torch.stack([z[column] for z in drawn] + [z[column] for z in drawn2])
        assert torch.equal(found, alone[seed][: DRAWS + 2])
    assert torch.equal(torch.stack([z[2] for z in drawn2]), alone[7][:3])
    assert torch.equal(after[0], alone[7][3]) and torch.equal(after[1], alone[5][DRAWS + 2])
    assert torch.equal(joined.draw()[1], alone[6][DRAWS + 2])  # what was selected went on by itself


def test_a_draw_does_not_change_behind_ones_back():
    noise = streams([1])
    first = noise.draw()
    kept = first.clone()
    for _ in range(2 * DRAWS):
        noise.draw()
    assert torch.equal(first, kept)


def test_a_wide_state_gets_the_same_noise():
    assert torch.equal(streams([3], dtype=torch.float64).draw(), streams([3]).draw().double())
