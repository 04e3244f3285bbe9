from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from unveil.discrete.denoiser import Subs
from unveil.discrete.likelihood import bound, subset_sizes
from unveil.discrete.process import SCHEDULES, Absorbing
from unveil.nn.head import LogitsModel
from unveil.nn.packed import Packed

TEXT = [0, 2, 1, 1, 4]


@pytest.fixture
def process(vocabulary):
    return Absorbing(SCHEDULES["linear"], vocabulary.mask, (vocabulary.start,))


@pytest.fixture
def subs(vocabulary):
    return Subs.of(vocabulary)


def losses_by_subset(model, process, subs, tokens):
    """Cross-entropies of the hidden tokens, by position after the start token, for every non-empty set of hidden tokens."""
    found = {}
    for size in range(1, len(tokens)):
        for hidden in itertools.combinations(range(1, len(tokens)), size):
            masked_T = torch.tensor([i in hidden for i in range(len(tokens))])
            logits = model.head(model(Packed.of([process.hide(tokens, masked_T)])))
            found[hidden] = dict(zip(hidden, subs.token_loss(logits[masked_T], tokens[masked_T]).tolist(), strict=True))
    return found


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5])
def test_exact_l_equals_the_integral_over_t(lookup, vocabulary, process, subs, length):
    """Enumerated: mean over l and subsets of (L / l) sum CE = integral of (1 / t) sum over subsets t^l (1 - t)^(L - l) sum CE."""
    tokens = torch.tensor([vocabulary.start, *TEXT[:length]])
    found = losses_by_subset(lookup, process, subs, tokens)
    exact_l = sum(length / len(s) * sum(ce.values()) / (length * math.comb(length, len(s))) for s, ce in found.items())
    nodes, weights = np.polynomial.legendre.leggauss(8)  # exact for polynomials of degree 15
    integral = sum(
        w / 2 * sum(((x + 1) / 2) ** (len(s) - 1) * ((1 - x) / 2) ** (length - len(s)) * sum(ce.values()) for s, ce in found.items())
        for x, w in zip(nodes, weights, strict=True)
    )
    assert exact_l == pytest.approx(integral, rel=1e-12)

    value, error = bound(lookup, Packed.of([tokens]), process, subs, 4000, seed=5)
    if length == 1:
        assert float(value) == pytest.approx(-exact_l, rel=1e-12) and float(error) == 0
    else:
        assert 0 < float(error) < 0.1 and abs(float(value) + exact_l) < 4 * float(error)


def test_each_subset_of_a_size_is_equally_likely(vocabulary, process, subs):
    """The canvases the network sees: chi-square over the 10 subsets of 2 of 5 (99.9 % of chi2 with 9 degrees: 27.9)."""
    tokens = torch.tensor([vocabulary.start, *TEXT])
    seen = []

    def spy(batch):
        seen.extend(tuple((s == vocabulary.mask).nonzero().squeeze(-1).tolist()) for s in batch.split())
        return torch.zeros(len(batch.tokens_T), vocabulary.size)

    bound(LogitsModel(spy), Packed.of([tokens]), process, subs, 5000, seed=0)
    pairs = [s for s in seen if len(s) == 2]
    assert len(pairs) == 1000  # a systematic grid over the sizes 1..5
    counts = [pairs.count(c) for c in itertools.combinations(range(1, 6), 2)]
    assert sum((n - 100) ** 2 / 100 for n in counts) < 27.9


def test_samples_do_not_share_their_subsets(vocabulary, process, subs):
    """The same text under 100 sample ids, one draw each: where one token is masked, it is not always the same one."""
    seen = []

    def spy(batch):
        seen.extend(batch.split())
        return torch.zeros(len(batch.tokens_T), vocabulary.size)

    bound(LogitsModel(spy), Packed.of([torch.tensor([vocabulary.start, *TEXT])] * 100), process, subs, 1, seed=0)
    alone = [int((s == vocabulary.mask).int().argmax()) for s in seen if (s == vocabulary.mask).sum() == 1]
    assert set(alone) == {1, 2, 3, 4, 5}


def test_sizes_are_a_systematic_grid_and_uniform():
    lengths = np.array([5, 7, 1, 0])
    for seed in range(20):
        sizes = subset_sizes(lengths, np.arange(4), 35, seed)
        assert [np.bincount(sizes[:, n]).tolist() for n in range(4)] == [[0] + [7] * 5, [0] + [5] * 7, [0, 35], [35]]
    one = np.stack([subset_sizes(np.array([4]), np.array([0]), 1, seed)[0] for seed in range(400)])
    assert (np.abs(np.bincount(one[:, 0])[1:] - 100) < 40).all()


def test_contributions_add_up_over_positions(network, vocabulary, process, subs):
    batch = Packed.of([torch.tensor([vocabulary.start, *TEXT]), torch.tensor([vocabulary.start, 2, 2])], [3, 9])
    counted = torch.tensor([False, True, False, True, True, False, False, False, True])
    whole, _ = bound(network, batch, process, subs, 6, 1)
    part, _ = bound(network, batch, process, subs, 6, 1, counted)
    rest, _ = bound(network, batch, process, subs, 6, 1, ~counted)
    assert whole.dtype == torch.float64 and (part < 0).all()
    torch.testing.assert_close(part + rest, whole, rtol=1e-12, atol=0)


def test_a_sequence_has_the_same_bound_in_any_pack_and_forward(network, vocabulary, process, subs, monkeypatch):
    """The noise belongs to seed and sample id; how draws are grouped into forwards changes nothing."""
    sequences = [torch.tensor([vocabulary.start, *TEXT]), torch.tensor([vocabulary.start, 1]), torch.tensor([vocabulary.start, 2, 0, 2])]
    values, errors = bound(network, Packed.of(sequences, [7, 8, 9]), process, subs, 5, 2)
    monkeypatch.setattr("unveil.discrete.likelihood.FORWARD_TOKENS", 12)
    for n, tokens in enumerate(sequences):
        value, error = bound(network, Packed.of([tokens], [7 + n]), process, subs, 5, 2)
        torch.testing.assert_close(value, values[n : n + 1], rtol=1e-12, atol=0)
        torch.testing.assert_close(error, errors[n : n + 1], rtol=1e-9, atol=1e-14)
    other, _ = bound(network, Packed.of(sequences, [7, 8, 9]), process, subs, 5, 3)
    assert other[0] != values[0] and other[1] == pytest.approx(float(values[1]), rel=1e-12)  # one token: no chance is involved


def test_standard_error_covers_the_spread_over_seeds(lookup, vocabulary, process, subs):
    """It treats the systematic grid as independent draws, so it is no smaller than the true spread, and not far above."""
    batch = Packed.of([torch.tensor([vocabulary.start, *TEXT])])
    runs = [bound(lookup, batch, process, subs, 16, seed) for seed in range(200)]
    spread = float(torch.cat([value for value, _ in runs]).std())
    claimed = float(torch.cat([error for _, error in runs]).square().mean().sqrt())
    assert 0.85 * spread < claimed < 2 * spread


def test_one_draw_has_no_known_error_and_an_empty_text_costs_nothing(network, vocabulary, process, subs):
    batch = Packed.of([torch.tensor([vocabulary.start, 0, 1]), torch.tensor([vocabulary.start, 2]), torch.tensor([vocabulary.start])])
    value, error = bound(network, batch, process, subs, 1, 0)
    assert torch.isnan(error[0]) and error[1:].tolist() == [0, 0] and value[2] == 0 and (value[:2] < 0).all()
    with pytest.raises(ValueError, match="at least one draw"):
        bound(network, batch, process, subs, 0, 0)
