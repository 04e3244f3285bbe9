"""What the sampler's rules do to the law of a text, against a joint distribution of three tokens that is known."""

from __future__ import annotations

from functools import reduce
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from unveil.config import MaskedSamplerConfig
from unveil.discrete.denoiser import Subs
from unveil.discrete.process import SCHEDULES, Geometric
from unveil.discrete.remask import rates
from unveil.discrete.sampler import MaskedSampler
from unveil.family import Request
from unveil.nn.head import LogitsModel
from unveil.nn.packed import Packed

MASK = 2
CANVASES = list(product(range(3), repeat=3))
"""Two data tokens and the mask at three places."""
JOINT = np.random.default_rng(4).dirichlet(np.full(8, 0.5)).reshape(2, 2, 2)


def conditionals():
    """p(token at each place given the tokens that a canvas shows), ``[27, 3, 2]``."""
    table = np.zeros((27, 3, 2))
    for c, canvas in enumerate(CANVASES):
        seen = JOINT[tuple(slice(None) if token == MASK else slice(token, token + 1) for token in canvas)]
        for place in range(3):
            marginal = seen.sum(tuple(axis for axis in range(3) if axis != place))
            table[c, place] = marginal / marginal.sum() if len(marginal) == 2 else np.eye(2)[canvas[place]]
    return table


TABLE = conditionals()


class Exact(torch.nn.Module):
    """The conditionals as a network over a start token (3) and three places; counts its calls and the sequences in them."""

    def __init__(self) -> None:
        super().__init__()
        self.sequences = 0
        logits = torch.full((27, 4, 4), -torch.inf, dtype=torch.float64)
        logits[:, 1:, :2] = torch.from_numpy(TABLE).log()
        logits[:, 0, 0] = 0.0
        self.logits = logits

    def forward(self, batch: Packed) -> torch.Tensor:
        canvases = batch.tokens_T.view(-1, 4)[:, 1:]
        self.sequences += len(canvases)
        return self.logits[(canvases * torch.tensor([9, 3, 1])).sum(1)].flatten(0, 1)


def law(steps, strength=0.0, schedule=SCHEDULES["linear"]):
    """Of the finished text, [2, 2, 2]: the chain of canvases under an ancestral sampler, enumerated."""
    now = np.zeros(27)
    now[-1] = 1.0
    for step in range(steps):
        t = torch.tensor([1 - step / steps, 1 - (step + 1) / steps], dtype=torch.float64)
        uncover, cover = rates(*schedule.mask_rate(t).tolist(), strength)
        after = np.zeros(27)
        for c, canvas in enumerate(CANVASES):
            kernels = []
            for place, token in enumerate(canvas):
                if token == MASK:
                    kernels.append(np.array([*uncover * TABLE[c, place], 1 - uncover]))
                else:
                    kernels.append((1 - cover) * np.eye(3)[token] + cover * np.eye(3)[MASK])
            after += now[c] * reduce(np.multiply.outer, kernels).ravel()
        now = after
    full = now.reshape(3, 3, 3)
    assert full[:2, :2, :2].sum() == pytest.approx(1.0, abs=1e-12)
    return full[:2, :2, :2]


def texts(rows, **settings):
    ours = MaskedSampler(Subs(MASK, (MASK, 3)), -1, MaskedSamplerConfig(order="random", **settings), keep=(3,))
    state = ours.begin([Request(np.array([3]), 3, seed) for seed in range(rows)])
    last, model = {}, Exact()
    while state.live:
        last |= {row.request: row for row in ours.step(LogitsModel(model), state).rows}
    return last, model


def counted(last):
    counts = np.zeros((2, 2, 2))
    for row in last.values():
        counts[tuple(row.tokens[1:])] += 1
    return counts


def fits(counts, expected):
    assert ((counts - expected * counts.sum()) ** 2 / (expected * counts.sum())).sum() < chi2.ppf(0.999, 7)


def test_first_hitting_draws_from_the_joint_and_ancestral_steps_approach_it():
    """One place at a time leaves nothing out; ancestral steps do as they grow fine (BD3-LM, appendix B: the same law)."""
    last, _ = texts(800, commit="first-hitting")
    fits(counted(last), JOINT)
    distance = [abs(law(steps) - JOINT).sum() for steps in (1, 4, 16, 64, 1024)]
    assert distance == sorted(distance, reverse=True) and distance[0] > 0.1 and distance[-1] < 1e-3


@pytest.mark.parametrize("steps", [2, 5])
def test_ancestral_steps_have_the_enumerated_law(steps):
    last, _ = texts(800, commit="ancestral", steps=steps)
    fits(counted(last), law(steps))
    assert abs(law(2) - law(5)).sum() > 0.02  # so that the test can tell them apart


def test_remdm_has_the_enumerated_law_and_it_is_another():
    last, _ = texts(800, commit="ancestral", steps=5, remask="remdm", remask_rate=0.8)
    fits(counted(last), law(5, 0.8))
    assert abs(law(5, 0.8) - law(5)).sum() > 0.02


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_remdm_keeps_the_share_of_masks(schedule, strength):
    masks = SCHEDULES[schedule].mask_rate(torch.linspace(1, 0, 9, dtype=torch.float64)).tolist()
    for mask_t, mask_s in pairwise(masks):
        uncover, cover = rates(mask_t, mask_s, strength)
        assert 0 <= uncover <= 1 and 0 <= cover <= 1
        assert mask_t * (1 - uncover) + (1 - mask_t) * cover == pytest.approx(mask_s, abs=1e-12)


def test_no_mask_is_left_by_a_schedule_that_leaves_noise():
    config = MaskedSamplerConfig(order="random", commit="ancestral", steps=2)
    ours = MaskedSampler(Subs(MASK, (MASK, 3)), -1, config, keep=(3,), schedule=Geometric(2.0, 20.0))
    state, model = ours.begin([Request(np.array([3]), 3, seed) for seed in range(50)]), LogitsModel(Exact())
    while state.live:
        rows = ours.step(model, state).rows
    assert state.step <= 2 and all(row.final and MASK not in row.tokens for row in rows)


def test_an_ancestral_step_that_uncovers_nothing_asks_nothing():
    """The no-change cache of MDLM: as many evaluations as steps that changed something, and the text is that of asking every time."""
    last, model = texts(40, commit="ancestral", steps=50)
    assert model.sequences == sum(row.evaluations for row in last.values())
    for row in last.values():
        assert row.evaluations == len(set(row.committed_at[1:])) <= 3 and row.computed == 4 * row.evaluations
