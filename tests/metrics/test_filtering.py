from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest

from unveil.data.chain import Chain, State
from unveil.data.synth_stream import chain as synth_chain
from unveil.metrics.filtering import forward_filter, windowed_filter

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def chain() -> Chain:
    states = {
        "rest": State(0, 0, {"rest": 0.6, "up": 0.3, "down": 0.1}),
        "up": State(1, 1, {"up": 0.5, "down": 0.5}),
        "down": State(1, 2, {"rest": 0.7, "down": 0.3}),
    }
    return Chain.of(states, np.array([[0.0, 0.0], [0.8, -0.5]]), classes=3)


def enumerated(chain: Chain, x_TF: Array, ahead: int) -> Array:
    """p(class ``ahead`` chunks after the last | all of ``x_TF``) by adding up every path there is."""
    found = np.zeros(chain.classes)
    for path in product(range(len(chain.label_S)), repeat=len(x_TF) + ahead):
        p = chain.stationary_S[path[0]] * np.prod([chain.transition_SS[a, b] for a, b in pairwise(path)])
        for state, x_F in zip(path, x_TF, strict=False):
            p *= np.exp(-0.5 * np.square(x_F - chain.means_EF[chain.emission_S[state]]).sum())
        found[chain.label_S[path[-1]]] += p
    return found / found.sum()


def test_filters_are_the_posterior_of_all_paths(chain: Chain) -> None:
    x_BTF = chain.sample([np.random.default_rng(i) for i in range(2)], 6)[1]
    full, windowed, single = forward_filter(chain, x_BTF, 2), windowed_filter(chain, x_BTF, 3, 2), windowed_filter(chain, x_BTF, 1, 2)
    assert full.shape == windowed.shape == (2, 6, 3, 3)
    for b, t, k in product(range(2), range(6), range(3)):
        np.testing.assert_allclose(full[b, t, k], enumerated(chain, x_BTF[b, : t + 1], k), atol=1e-12)
        np.testing.assert_allclose(windowed[b, t, k], enumerated(chain, x_BTF[b, max(0, t - 2) : t + 1], k), atol=1e-12)
        np.testing.assert_allclose(single[b, t, k], enumerated(chain, x_BTF[b, t : t + 1], k), atol=1e-12)


def test_a_window_longer_than_the_stream_forgets_nothing(chain: Chain) -> None:
    x_BTF = chain.sample([np.random.default_rng(0)], 9)[1]
    np.testing.assert_allclose(windowed_filter(chain, x_BTF, 9), forward_filter(chain, x_BTF), atol=1e-14)


def test_more_memory_is_never_worse_on_average_and_the_ceiling_is_calibrated() -> None:
    source = synth_chain()
    states, x_BTF = source.sample([np.random.default_rng(i) for i in range(12)], 200)
    labels, classes = source.label_S[states], np.arange(source.classes)

    def bits(p_BTC: Array) -> float:
        return float(-np.log2(np.take_along_axis(p_BTC, labels[..., None], -1)).mean())

    told = forward_filter(source, x_BTF, 1)
    losses = [bits(windowed_filter(source, x_BTF, steps)[:, :, 0]) for steps in (1, 4, 16)]
    assert losses == sorted(losses, reverse=True) and bits(told[:, :, 0]) < losses[-1] < 0.6 * losses[0]
    np.testing.assert_allclose(told.sum(-1), 1, atol=1e-12)
    np.testing.assert_allclose(told[:, :, 0].mean((0, 1)), (labels[..., None] == classes).mean((0, 1)), atol=0.02)
