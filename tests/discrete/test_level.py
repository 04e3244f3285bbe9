"""What a network that is told the noise level hears, and what that does to the law of a text."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from unveil.config import MaskedConfig, MaskedSamplerConfig, ScoreConfig, TransformerConfig
from unveil.discrete.allowed import Model
from unveil.discrete.denoiser import Subs
from unveil.discrete.family import Discrete
from unveil.discrete.jump import Chain, ScoreSampler
from unveil.discrete.level import Level
from unveil.discrete.process import SCHEDULES, sigma
from unveil.discrete.sampler import MaskedSampler
from unveil.errors import UserError
from unveil.family import Request
from unveil.nn.packed import Packed

MASK, START, STEPS = 3, 4, 3
ONE = torch.ones((), dtype=torch.float64)
SCHEDULE = SCHEDULES["log-linear"]
TABLE = np.random.default_rng(3).normal(0, 2.0, (4, 4, 2, 3))
"""Logits of three data tokens at both places, by canvas."""


class Told:
    """A network whose answer depends on the level; keeps what it heard."""

    def __init__(self) -> None:
        self.heard: list[float] = []

    def __call__(self, batch, time):
        self.heard += time.tolist()
        rows = []
        for tokens, level in zip(batch.split(), time.double().tolist(), strict=True):
            x = tuple(tokens[1:].tolist())
            rows.append(np.pad(TABLE[x] * np.sin(3 * level) if len(x) == 2 else np.zeros((len(x), 3)), [(1, 0), (0, 2)]))
        return torch.from_numpy(np.concatenate(rows))

    def head(self, logits):
        return logits

    def parameters(self):
        return iter(())


def sampler(commit, keep=(START,), **settings):
    config = MaskedSamplerConfig(commit=commit, order="random", **settings)
    return MaskedSampler(Subs(MASK, (MASK, START)), -1, config, keep=keep, schedule=SCHEDULE, traits=Model(told=True))


def last_rows(ours, model, requests):
    state, last = ours.begin(requests, model), {}
    while state.live:
        last |= {row.request: row for row in ours.step(model, state).rows}
    return last


def analytic_law(told):
    """Of the analytic steps of a score model with these probabilities, enumerated; ``told`` or always of level 1."""
    scores = ScoreSampler(lambda *_: torch.empty(0), Chain(torch.arange(3), MASK), SCHEDULE, MASK, MaskedSamplerConfig(commit="tweedie"))
    now = np.zeros((4, 4))
    now[MASK, MASK] = 1.0
    for step in range(STEPS):
        before, after = sigma(SCHEDULE, torch.tensor([1 - step / STEPS, 1 - (step + 1) / STEPS], dtype=torch.float64)).tolist()
        new = np.zeros_like(now)
        for x in product(range(4), repeat=2):
            logits = torch.from_numpy(TABLE[x] * np.sin(3 * (before if told else 1.0)))
            log_s = torch.cat([logits.log_softmax(-1) - np.log(np.expm1(before)), torch.zeros(2, 1)], -1)
            p = scores.chain.tweedie(log_s, torch.tensor(x), before - after)
            if step + 1 == STEPS:
                p[:, MASK] = 0.0
            p = [row / row.sum() if token == MASK else np.eye(4)[token] for token, row in zip(x, p.numpy(), strict=True)]
            new += now[x] * reduce(np.multiply.outer, p)
        now = new
    return now[:3, :3]


def test_ancestral_steps_of_a_told_network_have_the_law_of_the_analytic_ones():
    model = Told()
    last = last_rows(sampler("ancestral", steps=STEPS), model, [Request(np.array([START]), 2, seed) for seed in range(1500)])
    counts = np.zeros((3, 3))
    for row in last.values():
        counts[tuple(row.tokens[1:])] += 1
        assert row.evaluations == len(set(row.committed_at[1:]))  # a pass that uncovers nothing is left out: no later one is told its level
    expected = 1500 * analytic_law(True)
    assert ((counts - expected) ** 2 / expected).sum() < chi2.ppf(0.999, 8)
    assert abs(analytic_law(True) - analytic_law(False)).sum() > 0.1  # so that the test can tell them apart
    times = torch.tensor([1 - step / STEPS for step in range(STEPS)], dtype=torch.float64)
    np.testing.assert_allclose(sorted(set(model.heard), reverse=True), sigma(SCHEDULE, times).tolist(), rtol=1e-6)


def test_rules_of_confidence_tell_the_share_of_masks():
    model = Told()
    last_rows(sampler("quota"), model, [Request(np.array([START, 0]), 3, 1)])
    np.testing.assert_allclose(model.heard, [-np.log1p(-n / 4) for n in (3, 2, 1)], rtol=1e-6)
    model = Told()
    last_rows(sampler("quota"), model, [Request(np.array([START]), 2, 1)])
    np.testing.assert_allclose(model.heard, [float(sigma(SCHEDULE, ONE)), np.log(2)], rtol=1e-6)  # all masked: time 1


def test_hitting_times_fall_as_they_should():
    """The largest of n uniform rates comes first, then of the rest below it: means n / (n + 1), then less by (n - 1) / n."""
    model, request = Told(), Request(np.array([START]), 4, 7)
    last_rows(sampler("first-hitting"), model, [request])
    level, rates = Level(SCHEDULES["linear"], "first-hitting", MASK, (START,)), []
    for row in sampler("first-hitting").begin([replace(request, seed=seed) for seed in range(500)]).rows:
        rates.append([-np.expm1(-level(replace(row, inside=step), row.tokens)) for step in range(4)])
        assert rates[-1] == sorted(rates[-1], reverse=True)
    np.testing.assert_allclose(-np.expm1(-np.array(model.heard)), rates[7], rtol=1e-6)
    expected = np.array([4, 3, 2, 1]) / 5
    assert (abs(np.mean(rates, 0) - expected) < 4 * np.sqrt(expected * (1 - expected) / 6 / 500)).all()


def test_windows_count_the_masks_behind_them():
    (row,) = sampler("ancestral", window=2, steps=4).begin([Request(np.array([START, 1]), 4, 0)], None).rows
    level = Level(SCHEDULE, "ancestral", MASK, (START,))
    rate = float(SCHEDULE.mask_rate(ONE / 2))
    assert level(replace(row, inside=1), row.tokens) == pytest.approx(-np.log1p(-(2 + 2 * rate) / 4))
    assert level(row, row.tokens) == pytest.approx(float(sigma(SCHEDULE, ONE)))  # never above time 1


@pytest.mark.parametrize("objective", [MaskedConfig(schedule="log-linear"), ScoreConfig()], ids=["masked", "score"])
def test_a_told_family_trains_scores_and_samples_told(vocabulary, objective):
    config = TransformerConfig(width=16, depth=1, heads=2, hidden=32, time_conditioning=True)
    family = Discrete(vocabulary, config, objective, MaskedSamplerConfig(length=4))
    torch.manual_seed(0)
    model, heard = family.build(), []
    model.level.register_forward_hook(lambda module, inputs, _: heard.append(inputs[0].tolist()))
    batch = Packed.of([torch.tensor([vocabulary.start, 0, 1, 2])])
    noise = {"t": torch.tensor([0.5], dtype=torch.float64), "u": torch.zeros(4, dtype=torch.float64)}
    family.loss(model, batch, noise)
    expected = float(sigma(SCHEDULE, torch.tensor(0.5, dtype=torch.float64)))
    np.testing.assert_allclose(heard.pop(), [expected] * 4, rtol=1e-6)
    value, _ = family.log_likelihood(model, batch, 2, 0)
    assert value < 0 and min(heard.pop()) > 0
    heard.clear()
    state = family.begin(model, [Request(np.array([vocabulary.start]), 4, 0)])
    while state.live:
        family.step(model, state)
    assert len(heard) == 4 and [levels for levels in heard if len(levels) != 1 or levels[0] <= 0] == []
    with pytest.raises(UserError, match=r"sampler\.cache: got 'dual': the network is told the noise level"):
        Discrete(vocabulary, config, objective, MaskedSamplerConfig(cache="dual", window=2))
