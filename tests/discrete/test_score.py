"""Score entropy against direct sums over the rates, the authors' numbers, and the closed form of what it bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from unveil.discrete.denoiser import AbsorbRatio, Subs, UniformRatio
from unveil.discrete.jump import Chain
from unveil.discrete.process import Geometric, LogLinear, Uniform, sigma, sigma_rate
from unveil.discrete.reader import Reader
from unveil.discrete.score import UniformObjective, bound, coefficients
from unveil.nn.head import LogitsModel
from unveil.nn.packed import Packed

STATES = (0, 1, 2, 4)


def uniform_entropy(logits_TV, noisy_T, clean_T, sigma_T, ratio, states):
    each, true, rest = coefficients(sigma_T, noisy_T == clean_T, states)
    return ratio.token_loss(logits_TV, noisy_T, clean_T, each, true, rest)


def absorb_entropy(logits_TV, clean_T, sigma_T, ratio):
    return ratio.token_loss(logits_TV, clean_T) / torch.expm1(sigma_T)


def direct(log_s_V, x, x0, noise, states, rates, forward):
    """Sum over y != x of Q(y -> x) (s_y - r_y log s_y + K(r_y))."""
    total = 0.0
    for y in states:
        if y == x or not rates(y, x):
            continue
        r = forward(x0, y, noise) / forward(x0, x, noise)
        k = r * (np.log(r) - 1) if r else 0.0
        s = float(log_s_V[y])
        total += rates(y, x) * (np.exp(s) - (r * s if r else 0.0) + k)
    return total


@pytest.mark.parametrize("noise", [1e-3, 0.1, 1.0, 8.0])
def test_uniform_is_the_sum_over_the_rates(vocabulary, noise):
    """The sheet's invariant 4."""
    ratio = UniformRatio(Subs.of(vocabulary))
    logits = torch.randn(16, vocabulary.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pairs = torch.cartesian_prod(torch.tensor(STATES), torch.tensor(STATES))
    ours = uniform_entropy(logits, pairs[:, 0], pairs[:, 1], torch.full((16,), noise, dtype=torch.float64), ratio, 4)

    def forward(x0, y, noise):
        return -np.expm1(-noise) / 4 + np.exp(-noise) * (x0 == y)

    for row, (x, x0), value in zip(logits, pairs.tolist(), ours.tolist(), strict=True):
        assert value == pytest.approx(direct(row, x, x0, noise, STATES, lambda y, x: 0.25, forward), rel=1e-9)
        assert value >= 0


def test_a_normalised_score_of_the_absorbing_chain_has_the_masked_loss(vocabulary):
    """The sheet's invariant 1: with s = p / expm1(sigma), the score entropy is CE / expm1(sigma); other scores lose z - 1 - log z more."""
    ratio, subs = AbsorbRatio.over(vocabulary), Subs.of(vocabulary)
    logits = torch.randn(4, vocabulary.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor(STATES)
    data = logits[:, STATES]
    normalised = logits - data.logsumexp(-1, keepdim=True) + np.log(4)
    cross_entropy = subs.token_loss(logits, targets)
    torch.testing.assert_close(ratio.token_loss(normalised, targets), cross_entropy, rtol=1e-12, atol=1e-12)
    z = data.exp().mean(-1)
    torch.testing.assert_close(ratio.token_loss(logits, targets), cross_entropy + z - 1 - z.log(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("noise", [1e-3, 1.0, 6.0])
def test_absorb_is_the_sum_over_the_rates(vocabulary, noise):
    ratio = AbsorbRatio.over(vocabulary)
    logits = torch.randn(4, vocabulary.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask, sigma_T = vocabulary.mask, torch.full((4,), noise, dtype=torch.float64)
    scores = ratio.log_scores(logits, torch.full((4,), mask), sigma_T)
    ours = absorb_entropy(logits, torch.tensor(STATES), sigma_T, ratio)

    def forward(x0, y, noise):
        return np.exp(-noise) * (x0 == y) - np.expm1(-noise) * (y == mask)

    for row, x0, value in zip(scores, STATES, ours.tolist(), strict=True):
        assert row[mask] == 0 and row[vocabulary.start].isneginf()
        assert value == pytest.approx(direct(row, mask, x0, noise, STATES, lambda y, x: 1.0, forward), rel=1e-9)


def test_golden_uniform(golden):
    arrays, config = golden("sedd_uniform")
    log_s, x, x0, noise, t = (torch.from_numpy(arrays[f"inputs.{name}"]) for name in ("log_score", "x", "x0", "sigma", "t"))
    ratio, states = UniformRatio(Subs(-1, ())), config["vocab"]
    flat = (log_s.flatten(0, 1), x.flatten(), x0.flatten())
    ours = uniform_entropy(*flat, noise.expand_as(x).flatten(), ratio, states)
    np.testing.assert_allclose(ours.view_as(x).numpy(), arrays["outputs.score_entropy"], rtol=1e-8, atol=1e-8)
    schedule = Geometric(config["noise"]["sigma_min"], config["noise"]["sigma_max"])
    loss = uniform_entropy(*flat, sigma(schedule, t).expand_as(x).flatten(), ratio, states).view_as(x) * sigma_rate(schedule, t)
    np.testing.assert_allclose(loss.sum(-1).numpy(), arrays["outputs.loss"], rtol=1e-7)
    _posteriors(Chain(torch.arange(states)), arrays)


def test_golden_absorb(golden):
    arrays, config = golden("sedd_absorb")
    mask, vocab = config["mask_id"], config["vocab"]
    log_s, x, x0, noise, t = (torch.from_numpy(arrays[f"inputs.{name}"]) for name in ("log_score", "x", "x0", "sigma", "t"))
    ratio = AbsorbRatio(mask, (mask,), vocab)
    hidden = x == mask
    for sigmas, weights, name in ((noise, None, "score_entropy"), (sigma(LogLinear(), t), sigma_rate(LogLinear(), t), "loss")):
        logits = log_s + torch.log(torch.expm1(sigmas))[..., None] + np.log(vocab - 1)
        entropies = absorb_entropy(logits[hidden], x0[hidden], sigmas.expand_as(x)[hidden], ratio)
        each = torch.zeros(x.shape, dtype=torch.float64).masked_scatter(hidden, entropies)
        ours = each if weights is None else (each * weights).sum(-1)
        np.testing.assert_allclose(ours.numpy(), arrays[f"outputs.{name}"], rtol=1e-9, atol=1e-9)
    _posteriors(Chain(torch.arange(vocab - 1), mask), arrays, mask)


def _posteriors(chain, arrays, only=None):
    """An analytic step with exact ratios is Bayes."""
    log_s, expected = arrays["inputs.log_score_exact"], arrays["outputs.exact_posterior_probs"]
    tokens = torch.arange(log_s.shape[1])
    schedule = LogLinear() if only is not None else Geometric()
    t = torch.from_numpy(arrays["inputs.t"]).squeeze(-1)
    change = sigma(schedule, t) - sigma(schedule, t - 0.03)
    for row in range(len(log_s)):
        ours = chain.tweedie(torch.from_numpy(log_s[row]), tokens, float(change[row]))
        places = slice(None) if only is None else slice(only, only + 1)
        np.testing.assert_allclose(ours[places].numpy(), expected[row][places], rtol=1e-7, atol=1e-9)


def test_golden_masked_scores(golden):
    """MDLM's own SEDD parameterisation."""
    arrays, config = golden("mdlm_subs")
    mask = config["mask_id"]
    logits, x_t, x0, t = (torch.from_numpy(arrays[f"inputs.{name}"]) for name in ("logits", "x_t", "x0", "t"))
    ratio, hidden = AbsorbRatio(mask, (mask,), config["vocab"]), x_t == mask
    noise = sigma(LogLinear(), t)[:, None].expand_as(x_t)
    scores = ratio.log_scores(logits[hidden], x_t[hidden], noise[hidden])
    keep = [i for i in range(config["vocab"]) if i != mask]
    np.testing.assert_allclose(
        scores[:, keep].numpy(), torch.from_numpy(arrays["outputs.sedd_log_score"])[hidden][:, keep].numpy(), atol=1e-10
    )
    ours = absorb_entropy(logits[hidden], x0[hidden], noise[hidden], ratio)
    weight = sigma_rate(LogLinear(), t)[:, None].expand_as(x_t)[hidden]
    stored = arrays["outputs.score_entropy"][hidden.numpy()]
    assert min(np.abs(ours.numpy() - stored).max(), np.abs((ours * weight).numpy() - stored).max()) < 1e-8


class Told(LogitsModel):
    def forward(self, batch: Packed, time: Tensor) -> Tensor:  # type: ignore[override]
        return self.network(batch, time)  # type: ignore[call-arg]


P0 = torch.tensor([0.5, 0.2, 0.2, 0.1], dtype=torch.float64)


def exact_network(vocabulary):
    """The true log scores of one token with law P0."""

    def logits(batch, time):
        kept = torch.exp(-time.double())[:, None]
        p = kept * P0 + (1 - kept) / 4
        full = torch.zeros(len(batch.tokens_T), vocabulary.size, dtype=torch.float64)
        full[:, list(STATES)] = p.log()
        return full - full.gather(-1, batch.tokens_T[:, None])

    return Told(logits)


@pytest.fixture
def objective(vocabulary):
    process = Uniform(Geometric(1e-2, 5.0), STATES, (vocabulary.start,))
    return UniformObjective(process, UniformRatio(Subs.of(vocabulary)), Reader(told=True))


def entropy(p):
    return float(-(p * p.log()).sum())


def test_with_the_true_scores_the_bound_is_off_by_what_is_known(vocabulary, objective):
    """Its mean over the data is H(p at t = 0) + log S - H(p at t = 1): exact where no noise is left at 0 and nothing else at 1."""
    network, schedule = exact_network(vocabulary), objective.process.schedule
    nodes, weights = np.polynomial.legendre.leggauss(60)
    t = torch.from_numpy((nodes + 1) / 2)
    rates = schedule.mask_rate(t)
    integral = torch.zeros((), dtype=torch.float64)
    for x0, chance in zip(STATES, P0, strict=True):
        for place in range(4):
            law = rates / 4 + (1 - rates) * (STATES[place] == x0)  # of x_t = STATES[place]
            hit = (rates * (place + 0.5) / 4)[:, None]  # inside the place's part of the hit interval
            u = torch.cat([torch.zeros_like(hit), hit], 1).flatten()
            batch = Packed.of([torch.tensor([vocabulary.start, x0])] * len(t))
            _, each = objective.entropies(network, batch, t, u, objective.process.maskable(batch))
            integral += chance * (torch.from_numpy(weights) / 2 * law * each.view(-1, 2)[:, 1]).sum()
    ends = sigma(schedule, torch.tensor([0.0, 1.0], dtype=torch.float64))
    start, end = objective.process.entropy(ends).tolist()
    laws = [torch.exp(-s) * P0 + (1 - torch.exp(-s)) / 4 for s in ends]
    total = float(integral) + np.log(4) - end + start
    assert total == pytest.approx(entropy(laws[0]) + np.log(4) - entropy(laws[1]), rel=1e-6)

    texts = [torch.tensor([vocabulary.start, x0]) for x0 in STATES]
    value, error = bound(objective, network, Packed.of(texts), 4000, 0)
    assert -float((P0 * value).sum()) == pytest.approx(total, abs=4 * float((P0 * error).square().sum().sqrt()))
    assert (-value > -P0.log() - 4 * error).all()  # a bound for each text


def test_counted_tokens_add_up_and_belong_to_their_sample(vocabulary, objective):
    def logits(batch, time):
        return torch.sin(torch.arange(vocabulary.size) + batch.tokens_T[:, None] + time.double()[:, None])

    texts = [torch.tensor([vocabulary.start, 0, 2, 1]), torch.tensor([vocabulary.start, 4, 4])]
    batch, network = Packed.of(texts, [7, 9]), Told(logits)
    counted = torch.tensor([False, True, False, False, False, False, True])
    whole, _ = bound(objective, network, batch, 3, 1)
    part, _ = bound(objective, network, batch, 3, 1, counted)
    rest, _ = bound(objective, network, batch, 3, 1, ~counted)
    torch.testing.assert_close(part + rest, whole, rtol=1e-12, atol=0)
    alone, error = bound(objective, network, Packed.of(texts[1:], [9]), 3, 1)
    torch.testing.assert_close(alone, whole[1:], rtol=1e-12, atol=0)
    assert torch.isnan(bound(objective, network, batch, 1, 1)[1]).all() and error > 0
    with pytest.raises(ValueError, match="at least one draw"):
        bound(objective, network, batch, 0, 1)
