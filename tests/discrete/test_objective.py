from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from unveil.discrete.denoiser import Subs
from unveil.discrete.objective import BUCKETS, MaskedObjective, bucket_name, curve
from unveil.discrete.process import SCHEDULES, Absorbing
from unveil.nn.packed import Packed

DATA = [torch.tensor(s) for s in ([3, 0, 1, 2, 1], [3, 2, 2, 4], [3, 1, 0, 0, 2, 1])]


def objective(vocabulary, schedule="linear", weight="bound", normalisation="token"):
    return MaskedObjective(Absorbing(SCHEDULES[schedule], vocabulary.mask, (vocabulary.start,)), Subs.of(vocabulary), weight, normalisation)


def noise_of(t, uniforms):
    return {"t": torch.tensor(t, dtype=torch.float64), "u": torch.cat(uniforms).double()}


@pytest.fixture
def uniforms():
    rng = np.random.default_rng(3)
    return [torch.from_numpy(rng.random(len(s))) for s in DATA]


TIMES = [0.55, 0.97, 0.4]


def plain(model, vocabulary, tokens, t, u, schedule):
    """The twin: per sequence, the masked positions, their cross-entropies by softmax over the data tokens, and the weight of its time."""
    time = torch.tensor(t, dtype=torch.float64)
    masked = [i for i, token in enumerate(tokens.tolist()) if token != vocabulary.start and u[i] < schedule.mask_rate(time)]
    canvas = tokens.clone()
    canvas[masked] = vocabulary.mask
    logits = model.head(model(Packed.of([canvas])))
    data = [0, 1, 2, vocabulary.end]
    losses = [-torch.log_softmax(logits[i, data], -1)[data.index(int(tokens[i]))] for i in masked]
    return masked, losses, float(schedule.weight(time))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("weight", ["bound", "flat"])
@pytest.mark.parametrize("normalisation", ["token", "sequence"])
def test_packed_equals_one_by_one_with_the_plain_formula(network, vocabulary, uniforms, schedule, weight, normalisation):
    """Values and gradients of the step's loss, sum over denominator."""
    ours = objective(vocabulary, schedule, weight, normalisation)
    batch, noise = Packed.of(DATA), noise_of(TIMES, uniforms)
    targets = ours.targets(batch, noise)
    terms = ours.loss(network, batch, noise)
    assert targets.keys() == terms.keys()
    value = terms["loss"].sum / targets["loss"]
    value.backward()
    gradients = {name: p.grad.clone() for name, p in network.named_parameters()}
    network.zero_grad()

    per_sequence = []
    for tokens, t, u in zip(DATA, TIMES, uniforms, strict=True):
        _, losses, w = plain(network, vocabulary, tokens, t, u, SCHEDULES[schedule])
        per_sequence.append((w if weight == "bound" else 1.0) * sum(losses))
    lengths = [len(s) - 1 for s in DATA]
    expected = (
        sum(per_sequence) / sum(lengths) if normalisation == "token" else sum(s / n for s, n in zip(per_sequence, lengths, strict=True)) / 3
    )
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    for name, p in network.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_buckets_and_bound_are_measured_beside_the_loss(network, vocabulary, uniforms):
    ours = objective(vocabulary, weight="flat", normalisation="sequence")
    batch, noise = Packed.of(DATA), noise_of(TIMES, uniforms)
    targets, terms = ours.targets(batch, noise), ours.loss(network, batch, noise)
    assert [terms[name].weight for name in terms] == [1.0] + [0.0] * (1 + BUCKETS)
    assert targets["loss"] == 3 and targets["bound"] == sum(len(s) - 1 for s in DATA)
    bound = 0.0
    for tokens, t, u in zip(DATA, TIMES, uniforms, strict=True):
        masked, losses, w = plain(network, vocabulary, tokens, t, u, SCHEDULES["linear"])
        name = bucket_name(int(t * BUCKETS))
        assert targets[name] == len(masked) > 0
        assert float(terms[name].sum) == pytest.approx(sum(map(float, losses)), rel=1e-12)
        bound += w * sum(map(float, losses))
    assert float(terms["bound"].sum) == pytest.approx(bound, rel=1e-12)
    empty = bucket_name(0)
    assert targets[empty] == 0 and float(terms[empty].sum) == 0


def test_time_one_falls_into_the_last_bucket(network, vocabulary, uniforms):
    ours = objective(vocabulary)
    targets = ours.targets(Packed.of(DATA), noise_of([1.0, 1.0, 1.0], uniforms))
    assert targets["ce 0.9-1.0"] == targets["bound"] == sum(len(s) - 1 for s in DATA)


def test_unmasked_positions_contribute_exactly_nothing(network, vocabulary, uniforms):
    """The targets of unmasked positions never enter: with nothing masked every term and every gradient is exactly 0."""
    ours = objective(vocabulary)
    batch, noise = Packed.of(DATA), noise_of(TIMES, [torch.ones(len(s)) for s in DATA])
    terms = ours.loss(network, batch, noise)
    assert all(float(term.sum.detach()) == 0 for term in terms.values())
    terms["loss"].sum.backward()
    assert all(p.grad is None or not p.grad.any() for p in network.parameters())

    # and beside masked ones: the head sees the masked positions only
    seen = []
    original = network.head.reduce
    network.head.reduce = lambda hidden, *rest: seen.append(len(hidden)) or original(hidden, *rest)
    noise = noise_of(TIMES, uniforms)
    ours.loss(network, batch, noise)
    assert seen == [int(ours.process.masked(batch, noise["t"], noise["u"]).sum())]


@torch.no_grad()
def enumerated_integral(model, vocabulary, schedule, upper):
    """E over the masks, exactly, and over t in [0, upper] by Gauss-Legendre, of the objective's own bound for one sequence."""
    ours = objective(vocabulary, schedule)
    tokens = torch.tensor([vocabulary.start, 0, 2, 1])
    nodes, node_weights = np.polynomial.legendre.leggauss(24)
    total = 0.0
    for x, w in zip(nodes, node_weights, strict=True):
        t = upper * (x + 1) / 2
        rate = float(SCHEDULES[schedule].mask_rate(torch.tensor([t], dtype=torch.float64)))
        for hidden in itertools.product([False, True], repeat=3):
            probability = np.prod([rate if h else 1 - rate for h in hidden])
            u = torch.tensor([0.0] + [0.0 if h else 1.0 for h in hidden])
            total += upper * w / 2 * probability * float(ours.loss(model, Packed.of([tokens]), noise_of([t], [u]))["bound"].sum)
    return total


def test_expected_bound_is_the_same_for_every_schedule(lookup, vocabulary):
    """Over the same range of mask rates: log-linear and cosine end at 1 - 1e-3, where linear is at t = 0.999."""
    reference = enumerated_integral(lookup, vocabulary, "linear", 0.999)
    for schedule in ("log-linear", "cosine"):
        assert enumerated_integral(lookup, vocabulary, schedule, 1.0) == pytest.approx(reference, rel=1e-10)
    assert enumerated_integral(lookup, vocabulary, "linear", 0.5) != pytest.approx(reference, rel=1e-2)


def test_curve_reads_back_the_measured_terms():
    values = curve({"train/ce 0.2-0.3": 1.5, "train/loss": 9.0})
    assert values[2] == 1.5 and np.isnan(values[:2] + values[3:]).all() and len(values) == BUCKETS
