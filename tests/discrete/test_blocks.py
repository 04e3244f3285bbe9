"""Block diffusion's loss and bound, with the two streams as the network's helper gives them and as one forward per block."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from unveil.config import BlockConfig, MaskedConfig, TransformerConfig
from unveil.data.noise import generator
from unveil.discrete.kinds import Block, Masked
from unveil.nn.layout import Bidirectional, BlockCausal
from unveil.nn.packed import Packed
from unveil.nn.transformer import Transformer

MODEL = TransformerConfig(width=16, depth=2, heads=2, hidden=32, init="normal", init_std=0.3)


def network_of(vocabulary, layout):
    torch.manual_seed(0)
    model = Transformer(MODEL, vocabulary.size, layout).double()
    model.compute_dtype = torch.float64
    return model


def one_by_one(model, noisy, clean_T, block):
    """The twin: block b from its own forward on the clean blocks before it and itself noisy."""
    hidden = []
    for tokens, clean in zip(noisy.split(), noisy.split(clean_T), strict=True):
        for start in range(0, len(tokens), block):
            canvas = torch.cat([clean[:start], tokens[start : start + block]])
            hidden.append(model(Packed.of([canvas]))[start:])
    return torch.cat(hidden)


@pytest.fixture
def texts(vocabulary):
    return [torch.tensor([vocabulary.start, 0, 1, 2, 1, 0, 2]), torch.tensor([vocabulary.start, 2, 2, vocabulary.end])]


def drawn(kind, texts):
    each = [kind.draw(0.3, i, len(s), generator(0, 0, i, "draw")) for i, s in enumerate(texts)]
    return {name: torch.from_numpy(np.concatenate([e[name] for e in each])) for name in each[0]}


@pytest.mark.parametrize("block", [1, 2, 3, 8])
def test_loss_is_that_of_each_block_by_itself(vocabulary, texts, block):
    """Value and gradients; the sheet's invariant 8."""
    from unveil.nn.block_diffusion import two_stream

    kind = Block(vocabulary, MODEL, BlockConfig(block=block))
    model, batch, noise = network_of(vocabulary, kind.layout), Packed.of(texts), drawn(kind, texts)
    loss = kind.loss(model, batch, noise)["loss"].sum
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()

    masked = kind.process.masked(batch, noise["t"], noise["u"])
    noisy = batch.with_tokens(kind.process.hide(batch.tokens_T, masked))
    twin_TD = one_by_one(model, noisy, batch.tokens_T, block)
    torch.testing.assert_close(two_stream(model, noisy, batch.tokens_T, block), twin_TD, rtol=1e-9, atol=1e-10)
    losses = kind.denoiser.token_loss(model.head(twin_TD)[masked], batch.tokens_T[masked])
    expected = (losses / noise["t"][masked]).sum()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    for ours, p in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(ours, p.grad, rtol=1e-7, atol=1e-9)


def test_one_block_over_the_whole_text_is_masked_diffusion(vocabulary, texts):
    """The sheet's invariant 6: loss and bound."""
    block, masked = Block(vocabulary, MODEL, BlockConfig(block=8)), Masked(vocabulary, MODEL, MaskedConfig())
    model, other = network_of(vocabulary, block.layout), network_of(vocabulary, Bidirectional())
    batch, noise = Packed.of(texts), drawn(masked, texts)
    ours, theirs = block.loss(model, batch, noise), masked.loss(other, batch, noise)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name].sum, theirs[name].sum, rtol=1e-9, atol=1e-12)
    for a, b in zip(block.bound(model, batch, 5, 0, None), masked.bound(other, batch, 5, 0, None), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_blocks_of_one_are_an_exact_chain_rule(vocabulary):
    """The sheet's invariant 5: one draw knows log p without error, and the probabilities of all texts of a length sum to 1."""
    kind = Block(vocabulary, MODEL, BlockConfig(block=1))
    model = network_of(vocabulary, kind.layout)
    data = [0, 1, 2, vocabulary.end]
    texts = [torch.tensor([vocabulary.start, *s]) for s in itertools.product(data, repeat=3)]
    value, error = kind.bound(model, Packed.of(texts), 1, 0, None)
    assert float(value.exp().sum()) == pytest.approx(1.0, abs=1e-12) and not error.any()
    # and it is the autoregression that reads the text so far and a mask
    text, expected = texts[27], 0.0
    for at in range(1, 4):
        canvas = torch.cat([text[:at], torch.tensor([vocabulary.mask])])
        logits = model.head(model(Packed.of([canvas])))[-1, data]
        expected += float(logits.log_softmax(-1)[data.index(int(text[at]))])
    assert float(value[27]) == pytest.approx(expected, rel=1e-10)
    again, _ = kind.bound(model, Packed.of([text], [5]), 3, 9, None)
    assert float(again) == pytest.approx(expected, rel=1e-10)


@torch.no_grad()
def test_bound_is_the_sum_of_the_blocks_integrals(vocabulary):
    """Enumerated: for every block the mean over l and its subsets of (n / l) sum CE."""
    kind = Block(vocabulary, MODEL, BlockConfig(block=2))
    model = network_of(vocabulary, kind.layout)
    text = torch.tensor([vocabulary.start, 0, 2, 1, 1])
    expected = 0.0
    for start in (0, 2, 4):
        places = [i for i in range(start, min(start + 2, 5)) if i]
        for size in range(1, len(places) + 1):
            subsets = list(itertools.combinations(places, size))
            for hidden in subsets:
                canvas = text[: start + 2].clone()
                canvas[list(hidden)] = vocabulary.mask
                logits = model.head(model(Packed.of([canvas])))[list(hidden)]
                losses = float(kind.denoiser.token_loss(logits, text[list(hidden)]).sum())
                expected += len(places) / size * losses / len(subsets) / len(places)
    value, error = kind.bound(model, Packed.of([text]), 3000, 0, None)
    assert 0 < float(error) < 0.1 and abs(float(value) + expected) < 4 * float(error)


def test_every_block_has_a_time_of_its_own_and_all_of_them_are_even(vocabulary):
    kind = Block(vocabulary, MODEL, BlockConfig(block=4, t_min=0.0))
    draws = [kind.draw(0.3, i, 21, generator(0, 0, i, "draw"))["t"] for i in range(100, 150)]
    times = np.stack([t[::4] for t in draws])
    assert all((t == np.repeat(t[::4], 4)[:21]).all() for t in draws) and times.shape == (50, 6)
    counts = np.histogram(times, bins=60, range=(0, 1))[0]  # 300 blocks: independent times would leave some cells empty
    assert counts.min() >= 4 and counts.max() <= 6
    assert abs(np.corrcoef(times[:, 0], times[:, 1])[0, 1]) < 0.45  # neighbours do not follow each other
    short = kind.draw(0.3, 7, 5, generator(0, 0, 7, "draw"))
    assert len(set(short["t"].tolist())) == 2 and short["u"].shape == (5,)


def test_clipping_moves_the_training_and_not_the_bound(vocabulary, texts):
    """Evaluations are over all times: with the search and without they agree; what it saw decides the next training times."""
    plain, clipped = (Block(vocabulary, MODEL, BlockConfig(block=2, clip=clip)) for clip in (False, True))
    model, batch = network_of(vocabulary, BlockCausal(2)), Packed.of(texts)
    expected = plain.bound(model, batch, 8, 0, None)
    clipped.prepare(model)
    for a, b in zip(clipped.bound(model, batch, 8, 0, None), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    assert model.clip.pending[0].tolist() == [0, 12, 12]  # of 3 whole blocks without a start token, 8 draws each
    before, noise = model.clip.interval.tolist(), drawn(clipped, texts)
    clipped.loss(model.eval(), batch, noise)
    assert model.clip.interval.tolist() == before  # measuring a loss is not training
    terms = clipped.loss(model.train(), batch, noise)
    assert model.clip.interval.tolist() != before and terms.keys() == clipped.targets(batch, noise).keys() == {"loss"}
    moved = {**noise, "t": model.clip.rates(noise["t"])}
    torch.testing.assert_close(terms["loss"].sum, plain.objective.loss(model, batch, moved)["loss"].sum, rtol=1e-12, atol=0)
    assert "clip.interval" in model.state_dict()
