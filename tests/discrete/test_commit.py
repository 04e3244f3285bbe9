from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unveil.config import MaskedSamplerConfig
from unveil.discrete.commit import ADAPTIVE, Clock, chosen, revealed
from unveil.discrete.order import ORDERS, Proposals, first, waiting

SURE = np.array([0.3, 0.95, 0.9, 0.2, 0.9])
probabilities = hnp.arrays(np.float64, st.integers(1, 12), elements=st.floats(0.0, 1.0))


def proposals(confidence, entropy=None):
    confidence = np.asarray(confidence, dtype=np.float64)
    entropy = 1.0 - confidence if entropy is None else np.asarray(entropy, dtype=np.float64)
    return Proposals(np.arange(len(confidence)), confidence, confidence, entropy, 2 * confidence - 1)


def commits(p, left=None, masks=None, steps=None, step=0, order="confidence", **settings):
    n = len(p.tokens_M)
    clock = Clock(step, steps or masks or n, masks or n, n if left is None else left)
    return chosen(ORDERS[order](p), p, clock, MaskedSamplerConfig(**settings)).tolist()


def test_orders_and_their_ties():
    p = Proposals(np.zeros(4), *[np.array([0.5, 0.7, 0.7, 0.1])] * 2, np.array([0.2, 0.9, 0.1, 0.1]), np.array([0.0, 0.4, 0.5, 0.5]))
    assert [first(score(p), 2).tolist() for score in ORDERS.values()] == [[1, 2], [2, 3], [2, 3], [0, 1]]
    later = p.last(np.array([False, True, True, False]))
    assert [first(score(later), 2).tolist() for score in ORDERS.values()] == [[0, 3]] * 4
    assert first(waiting(np.array([0.1, 0.9, 0.8, 0.2]), later), 2).tolist() == [0, 3] and later.probability_M[1] == 0.7


def test_threshold_commits_all_that_reach_it_or_the_best_one():
    assert commits(proposals(SURE), commit="threshold", threshold=0.9) == [1, 2, 4]
    assert commits(proposals(SURE), commit="threshold", threshold=0.96) == [1]
    assert commits(proposals(SURE), commit="threshold", threshold=0.96, order="left-to-right") == [0]


@given(probabilities)
def test_threshold_above_one_takes_one_token_and_zero_takes_all(confidence):
    assert commits(proposals(confidence), commit="threshold", threshold=1.01) == first(confidence, 1).tolist()
    assert commits(proposals(confidence), commit="threshold", threshold=0.0) == list(range(len(confidence)))


@pytest.mark.parametrize(("steps", "step", "count"), [(5, 0, 1), (2, 0, 3), (2, 1, 5), (1, 0, 5)])
def test_adaptive_rules_keep_to_the_steps(steps, step, count):
    """Fewer pass than the steps left ask for: the surest fill up (SDAR's dynamic rule)."""
    for commit in ADAPTIVE:
        settings = {"threshold": 2.0, "factor": 0.0, "entropy_bound": 0.0}
        assert commits(proposals(SURE), steps=steps, step=step, commit=commit, **settings) == first(SURE, count).tolist()


@given(probabilities, st.floats(0, 4))
def test_factor_is_the_longest_run_from_the_surest(confidence, factor):
    order = sorted(range(len(confidence)), key=lambda i: (-confidence[i], i))
    count = 0
    while count < len(order) and confidence[order[count]] >= 1 - factor / (count + 2):
        count += 1
    assert commits(proposals(confidence), commit="factor", factor=factor) == sorted(order[: max(count, 1)])


@given(probabilities.map(lambda p: p * 0.999))
def test_factor_zero_takes_one_unless_it_is_certain(confidence):
    assert commits(proposals(confidence), commit="factor", factor=0.0) == first(confidence, 1).tolist()
    assert commits(proposals(np.ones(4)), commit="factor", factor=0.0) == [0, 1, 2, 3]


@given(
    hnp.arrays(np.int64, st.integers(1, 12), elements=st.integers(0, 48)).map(lambda x: x / 16), st.integers(0, 64).map(lambda x: x / 16)
)
def test_the_entropy_bound_leaves_the_greatest_out_of_its_sum(entropy, bound):
    ordered = np.sort(entropy)
    size = max(k for k in range(1, len(entropy) + 1) if ordered[:k].sum() - ordered[:k].max() <= bound)  # sixteenths: sums are exact
    taken = commits(proposals(1 - entropy / 4, entropy), commit="entropy-bound", entropy_bound=bound)
    assert sorted(entropy[taken].tolist()) == ordered[:size].tolist()


def test_the_entropy_bounds_limits():
    assert commits(proposals(SURE), commit="entropy-bound", entropy_bound=0.0) == [1]
    assert commits(proposals(SURE), commit="entropy-bound", entropy_bound=1e9) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("commit", ADAPTIVE)
def test_what_waits_is_not_committed_while_there_is_something_else(commit):
    p = proposals(SURE).last(np.array([False, True, False, True, False]))
    generous = {"threshold": 0.0, "factor": 99.0, "entropy_bound": 99.0}
    assert commits(p, commit=commit, **generous) == [0, 2, 4]
    only = proposals(SURE).last(np.ones(5, dtype=bool))
    assert commits(only, commit=commit, **generous) == [0]


def test_revealed_is_a_share_of_the_masks():
    uniforms = np.linspace(0, 1, 100, endpoint=False)
    assert len(revealed(uniforms, 0.0)) == 0 and len(revealed(uniforms, 0.25)) == 25 and len(revealed(uniforms, 1.0)) == 100
