"""The steps of score models against chains of one or two tokens that are enumerated."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from unveil.config import MaskedSamplerConfig
from unveil.discrete.jump import Chain, ScoreSampler
from unveil.discrete.process import SCHEDULES
from unveil.errors import UserError
from unveil.family import Request
from unveil.nn.packed import Packed

STATES = torch.arange(3)
MASK = 3
UNIFORM, ABSORB = Chain(STATES), Chain(STATES, MASK)
JOINT = np.random.default_rng(2).dirichlet(np.full(9, 0.7)).reshape(3, 3)
SCHEDULE = SCHEDULES["log-linear"]
CHAINS = pytest.mark.parametrize("chain", [UNIFORM, ABSORB], ids=["uniform", "absorb"])


def forward(chain, noise):
    """Transition matrix of one place over 4 ids, [from, to]."""
    kept = np.exp(-noise)
    if chain.mask is None:
        matrix = np.zeros((4, 4))
        matrix[:3, :3] = (1 - kept) / 3 + kept * np.eye(3)
        return matrix
    matrix = kept * np.eye(4)
    matrix[:, MASK] += 1 - kept
    return matrix


def noised(chain, noise, joint):
    """The joint at total noise ``noise``, over 4 ids a place."""
    padded = np.pad(joint, [(0, 1)] * joint.ndim)
    for axis in range(joint.ndim):
        padded = np.moveaxis(np.tensordot(padded, forward(chain, noise), (axis, 0)), -1, axis)
    return padded


def log_scores(chain, joint):
    def score(model, batch, sigma_N):
        out = []
        for tokens, noise in zip(batch.split(), sigma_N.tolist(), strict=True):
            p, x = noised(chain, noise, joint), tuple(tokens[1:].tolist())
            rows = [np.ones(4)] + [p[(*x[:i], slice(None), *x[i + 1 :])] / p[x] for i in range(len(x))]
            out.append(torch.from_numpy(np.stack(rows)).log())
        return torch.cat(out)

    return score


def sampler(chain, joint, **settings):
    return ScoreSampler(log_scores(chain, joint), chain, SCHEDULE, MASK, MaskedSamplerConfig(**settings))


def law(ours, joint):
    """Of what the sampler writes, by enumeration of its own steps: [3, ...] over the places."""
    places, chain = joint.ndim, ours.chain
    now = np.zeros((4,) * places)
    (row,) = ours.begin([Request(np.array([0]), places)]).rows
    if chain.mask is None:
        now[(slice(0, 3),) * places] = 1 / 3**places
    else:
        now[(MASK,) * places] = 1.0
    for step in range(ours.config.steps):
        before, after = ours.levels(replace(row, inside=step))
        last, new = step + 1 == ours.config.steps, np.zeros_like(now)
        for x in product(range(4), repeat=places):
            if now[x] == 0:
                continue
            tokens = torch.tensor([0, *x])
            log_s = ours.log_scores(None, Packed.of([tokens]), torch.tensor([before]))[1:]
            p = (chain.leap if ours.config.commit == "tau-leaping" and not last else chain.tweedie)(log_s, tokens[1:], before - after)
            if chain.mask is not None:
                p[:, MASK] *= not last
                p[tokens[1:] != MASK] = torch.eye(4, dtype=torch.float64)[tokens[1:][tokens[1:] != MASK]]
            p = (p / p.sum(-1, keepdim=True)).numpy()
            new += now[x] * reduce(np.multiply.outer, p)
        now = new
    assert now.sum() == pytest.approx(1.0, abs=1e-9)
    return now[(slice(0, 3),) * places]


@CHAINS
def test_the_analytic_step_is_the_posterior(chain):
    """For one place: p(x_s given x_t) by Bayes, whatever the two times."""
    p0 = np.array([0.5, 0.2, 0.3])
    for before, after in ((3.0, 1.0), (1.0, 0.2), (0.2, 0.0)):
        for x in range(3 if chain.mask is None else 4):
            prior, step = noised(chain, after, p0), forward(chain, before - after)
            exact = prior * step[:, x] / (prior @ step[:, x])
            p_t = noised(chain, before, p0)
            log_s = torch.from_numpy(p_t / p_t[x]).log()[None]
            if chain.mask is None or x == MASK:
                ours = chain.tweedie(log_s, torch.tensor([x]), before - after)[0]
                np.testing.assert_allclose((ours / ours.sum()).numpy(), exact, atol=1e-12)


def test_with_the_scores_of_a_masked_model_it_is_the_ancestral_step():
    """s_y = p_y / (e^sigma - 1): uncovered with (alpha_s - alpha_t) / (1 - alpha_t), then by p (MDLM, eq. 6)."""
    p = torch.tensor([[0.1, 0.6, 0.3, 0.0]], dtype=torch.float64)
    before, after = 1.7, 0.4
    log_s = (p / np.expm1(before)).log()
    log_s[:, MASK] = 0.0
    rate = (np.exp(-after) - np.exp(-before)) / (1 - np.exp(-before))
    expected = rate * p
    expected[:, MASK] = 1 - rate
    torch.testing.assert_close(ABSORB.tweedie(log_s, torch.tensor([MASK]), before - after), expected, rtol=0, atol=1e-12)


@CHAINS
@pytest.mark.parametrize("commit", ["tweedie", "tau-leaping"])
def test_finer_steps_approach_the_exact_law(chain, commit):
    distance = [abs(law(sampler(chain, JOINT, commit=commit, steps=steps), JOINT) - JOINT).sum() for steps in (2, 8, 32)]
    assert distance == sorted(distance, reverse=True) and distance[-1] < 0.3 * distance[0]


@CHAINS
def test_analytic_steps_are_better_than_leaps(chain):
    leap, tweedie = (abs(law(sampler(chain, JOINT, commit=commit, steps=8), JOINT) - JOINT).sum() for commit in ("tau-leaping", "tweedie"))
    assert tweedie < leap


@CHAINS
@pytest.mark.parametrize("commit", ["tweedie", "tau-leaping"])
def test_the_sampler_has_the_law_of_its_steps(chain, commit):
    ours = sampler(chain, JOINT, commit=commit, steps=3)
    state, last = ours.begin([Request(np.array([0]), 2, seed) for seed in range(800)]), {}
    while state.live:
        last |= {row.request: row for row in ours.step(None, state).rows}
    expected = 800 * law(ours, JOINT)
    counts = np.zeros((3, 3))
    for row in last.values():
        assert row.final and (row.committed_at[1:] > 0).all() and row.evaluations == 3 and (row.confidence[1:] > 0).all()
        counts[tuple(row.tokens[1:])] += 1
    assert ((counts - expected) ** 2 / expected).sum() < chi2.ppf(0.999, 8)


@CHAINS
def test_given_tokens_stay_and_a_row_is_the_same_in_any_batch(chain):
    joint = np.random.default_rng(0).dirichlet(np.ones(81)).reshape(3, 3, 3, 3)
    ours = sampler(chain, joint, commit="tweedie", steps=4)
    asked = [Request(np.array([0, MASK, 1, MASK, 2]), 0, 5), Request(np.array([0, 1]), 3, 6)]

    def run(requests):
        state, last = ours.begin(requests), {}
        while state.live:
            last |= {row.request: row for row in ours.step(None, state).rows}
        return last

    together = run(asked)
    assert together[0].tokens[[0, 2, 4]].tolist() == [0, 1, 2] and together[0].committed_at[2] == 0
    for i, request in enumerate(asked):
        np.testing.assert_array_equal(run([request])[0].tokens, together[i].tokens)


def test_what_a_jump_has_no_use_for_is_refused():
    with pytest.raises(UserError, match=r"sampler\.temperature: got 0.5: tweedie draws all tokens"):
        sampler(ABSORB, JOINT, commit="tweedie", temperature=0.5)
    with pytest.raises(UserError, match=r"sampler\.commit: got 'quota': is for masks"):
        sampler(UNIFORM, JOINT)
    with pytest.raises(UserError, match="infill: no mask"):
        sampler(ABSORB, JOINT, commit="tweedie").begin([Request(np.array([0]), 0)])
