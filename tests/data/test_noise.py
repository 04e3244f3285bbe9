from __future__ import annotations

import itertools

import numpy as np

from unveil.data.noise import generator, stratified


def test_a_stream_belongs_to_its_four_keys_alone() -> None:
    keys = list(itertools.product((0, 1, -1), (0, 1), (0, 1, 10**9), ("draw", "transform")))
    draws = {tuple(generator(*key).integers(0, 2**62, 4)) for key in keys}
    assert len(draws) == len(keys)
    assert np.array_equal(generator(3, 1, 4, "draw").random(5), generator(3, 1, 4, "draw").random(5))


def test_neighbouring_samples_are_uniform_and_uncorrelated() -> None:
    first = np.array([generator(0, 0, i, "draw").random(2) for i in range(4000)])
    assert abs(first.mean() - 0.5) < 4 / np.sqrt(12 * 8000)
    assert abs(np.corrcoef(first[:-1, 0], first[1:, 0])[0, 1]) < 4 / np.sqrt(4000)
    assert abs(np.corrcoef(first[:, 0], first[:, 1])[0, 1]) < 4 / np.sqrt(4000)


def test_stratified_is_frac_of_u_plus_index_times_golden() -> None:
    golden = (np.sqrt(5) - 1) / 2
    index = np.arange(1000)
    np.testing.assert_allclose(stratified(0.3, index), np.mod(0.3 + index * golden, 1.0), atol=1e-12)
    assert stratified(0.3, 7) == stratified(0.3, index)[7]


def test_stratified_points_fill_the_interval_evenly() -> None:
    """Three-gap theorem: n points of the golden rotation leave no gap wider than 2/n, at any start and at large indices."""
    for start in (0, 10**12):
        points = np.sort(stratified(0.77, np.arange(start, start + 500)))
        gaps = np.diff(np.concatenate([points, points[:1] + 1]))
        assert gaps.max() < 2 / 500
        assert gaps.min() > 1 / (3 * 500)
