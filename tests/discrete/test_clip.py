from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from unveil.discrete.clip import Clip, candidates, variance


def table(block=3):
    """Moments of the sum of cross-entropies by the number of masks, and the sums themselves with equal chances."""
    rng = np.random.default_rng(0)
    values = [np.zeros(4)] + [size * rng.uniform(1, 4, 4) for size in range(1, block + 1)]
    return torch.tensor([[v.mean() for v in values], [(v**2).mean() for v in values]], dtype=torch.float64), values


@pytest.mark.parametrize("bound", [True, False])
def test_variance_is_that_of_the_loss_at_the_rates_of_the_interval(bound):
    """Against a sum over all masks on a fine grid of rates."""
    moments, values = table()
    low, high = 0.3, 0.8
    first = second = 0.0
    for rate in (low + (high - low) * (np.arange(4000) + 0.5) / 4000).tolist():
        for masks in itertools.product([0, 1], repeat=3):
            chance = np.prod([rate if m else 1 - rate for m in masks]) / 4000
            losses = values[sum(masks)] / (rate if bound else 1.0)
            first, second = first + chance * losses.mean(), second + chance * (losses**2).mean()
    assert variance(moments, low, high, bound) == pytest.approx(second - first**2, rel=1e-6)


def test_the_interval_of_least_variance_is_taken_once_and_is_part_of_the_model():
    _, values = table()
    clip = Clip(3, 0.1, 0.9, bound=True)
    clip.advance()
    assert clip.interval.tolist() == [0.1, 0.9]  # nothing was seen
    sizes = np.repeat([1, 2, 3], 4)
    clip.observe(sizes, np.concatenate(values[1:]))
    clip.advance()
    moments, _ = table()
    least = min(variance(moments, low, high, True) for low, high in candidates())
    assert variance(moments, *clip.interval.tolist(), True) == pytest.approx(least) and clip.pending.sum() == 0
    chosen = clip.interval.clone()
    clip.advance()
    assert torch.equal(clip.interval, chosen)
    other = Clip(3, 0.1, 0.9, bound=True)
    other.load_state_dict(clip.state_dict())
    low, high = chosen.tolist()
    torch.testing.assert_close(other.rates(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([low, (low + high) / 2, high], dtype=torch.float64))


def test_what_was_seen_before_a_checkpoint_counts_after_it():
    _, values = table()
    clip, other = Clip(3, 0.1, 0.9, bound=True), Clip(3, 0.1, 0.9, bound=True)
    clip.observe(np.repeat([1, 2, 3], 4), np.concatenate(values[1:]))
    other.load_state_dict(clip.state_dict())
    clip.advance()
    other.advance()
    assert torch.equal(clip.interval, other.interval) and clip.interval.tolist() != [0.1, 0.9]


def test_candidates_lie_in_the_unit_interval():
    ends = np.array(candidates())
    assert (
        ends.min() == 0
        and ends.max() == 1
        and (ends[:, 1] - ends[:, 0]).min() == pytest.approx(0.5)
        and len(set(map(tuple, ends))) == len(ends)
    )
