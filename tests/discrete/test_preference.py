"""Preferences over likelihood bounds: the estimator, what is shared, and by how much its variance falls, all enumerated."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from unveil.autoregressive.family import Autoregressive
from unveil.config import (
    BlockConfig,
    MaskedConfig,
    MaskedSamplerConfig,
    NextTokenConfig,
    NextTokenSamplerConfig,
    PreferenceConfig,
    TransformerConfig,
)
from unveil.discrete.family import Discrete
from unveil.discrete.preference import bounds, draws
from unveil.nn.head import LogitsModel
from unveil.nn.packed import Packed
from unveil.text.vocabulary import Vocabulary

MODEL = TransformerConfig(width=16, depth=1, heads=2, hidden=32, init="normal", init_std=0.3)
PROMPTS = [[3, 0, 1], [3, 2]]
ANSWERS = [([1, 2, 4], [0, 4]), ([0, 0, 1, 4], [2, 1, 4])]
"""Preferred and other, of two prompts."""
KINDS: dict[str, Any] = {"autoregressive": None, "masked": MaskedConfig, "block": BlockConfig}


def family(vocabulary: Vocabulary, name: str, count: int = 3) -> Any:
    preference = PreferenceConfig(beta=0.4, draws=count)
    if name == "autoregressive":
        return Autoregressive(vocabulary, MODEL, NextTokenConfig(fim_rate=0, preference=preference), NextTokenSamplerConfig())
    config = KINDS[name](random_length=0.0, preference=preference, **({"block": 2} if name == "block" else {}))
    return Discrete(vocabulary, MODEL, config, MaskedSamplerConfig())


def network(made: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    model = made.build().double()
    model.compute_dtype = torch.float64
    return model


def packed(made: Any, which: list[int]) -> tuple[Packed, dict[str, torch.Tensor]]:
    """Pairs as the loader lays them out, though in another order."""
    rows = []
    for place, i in enumerate(which):
        for side in (0, 1):
            tokens = PROMPTS[i] + ANSWERS[i][side]
            given = np.arange(len(tokens)) < len(PROMPTS[i])
            rng = np.random.Generator(np.random.Philox(key=[i, side]))
            for drawn in made.draw_answer(7 + i, 0, given, rng):
                rows.append((torch.tensor(tokens), {"given": given, "pair": [place], "chosen": [side == 0], **drawn}))
    rows = rows[::-1]
    noise = {name: torch.from_numpy(np.concatenate([np.asarray(drawn[name]) for _, drawn in rows])) for name in rows[0][1]}
    return Packed.of([tokens for tokens, _ in rows], [7 + which[int(d["pair"][0])] for _, d in rows]), noise


def plain(made: Any, model: Any, tokens: torch.Tensor, noise: dict[str, torch.Tensor]) -> torch.Tensor:
    """The twin: log p of an answer, or an estimate of its bound, of a sequence alone."""
    batch = Packed.of([tokens])
    if "masked" not in noise:
        logits = model.head(model(batch))
        log_p = torch.log_softmax(logits[:-1], -1).gather(-1, tokens[1:, None])[:, 0]
        return log_p[~noise["given"][1:]].sum()
    hidden = noise["masked"]
    noisy = batch.with_tokens(torch.where(hidden, made.vocabulary.mask, tokens))
    logits = model.head(made.kind.objective.read(model, noisy, tokens, torch.zeros(len(tokens))))
    data = [0, 1, 2, made.vocabulary.end]
    log_p = torch.log_softmax(logits[:, data], -1)
    return sum((noise["weight"][i] * log_p[i, data.index(int(tokens[i]))] for i in hidden.nonzero()[:, 0].tolist()), torch.zeros(()))


@pytest.mark.parametrize("name", KINDS)
def test_loss_and_gradient_are_those_of_the_plain_formula_and_pairs_add_up(vocabulary: Vocabulary, name: str) -> None:
    made = family(vocabulary, name)
    model, made.preference.reference = network(made, 0), network(made, 1)
    batch, noise = packed(made, [0, 1])
    terms = made.loss(model, batch, noise)
    assert terms.keys() == made.targets(batch, noise).keys() and set(made.targets(batch, noise).values()) == {2.0}
    assert [term.weight for term in terms.values()] == [1.0, 0.0, 0.0, 0.0, 0.0]
    parameters = list(model.parameters())
    ours = torch.autograd.grad(terms["loss"].sum, parameters)
    value = torch.zeros((), dtype=torch.float64)
    split = {key: batch.split(values) if len(values) == batch.size else values[:, None] for key, values in noise.items()}
    for pair in (0, 1):
        means = []
        for side in (True, False):
            at = [n for n in range(len(batch.lengths)) if noise["pair"][n] == pair and bool(noise["chosen"][n]) is side]
            each = [(batch.split()[n], {key: split[key][n] for key in split}) for n in at]
            gains = [plain(made, model, *one) - plain(made, made.preference.reference, *one).detach() for one in each]
            means.append(torch.stack(gains).mean())
        value = value - torch.nn.functional.logsigmoid(0.4 * (means[0] - means[1]))
    assert float(terms["loss"].sum.detach()) == pytest.approx(float(value.detach()), rel=1e-10)
    for a, b in zip(ours, torch.autograd.grad(value, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)
    alone = [made.loss(model, *packed(made, [i])) for i in (0, 1)]
    for key, term in terms.items():
        assert float(term.sum.detach()) == pytest.approx(sum(float(one[key].sum.detach()) for one in alone), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", KINDS)
def test_the_model_that_training_begins_with_loses_log_2_exactly_whatever_was_drawn(vocabulary: Vocabulary, name: str) -> None:
    made = family(vocabulary, name)
    model = network(made, 0)
    made.preference.reference = copy.deepcopy(model)
    batch, noise = packed(made, [0, 1])
    terms = made.loss(model, batch, noise)
    assert float(terms["loss"].sum.detach()) == 2 * math.log(2) and float(terms["accuracy"].sum) == 1.0
    assert all(float(terms[key].sum) == 0 for key in ("margin", "reward_chosen", "reward_rejected"))
    gradients = torch.autograd.grad(terms["loss"].sum, list(model.parameters()))
    assert any(g.abs().max() > 1e-3 for g in gradients), "and yet it learns"


def test_the_versions_have_a_time_each_and_their_weights_are_those_of_the_bound() -> None:
    given = np.arange(8) < 3
    for seed in range(20):
        found = draws(given, 0, 5, seed / 20, seed, np.random.default_rng(seed))
        assert sorted(int(one["masked"].sum()) for one in found) == [1, 2, 3, 4, 5]
        for one in found:
            assert not one["masked"][given].any() and np.array_equal(one["weight"] > 0, one["masked"])
            assert one["weight"].sum() == pytest.approx(5)
    blocks = draws(given, 2, 4, 0.3, 0, np.random.default_rng(0))  # one token of the second block, two of the others
    for one in blocks:
        assert one["masked"][3] and one["weight"][3] == 1
        assert one["weight"][4:6].sum() == pytest.approx(2) and one["weight"][6:].sum() == pytest.approx(2)


@torch.no_grad()
def table(made: Any, model: Any, tokens: list[int], known: int) -> list[list[float]]:
    """Estimates of the bound from one mask, by the number of masked tokens and then by which these are."""
    length, found = len(tokens) - known, []
    for size in range(1, length + 1):
        row = []
        for hidden in itertools.combinations(range(known, len(tokens)), size):
            masked = torch.zeros(len(tokens), dtype=torch.bool)
            masked[list(hidden)] = True
            noise = {"masked": masked, "weight": masked * (length / size)}
            row.append(float(bounds(made.kind.objective, model, Packed.of([torch.tensor(tokens)]), noise).values_N))
        found.append(row)
    return found


def test_the_variance_falls_as_the_rules_say(vocabulary: Vocabulary, lookup: LogitsModel) -> None:
    """Var of the gain over the reference, over all masks of an answer of four tokens, at a budget of four versions."""
    made = family(vocabulary, "masked")
    torch.manual_seed(3)
    near = copy.deepcopy(lookup)
    near.network.table = lookup.network.table + 0.1 * torch.randn_like(lookup.network.table)  # type: ignore[attr-defined]
    policy, reference = (table(made, model, [3, 0, 1, 2, 1], 1) for model in (near, lookup))
    budget = 4

    def variance(rows: list[list[float]]) -> tuple[float, float, float]:
        """Of one version; of the mean over versions at one time; of the mean over versions at a time each, on the grid."""
        means, spreads = [np.mean(row) for row in rows], [np.var(row) for row in rows]
        within, between = float(np.mean(spreads)), float(np.var(means))
        return within + between, within / budget + between, within / budget

    gains = [[p - r for p, r in zip(*rows, strict=True)] for rows in zip(policy, reference, strict=True)]
    one, one_time, grid = variance(gains)
    assert grid < one / budget < one_time < one, "many times with one mask each beat one time with many masks, and a grid beats chance"
    apart = variance(policy)[2] + variance(reference)[2]
    assert grid < 0.1 * apart, "the same masks for both"

    # and the grid is what is drawn: the mean over the draws is the gain in the bound, and its variance that of the grid
    total = sum(np.mean(row) for row in gains) / 4
    seen = []
    for i in range(3000):
        versions = draws(np.arange(5) < 1, 0, budget, 0.5, i, np.random.default_rng(i))
        hidden = [tuple(np.flatnonzero(one["masked"])) for one in versions]
        seen.append(np.mean([gains[len(at) - 1][list(itertools.combinations(range(1, 5), len(at))).index(at)] for at in hidden]))
    assert np.mean(seen) == pytest.approx(total, abs=4 * (grid / 3000) ** 0.5)
    assert np.var(seen) == pytest.approx(grid, rel=0.15)
