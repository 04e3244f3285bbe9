from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from unveil.config import MaskedConfig, MaskedSamplerConfig, ScoreConfig, TransformerConfig
from unveil.discrete.denoiser import Subs
from unveil.discrete.family import Discrete
from unveil.discrete.kinds import AbsorbScore, Masked, UniformScore, kind_of, states
from unveil.discrete.likelihood import bound
from unveil.discrete.process import Absorbing, LogLinear, sigma
from unveil.discrete.reader import Reader
from unveil.nn.head import LogitsModel
from unveil.nn.packed import Packed

MODEL = TransformerConfig(width=16, depth=1, heads=2, hidden=32)
TOLD = TransformerConfig(width=16, depth=1, heads=2, hidden=32, time_conditioning=True)


class Told(LogitsModel):
    def forward(self, batch, time):
        return self.network(batch, time)


def expected_loss(kind, model, text, nodes=40):
    """Over the kind's own times by Gauss-Legendre and over the masks by enumeration."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    low, high = kind.times
    total = 0.0
    for point, weight in zip(points, weights, strict=True):
        t = low + (high - low) * (point + 1) / 2
        rate = float(kind.process.schedule.mask_rate(torch.tensor(t, dtype=torch.float64)))
        for hidden in itertools.product([0, 1], repeat=len(text) - 1):
            chance = np.prod([rate if h else 1 - rate for h in hidden])
            noise = {"t": torch.tensor([t]), "u": torch.tensor([0.0] + [0.0 if h else 1.0 for h in hidden])}
            total += weight / 2 * chance * float(kind.loss(model, Packed.of([text]), noise)["loss"].sum)
    return total


@torch.no_grad()
def test_importance_gives_the_same_loss_at_one_weight(lookup, vocabulary):
    """The sheet's invariant 7 for MDLM's change of variables: plain times average over their interval, these integrate over it."""
    text = torch.tensor([vocabulary.start, 0, 2, 1])
    plain, importance = (Masked(vocabulary, MODEL, MaskedConfig(t_min=0.01, times=times)) for times in ("uniform", "importance"))
    assert expected_loss(importance, lookup, text) == pytest.approx(0.99 * expected_loss(plain, lookup, text), rel=1e-8)
    weights = importance.process.schedule.weight(torch.linspace(0, 1, 5, dtype=torch.float64))
    torch.testing.assert_close(weights, torch.full((5,), np.log(100.0), dtype=torch.float64))


@torch.no_grad()
def test_a_network_that_is_told_the_noise_has_an_unbiased_bound(lookup, vocabulary):
    """Against the integral over the mask rate m of (1 / m) sum CE, enumerated, the network told -log(1 - m)."""
    text = torch.tensor([vocabulary.start, 0, 2, 1])
    process, subs = Absorbing(LogLinear(1e-6), vocabulary.mask, (vocabulary.start,)), Subs.of(vocabulary)
    model = Told(lambda batch, time: lookup(batch) * (1.0 + torch.exp(-time.double()))[:, None])
    points, weights = np.polynomial.legendre.leggauss(30)
    expected = 0.0
    for point, weight in zip(points, weights, strict=True):
        rate = (point + 1) / 2
        for hidden in itertools.product([False, True], repeat=3):
            masked = torch.tensor([False, *hidden])
            logits = model(Packed.of([process.hide(text, masked)]), torch.full((4,), -np.log1p(-rate)))
            chance = np.prod([rate if h else 1 - rate for h in hidden])
            expected += weight / 2 * chance / rate * float(subs.token_loss(logits[masked], text[masked]).sum())
    value, error = bound(model, Packed.of([text]), process, subs, 4000, 0, read=Reader(told=True))
    assert 0 < float(error) < 0.2 and abs(float(value) + expected) < 4 * float(error)


@torch.no_grad()
def test_a_prompt_is_neither_masked_nor_counted(network, vocabulary):
    """Fine-tuning: loss and likelihood of a response given its prompt; normalised by the response's own length."""
    texts = [torch.tensor([vocabulary.start, 0, 1, 2, 1]), torch.tensor([vocabulary.start, 2, 2, vocabulary.end])]
    kind = Masked(vocabulary, MODEL, MaskedConfig(normalisation="sequence"))
    batch, given = Packed.of(texts), torch.tensor([True, True, True, False, False, True, False, False, False])
    noise = {"t": torch.tensor([0.9, 1.0]), "u": torch.zeros(9, dtype=torch.float64), "given": given}
    expected = 0.0
    for text, known, t in zip(texts, batch.split(given), (0.9, 1.0), strict=True):
        logits = network.head(network(Packed.of([kind.process.hide(text, ~known)])))[~known]
        expected += float(kind.denoiser.token_loss(logits, text[~known]).sum()) / t / int((~known).sum())
    assert float(kind.loss(network, batch, noise)["loss"].sum) == pytest.approx(expected, rel=1e-6)
    targets = kind.targets(batch, noise)
    assert targets["loss"] == 2 and targets["bound"] == 5 == sum(v for name, v in targets.items() if name.startswith("ce"))

    # one token of the response: no chance is involved
    given = torch.tensor([True, True, True, True, False])
    value, error = bound(network, Packed.of(texts[:1]), kind.process, kind.denoiser, 1, 0, given_T=given)
    logits = network.head(network(Packed.of([kind.process.hide(texts[0], ~given)])))[~given]
    assert float(value) == pytest.approx(-float(kind.denoiser.token_loss(logits, texts[0][~given])), rel=1e-12) and not error.any()


def test_end_padding_lengthens_what_ends(vocabulary):
    family = Discrete(vocabulary, MODEL, MaskedConfig(random_length=0.0, end_padding=6), MaskedSamplerConfig())
    rng, end = np.random.default_rng(0), vocabulary.end
    assert family.transform(np.array([vocabulary.start, 0, end]), rng).tolist() == [vocabulary.start, 0, end, end, end, end]
    for kept in ([vocabulary.start, 0, 1], [vocabulary.start, *[0] * 8, end]):  # cut from its document; long enough
        assert family.transform(np.array(kept), rng).tolist() == kept


@pytest.mark.parametrize("chain", ["absorb", "uniform"])
def test_score_models_train_score_and_are_told_the_noise(vocabulary, chain):
    schedule = "log-linear" if chain == "absorb" else "geometric"
    config = ScoreConfig(chain=chain, schedule=schedule)
    family = Discrete(vocabulary, TOLD, config, MaskedSamplerConfig(commit="tweedie", steps=3))
    torch.manual_seed(0)
    model = family.build()
    with torch.no_grad():  # adaLN begins at 0, where the noise is not heard
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    texts = [torch.tensor([vocabulary.start, 0, 1, 2, 1]), torch.tensor([vocabulary.start, 2, 2, vocabulary.end])]
    batch = Packed.of(texts)
    noise = {"t": torch.tensor([0.3, 0.8]), "u": torch.linspace(0, 0.99, 9, dtype=torch.float64)}
    terms = family.loss(model, batch, noise)
    assert terms.keys() == family.targets(batch, noise).keys() and family.targets(batch, noise)["loss"] == 7
    terms["loss"].sum.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    value, error = family.log_likelihood(model, batch, 2, 0)
    assert value.isfinite().all() and error.isfinite().all() and (value < 0).all()

    scores = family.sampler.log_scores
    levels = sigma(family.kind.process.schedule, torch.tensor([0.2, 0.9], dtype=torch.float64))
    low, high = (scores(model, batch, level.expand(2)) for level in levels)
    assert low.shape == (9, vocabulary.size) and low[1, 0] == 0 and low[:, vocabulary.prefix].isneginf().all()
    assert not torch.allclose(low[:, :3], high[:, :3])


def test_states_are_the_data_and_the_end(vocabulary):
    assert states(vocabulary) == (0, 1, 2, vocabulary.end)
    assert isinstance(kind_of(vocabulary, MODEL, ScoreConfig()), AbsorbScore)
    assert isinstance(kind_of(vocabulary, MODEL, ScoreConfig(chain="uniform")), UniformScore)
