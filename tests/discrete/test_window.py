from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unveil.discrete.commit import Clock
from unveil.discrete.window import quota, windows
from unveil.errors import UserError


@given(st.integers(0, 200), st.integers(1, 64))
def test_quota_sums_to_the_masks_and_is_even(masks, steps):
    numbers = quota(masks, steps)
    assert len(numbers) == steps and sum(numbers) == masks
    assert max(numbers) - min(numbers) <= 1 and numbers == sorted(numbers, reverse=True)


@pytest.mark.parametrize(("masks", "steps"), [(16, 16), (16, 5), (7, 3), (3, 8), (0, 4), (128, 48)])
def test_golden_quota(golden, masks, steps):
    arrays, _ = golden("llada_generate")
    table = arrays[f"outputs.num_transfer_m{masks}_s{steps}"]
    assert quota(masks, steps) == table[0].tolist() and quota(masks // 2, steps) == table[1].tolist()


@given(st.lists(st.booleans(), min_size=1, max_size=60).filter(any), st.integers(0, 80), st.integers(0, 70))
def test_windows_hold_every_mask_once_from_left_to_right(hidden, steps, size):
    at = np.flatnonzero(hidden)
    count = -(-len(at) // size) if size else 1
    if steps and steps < count:
        with pytest.raises(UserError, match=r"sampler\.steps.*at least"):
            windows(np.array(hidden), size, steps)
        return
    plan = windows(np.array(hidden), size, steps)
    assert len(plan) == count and sum(plan.masks) == len(at) and sum(plan.steps) == (steps or len(at))
    assert (plan.window_T[at] == np.arange(len(at)) // (size or len(at))).all() and (np.delete(plan.window_T, at) == -1).all()
    for w in range(count):
        (inside,) = np.nonzero(plan.window_T == w)
        assert (plan.first[w], plan.end[w]) == (inside[0], inside[-1] + 1)


@pytest.mark.parametrize("size", [0, 1, 2, 4])
def test_windows_of_a_block_model_stand_where_its_blocks_do(size):
    hidden = np.array([False] * 6 + [True] * 7)
    plan = windows(hidden, size, 0, block=4)
    assert (plan.window_T[6:] == (np.arange(6, 13) // (size or 4)) - 6 // (size or 4)).all()
    assert plan.end[0] == 8 and plan.end[-1] == 13  # whole blocks, as far as there are tokens


@given(st.integers(1, 60), st.integers(1, 80), st.data())
def test_what_is_due_is_the_quota_and_makes_up_for_what_came_back(masks, steps, data):
    left, taken = masks, []
    for step in range(min(steps, masks)):
        due = Clock(step, steps, masks, left).due
        taken.append(due)
        left -= due
    assert taken == quota(masks, min(steps, masks)) and left == 0
    left = masks
    for step in range(min(steps, masks)):
        left -= Clock(step, steps, masks, left).due
        if step < min(steps, masks) - 1:
            left = data.draw(st.integers(left, masks))
    assert left == 0


@given(st.integers(1, 60), st.integers(1, 80))
def test_ahead_of_the_plan_one_is_due(masks, steps):
    assert Clock(0, steps, masks, 1).due == 1
