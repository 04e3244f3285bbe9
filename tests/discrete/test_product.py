"""Every combination of the sampler's settings: in a ragged batch as alone, or refused by name before anything is computed."""

from __future__ import annotations

from dataclasses import replace
from itertools import count, product

import numpy as np
import pytest
import torch

from unveil.config import MaskedSamplerConfig, TransformerConfig
from unveil.discrete.allowed import RULES, Model, check
from unveil.discrete.denoiser import Subs
from unveil.discrete.sampler import MaskedSampler
from unveil.errors import UserError
from unveil.family import Request
from unveil.nn.layout import Bidirectional, BlockCausal
from unveil.nn.transformer import Transformer

ORDERS = ("random", "confidence", "entropy", "margin", "left-to-right")
COMMITS = ("quota", "threshold", "factor", "entropy-bound", "first-hitting", "ancestral", "tau-leaping", "tweedie")
WINDOWS = ("whole", "semi-autoregressive", "block")
CACHES = ("none", "prefix", "dual", "block")
REMASKS = ("none", "remdm", "confidence")
BLOCK = 4
SETTINGS = {"threshold": 0.3, "factor": 1.2, "entropy_bound": 0.8, "remask_below": 0.4, "remask_rate": 0.5}
CELLS = list(product(ORDERS, COMMITS, WINDOWS, CACHES, REMASKS))
EXTRAS = [
    {"guidance": guidance, "context": context, "end": end, "told": told}
    for guidance in (0.0, 0.7)
    for context in (0, 8)
    for end in ("free", "forbid", "last")
    for told in (False, True)
]
"""Guidance, arbitrary length, rules of the end token, and whether the network is told the noise level."""


PROPOSALS = ({}, {"temperature": 0.0}, {"temperature": 0.8, "top_k": 3, "top_p": 0.9, "min_p": 0.01})
"""No rule asks about these: they take turns."""


def network(layout, **settings):
    torch.manual_seed(0)
    config = TransformerConfig(width=8, depth=1, heads=2, hidden=16, init="normal", init_std=0.5, **settings)
    model = Transformer(config, 9, layout).double()
    for name, weight in model.named_parameters():
        if "tell" in name:  # begins at 0, where the noise is not heard
            torch.nn.init.normal_(weight, std=0.05)
    model.compute_dtype = torch.float64
    return model.eval()


MODELS = {"whole": network(Bidirectional()), "block": network(BlockCausal(BLOCK)), "told": network(Bidirectional(), time_conditioning=True)}


def ragged(vocabulary):
    m, start = vocabulary.mask, vocabulary.start
    texts = [([start, 0, 1], 5, 5), ([start, 2, m, m, 0, m, 1], 0, 6), ([start], 3, 7)]
    return [Request(np.array(tokens), length, seed) for tokens, length, seed in texts]


def last_rows(ours, model, requests):
    state, last = ours.begin(requests, model), {}
    steps = 0
    while state.live:
        last |= {row.request: row for row in ours.step(model, state).rows}
        steps += 1
        assert steps < 40
    return last


def allowed(order, commit, window, cache, remask, guidance=0.0, context=0, end="free", told=False):
    """The table, written a second time and from the other side: what there is."""
    if told and window == "block":
        return None  # there is no such network
    if (cache != "none" and (guidance or context or told)) or (end == "last" and commit in ("first-hitting", "ancestral")):
        return False
    rules = commit in ("quota", "threshold", "factor", "entropy-bound")
    blind = commit in ("first-hitting", "ancestral") and order == "random"
    caches = {"whole": ("none",), "semi-autoregressive": ("none", "prefix", "dual"), "block": ("none", "block")}[window]
    remasks = {"none": True, "remdm": commit == "ancestral", "confidence": rules}[remask]
    return (rules or blind) and cache in caches and remasks


def test_the_table_of_what_goes_together():
    """Of 1,440 cells with 24 extras each; a refusal names a setting that the cell has."""
    cells = 0
    for cell, extra in product(CELLS, EXTRAS):
        wanted = allowed(*cell, **extra)
        if wanted is None:
            continue
        config, traits = settings(*cell, **extra)
        clash = next((rule for rule in RULES if rule.clash(config, traits)), None)
        assert (clash is None) == wanted, (cell, extra, clash)
        cells += wanted
        if extra == EXTRAS[0] and clash is not None:
            with pytest.raises(UserError) as error:
                check(config, traits)
            has = dict(zip(("order", "commit", "window", "cache", "remask"), cell, strict=True))
            assert has[error.value.field.removeprefix("sampler.")] in str(error.value)
    assert cells == 2898


def settings(order, commit, window, cache, remask, told=False, **extra):
    """What the table is asked about."""
    steps = 0 if commit == "first-hitting" else 6
    size = {"whole": 0, "semi-autoregressive": 3, "block": 0}[window]
    config = MaskedSamplerConfig(order=order, commit=commit, window=size, cache=cache, remask=remask, steps=steps, **SETTINGS, **extra)
    return config, Model(block=BLOCK if window == "block" else 0, told=told)


def sampler(*cell, **extra):
    config, traits = settings(*cell, **extra)
    return MaskedSampler(Subs(5, (3, 5, 6, 7, 8)), 4, config, keep=(3,), traits=traits)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["each", "every"])
@pytest.mark.parametrize("commit", COMMITS[:6])
@pytest.mark.parametrize(
    ("window", "cache"),
    [
        ("whole", "none"),
        ("semi-autoregressive", "none"),
        ("semi-autoregressive", "prefix"),
        ("semi-autoregressive", "dual"),
        ("block", "none"),
        ("block", "block"),
    ],
)
def test_each_cell_is_the_same_in_a_batch_as_alone(vocabulary, commit, window, cache, every):
    """With each extra in turn; with all of them in the slow one."""
    turn, proposal = count(1, 5), count()
    for order, remask in product(ORDERS, REMASKS):
        extras = [extra for extra in EXTRAS if allowed(order, commit, window, cache, remask, **extra)]
        if not every:
            extras = extras[next(turn) % len(extras) :][:1] if extras else []
        for extra in extras:
            extra = extra | PROPOSALS[next(proposal) % len(PROPOSALS)]
            same_in_a_batch(vocabulary, order, commit, window, cache, remask, extra)


def same_in_a_batch(vocabulary, order, commit, window, cache, remask, extra):
    requests = ragged(vocabulary)
    model = MODELS["block" if window == "block" else "told" if extra["told"] else "whole"]
    ours = sampler(order, commit, window, cache, remask, **extra)
    together = last_rows(ours, model, requests)
    for i, request in enumerate(requests):
        alone = last_rows(ours, model, [request])[0]
        for name in ("tokens", "committed_at", "evaluations", "computed", "reused"):
            np.testing.assert_array_equal(getattr(alone, name), getattr(together[i], name), err_msg=f"{order} {remask} {extra} {name}")
        np.testing.assert_allclose(alone.confidence, together[i].confidence, rtol=1e-6)
        given = request.tokens != vocabulary.mask
        np.testing.assert_array_equal(alone.tokens[: len(given)][given], request.tokens[given])
        ended = vocabulary.end in alone.tokens[len(given) :]
        assert (vocabulary.mask not in alone.tokens) or (ended and window != "whole")
        assert alone.evaluations > 0 and (alone.reused > 0) <= (cache != "none")


def test_a_token_is_covered_again_once(vocabulary):
    ours = sampler("confidence", "quota", "whole", "none", "confidence")
    ours = replace(ours, config=replace(ours.config, remask_below=1.0, steps=0))
    state, covered = ours.begin([Request(np.array([vocabulary.start]), 8, 1)], MODELS["whole"]), np.zeros(9, dtype=int)
    before = state.rows[0].committed_at
    while state.live:
        (row,) = ours.step(MODELS["whole"], state).rows
        covered += (before > 0) & (row.committed_at < 0)
        before = row.committed_at
    assert covered.max() == 1 and covered.sum() > 3 and vocabulary.mask not in row.tokens and row.evaluations == 8
