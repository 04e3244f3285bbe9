from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from unveil.autoregressive.family import Autoregressive
from unveil.config import NextTokenConfig, NextTokenSamplerConfig, TransformerConfig
from unveil.errors import UserError
from unveil.family import Family, Request
from unveil.nn.head import LogitsModel
from unveil.nn.packed import Packed
from unveil.nn.transformer import Transformer
from unveil.text.vocabulary import Vocabulary

Make = Callable[..., Transformer]


@pytest.fixture
def family(vocabulary: Vocabulary) -> Autoregressive:
    return Autoregressive(vocabulary, TransformerConfig(width=16, depth=1, heads=2), NextTokenConfig(), NextTokenSamplerConfig())


def test_the_probabilities_of_all_sequences_sum_to_one(network: Make, family: Autoregressive) -> None:
    """Three tokens, at most four of them: every sequence that ends before, and every one cut there."""
    start, end = family.vocabulary.start, family.vocabulary.end
    ended = [[start, *x, end] for n in range(4) for x in itertools.product(range(3), repeat=n)]
    cut = [[start, *x] for x in itertools.product(range(3), repeat=4)]
    log_p, error = family.log_likelihood(network(), Packed.of([torch.tensor(s) for s in ended + cut]), draws=1, seed=0)
    assert log_p.dtype == torch.float64
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-12)
    assert float(log_p.exp()[: len(ended)].sum()) < 0.99
    assert not error.any()


def test_only_counted_tokens_count(network: Make, family: Autoregressive) -> None:
    model, v = network(), family.vocabulary
    tokens = [[v.start, 0, 1, v.end], [v.start], [v.start, v.prefix, 2, v.suffix, v.middle, 0, 1, v.end]]
    counted = [[False, True, True, False], [True], [False] * 5 + [True, True, True]]
    batch = Packed.of([torch.tensor(s) for s in tokens])
    mask = torch.tensor([c for each in counted for c in each])
    got, _ = family.log_likelihood(model, batch, 1, 0, mask)
    whole, _ = family.log_likelihood(model, batch, 1, 0)
    ends, _ = family.log_likelihood(model, batch, 1, 0, ~mask)
    assert float(got[0] + ends[0]) == pytest.approx(float(whole[0]), abs=1e-12)
    assert got[1] == 0
    assert torch.isfinite(got[2]) and whole[2] == -torch.inf  # a sentinel is given, never said


def test_likelihood_is_the_product_of_the_samplers_confidences(network: Make, family: Autoregressive) -> None:
    model, prompt = network(), np.array([family.vocabulary.start, 1])
    state = family.begin(model, [Request(prompt, 12, seed) for seed in range(8)])
    rows = []
    while state.live:
        rows += [row for row in family.step(model, state).rows if row.final]
    batch = Packed.of([torch.tensor(row.tokens) for row in rows])
    log_p, _ = family.log_likelihood(model, batch, 1, 0, batch.positions_T >= len(prompt))
    said = [np.log(row.confidence.astype(np.float64)).sum() for row in rows]
    assert np.allclose(log_p.numpy(), said, rtol=0, atol=1e-5)


def test_the_family_keeps_the_contract(family: Autoregressive) -> None:
    contract: Family = family
    torch.manual_seed(0)
    model = contract.build()
    rng = np.random.default_rng(0)
    tokens = np.concatenate([[family.vocabulary.start], rng.integers(0, 3, 30), [family.vocabulary.end]]).astype(np.int64)
    assert any(family.vocabulary.middle in contract.transform(tokens, rng) for _ in range(100))
    assert contract.draw(0, 0, 32, rng) == {}
    batch = Packed.of([torch.from_numpy(tokens)] * 2)
    terms, targets = contract.loss(model, batch, {}), contract.targets(batch, {})
    assert terms.keys() == targets.keys() == {"nll"}
    assert targets["nll"] == 62
    assert terms["nll"].weight == 1
    # Untrained, the loss is near that of the uniform distribution.
    assert float(terms["nll"].sum.detach()) / 62 == pytest.approx(np.log(9), abs=0.05)
    terms["nll"].sum.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert contract.views(None) == []


def test_likelihood_leaves_no_graph(family: Autoregressive) -> None:
    inside = []

    def network(batch: Packed) -> torch.Tensor:
        inside.append(torch.is_grad_enabled())
        return torch.zeros(len(batch.tokens_T), 9)

    family.log_likelihood(LogitsModel(network), Packed.of([torch.tensor([3, 0, 1])]), 1, 0)
    assert inside == [False] and torch.is_grad_enabled()


def test_a_rate_outside_0_to_1_is_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(UserError, match=r"^objective\.fim_rate: got 1\.5"):
        Autoregressive(vocabulary, TransformerConfig(), NextTokenConfig(fim_rate=1.5), NextTokenSamplerConfig())
