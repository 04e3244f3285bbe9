from __future__ import annotations

import numpy as np
import pytest

from unveil.data.chain import Chain, State


def test_a_long_stream_visits_states_as_the_stationary_distribution_says() -> None:
    states = {"a": State(0, 0, {"a": 0.9, "b": 0.1}), "b": State(1, 1, {"c": 1.0}), "c": State(1, 1, {"a": 0.5, "c": 0.5})}
    chain = Chain.of(states, np.array([[0.0, 0.0], [3.0, 4.0]]), classes=2)
    np.testing.assert_allclose(chain.stationary_S, np.array([10, 1, 2]) / 13, atol=1e-12)
    visited, features = chain.sample([np.random.default_rng(i) for i in range(200)], 300)
    assert visited.shape == (200, 300) and features.dtype == np.float32
    np.testing.assert_allclose(np.bincount(visited.ravel()) / visited.size, chain.stationary_S, atol=0.01)
    np.testing.assert_allclose(np.bincount(visited[:, 0], minlength=3) / 200, chain.stationary_S, atol=0.08)
    np.testing.assert_allclose(features[visited == 2].mean(0), [3, 4], atol=0.05)
    np.testing.assert_allclose(features[visited == 0].std(0), 1, atol=0.02)
    assert not np.any((visited[:, :-1] == 1) & (visited[:, 1:] != 2))


def test_states_that_lead_nowhere_are_refused() -> None:
    means = np.zeros((1, 1))
    with pytest.raises(ValueError, match="'a' leads to 'b'"):
        Chain.of({"a": State(0, 0, {"b": 1.0})}, means, 1)
    with pytest.raises(ValueError, match="'a' do not sum to 1"):
        Chain.of({"a": State(0, 0, {"a": 0.5})}, means, 1)
