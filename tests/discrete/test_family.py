from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from unveil.config import MaskedConfig, MaskedSamplerConfig, TransformerConfig
from unveil.data.noise import generator
from unveil.discrete.family import Discrete
from unveil.errors import UserError
from unveil.family import Family, Request
from unveil.nn.layout import Bidirectional
from unveil.nn.packed import Packed

MODEL = TransformerConfig(width=16, depth=1, heads=2, hidden=32, window=4)


@pytest.fixture
def make(vocabulary):
    def build(seed=0, **objective) -> Family:
        return Discrete(vocabulary, MODEL, MaskedConfig(**objective), MaskedSamplerConfig(), seed=seed)

    return build


def test_contract_end_to_end(make, vocabulary):
    """Draw, pack, lose, step, score: what trainer, roof and evaluation do, through the contract alone."""
    family = make()
    model = family.build()
    assert model.layout == Bidirectional(4)
    sequences = [np.array([vocabulary.start, 0, 1, 2, 1]), np.array([vocabulary.start, 2, 2, vocabulary.end])]
    drawn = [family.draw(i, 0, len(s), generator(0, 0, i, "noise")) for i, s in enumerate(sequences)]
    noise = {name: torch.from_numpy(np.concatenate([d[name] for d in drawn])) for name in ("t", "u")}
    assert noise["t"].shape == (2,) and noise["u"].shape == (9,)
    batch = Packed.of([torch.from_numpy(s) for s in sequences])
    terms, targets = family.loss(model, batch, noise), family.targets(batch, noise)
    assert terms.keys() == targets.keys() and targets["loss"] == 7
    assert terms["loss"].sum.dtype == torch.float32 and all(isinstance(value, float) for value in targets.values())
    terms["loss"].sum.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())

    state = family.begin(model, [Request(np.array([vocabulary.start]), 3)])
    rows = []
    while state.live:
        rows += family.step(model, state).rows
    assert len(rows) == 3 and rows[-1].final and not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
    value, error = family.log_likelihood(model, batch, 2, 0, torch.tensor([True] * 8 + [False]))
    assert value.shape == error.shape == (2,) and (value < 0).all()


def test_times_are_stratified_over_samples_and_shift_with_epoch_and_seed(make):
    family = make(t_min=0.1, t_max=0.9)
    times = np.array([family.draw(i, 0, 1, generator(0, 0, i, "noise"))["t"][0] for i in range(100, 200)])
    assert ((times >= 0.1) & (times < 0.9)).all()
    # 100 points of the golden sequence hit every twentieth of the range 4 to 6 times; independent ones would not
    counts = np.histogram(times, bins=20, range=(0.1, 0.9))[0]
    assert counts.min() >= 4 and counts.max() <= 6
    at = lambda family, epoch: family.draw(7, epoch, 1, generator(0, epoch, 7, "noise"))["t"][0]  # noqa: E731
    assert at(family, 0) == at(make(t_min=0.1, t_max=0.9), 0)
    assert len({at(family, 0), at(family, 1), at(make(seed=1, t_min=0.1, t_max=0.9), 0)}) == 3


def test_random_length_keeps_the_start_token_and_is_uniform(make, vocabulary):
    tokens = np.array([vocabulary.start, 0, 1, 2, 1])
    assert make(random_length=0.0).transform(tokens, np.random.default_rng(0)) is tokens
    rng = np.random.default_rng(0)
    cut = [make(random_length=1.0).transform(tokens, rng) for _ in range(800)]
    assert all((c == tokens[: len(c)]).all() for c in cut)
    counts = np.bincount([len(c) for c in cut])
    assert counts[:2].sum() == 0 and len(counts) == 6 and (np.abs(counts[2:] - 200) < 50).all()
    family, rng = make(random_length=0.1), np.random.default_rng(1)
    assert 60 < sum(len(family.transform(np.arange(200), rng)) < 200 for _ in range(1000)) < 140
    assert len(make(random_length=1.0).transform(tokens[:1], rng)) == 1


def test_mistakes_are_named(make):
    with pytest.raises(UserError, match=r"objective\.t_min: got times from 0\.5 to 0\.2"):
        make(t_min=0.5, t_max=0.2)
    with pytest.raises(UserError, match=r"objective\.random_length: got 1\.5"):
        make(random_length=1.5)


def test_view_is_the_cross_entropy_by_time_early_and_late(make):
    rows = [{"step": i, "train/ce 0.0-0.1": 2.0, "train/ce 0.9-1.0": 10.0 - i} for i in range(10)] + [{"step": 10, "eval/bits": 3.0}]
    del rows[8]["train/ce 0.9-1.0"]  # no token of that row fell into the bucket
    (view,) = make().views(SimpleNamespace(metrics=rows))
    assert view.x[0] == 0.05 and len(view.x) == 10
    early, late = view.y.values()
    assert early[0] == late[0] == 2.0 and early[9] == 9.5 and late[9] == 1.0 and np.isnan(late[4])
    assert make().views(SimpleNamespace(metrics=[{"train/nll": 1.0}])) == []
