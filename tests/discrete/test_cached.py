"""What of a row is read anew, and what that changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.llada import generate
from unveil.config import MaskedSamplerConfig, TransformerConfig
from unveil.discrete.allowed import Model
from unveil.discrete.denoiser import Subs
from unveil.discrete.sampler import MaskedSampler
from unveil.errors import UserError
from unveil.family import Request
from unveil.nn.head import LogitsModel
from unveil.nn.layout import Bidirectional, BlockCausal
from unveil.nn.packed import Packed
from unveil.nn.rotary import Rotation
from unveil.nn.transformer import Transformer

BLOCK = 4


def network(layout, **settings):
    torch.manual_seed(1)
    sizes = {"width": 16, "depth": 2, "heads": 2, "kv_heads": 1, "hidden": 32, "init": "normal", "init_std": 0.4}
    model = Transformer(TransformerConfig(**sizes | settings), 9, layout).double()
    model.compute_dtype = torch.float64
    return model.eval()


@pytest.fixture(scope="module")
def full():
    return network(Bidirectional())


@pytest.fixture(scope="module")
def blocks():
    return network(BlockCausal(BLOCK))


def sampler(block=0, **settings):
    return MaskedSampler(Subs(5, (3, 5, 6, 7, 8)), 4, MaskedSamplerConfig(end="forbid", **settings), keep=(3,), traits=Model(block=block))


def run(ours, model, requests):
    state, last = ours.begin(requests, model), {}
    while state.live:
        last |= {row.request: row for row in ours.step(model, state).rows}
    return [last[i] for i in range(len(requests))]


REQUESTS = [Request(np.array([3, *[i % 3 for i in range(n)]]), length, n) for n, length in ((0, 9), (2, 6), (3, 8), (6, 10), (11, 5))]
INFILL = Request(np.array([3, 0, 5, 5, 1, 2, 0, 1, 2, 0, 5, 1, 5]), 0, 3)


@pytest.mark.parametrize(
    "settings", [{}, {"window": 2}, {"order": "random"}, {"commit": "threshold", "threshold": 0.4}, {"remask": "confidence"}]
)
def test_the_block_cache_is_exact(blocks, settings):
    plain = run(sampler(BLOCK, **settings), blocks, [*REQUESTS, INFILL])
    for a, b in zip(plain, run(sampler(BLOCK, cache="block", **settings), blocks, [*REQUESTS, INFILL]), strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_array_equal(a.committed_at, b.committed_at)
        np.testing.assert_allclose(a.confidence, b.confidence, rtol=1e-6)
        assert a.evaluations == b.evaluations and b.computed < a.computed and a.reused == 0
        assert a.computed == b.computed + b.reused  # what one reads the other has


def test_the_block_cache_reads_each_finished_token_once(blocks):
    (row,) = run(sampler(BLOCK, cache="block"), blocks, [Request(np.array([3, 0, 1, 2]), 12)])
    # the prompt's block and then every finished one once, and the open block at each of its four steps
    assert row.evaluations == 12 and row.computed == 12 * BLOCK + 3 * BLOCK


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_step_that_opens_a_window_is_exact_and_later_ones_are_near(full, cache):
    one = {"window": 3, "commit": "threshold", "threshold": 0.0}
    for a, b in zip(
        run(sampler(**one), full, [*REQUESTS, INFILL]), run(sampler(cache=cache, **one), full, [*REQUESTS, INFILL]), strict=True
    ):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_allclose(a.confidence, b.confidence, rtol=1e-6)
        assert b.reused == 0
    many = {"window": 4, "temperature": 0.0}
    pairs = list(zip(run(sampler(**many), full, REQUESTS), run(sampler(cache=cache, **many), full, REQUESTS), strict=True))
    assert any((a.confidence != b.confidence).any() for a, b in pairs)  # approximate
    same = np.concatenate([a.tokens == b.tokens for a, b in pairs])
    assert same.mean() > 0.8 and all(b.computed < a.computed for a, b in pairs)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_stored_keys_and_values_are_those_of_the_refresh(full, cache):
    """The second step of a window, by hand: what lies outside is read with the canvas as it was when the window opened."""
    ours = sampler(window=3, cache=cache, temperature=0.0)
    state = ours.begin([Request(np.array([3, 0, 1]), 6)], full)
    before = torch.from_numpy(state.rows[0].tokens.copy())
    (first,) = ours.step(full, state).rows
    (second,) = ours.step(full, state).rows
    hidden = twin(full, before, torch.from_numpy(first.tokens), slice(3, 6 if cache == "dual" else 9))
    at = int(np.flatnonzero(second.committed_at == 2)[0])
    logits = Subs(5, (3, 4, 5, 6, 7, 8)).restrict(full.head(hidden[at - 3]).detach())
    assert int(logits.argmax()) == second.tokens[at]
    np.testing.assert_allclose(second.confidence[at], float(logits.softmax(-1).max()), rtol=1e-6)


@torch.no_grad()
def twin(model, before, now, span):
    """Hidden states of ``now`` in the span, attending to keys and values of ``before`` outside it: layer by layer, without a store."""
    old, by = model._enter(before, torch.arange(len(before)))
    new, part = model._enter(now, torch.arange(len(now)))
    new, part = new[span], Rotation(*(x[span] for x in part))
    ends = torch.tensor([0, len(before)], dtype=torch.int32)
    for block in model.blocks:
        _, k, v = block.attention.project(block.attention_norm(old), by)
        q, k_new, v_new = block.attention.project(block.attention_norm(new), part)
        k, v = k.clone(), v.clone()
        k[span], v[span] = k_new, v_new
        scores = torch.einsum("qhe,ke->hqk", q, k[:, 0]) * q.shape[-1] ** -0.5
        attended = torch.einsum("hqk,ke->qhe", scores.softmax(-1), v[:, 0])
        new = block._after(new, block.attention.out(attended.flatten(1)), ())
        old = block(old, by, ends, len(before), model.layout)
    return model.norm(new)


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_split_and_joined_rows_go_on_as_they_would_have(full, cache):
    ours = sampler(window=3, cache=cache, order="random")
    straight = run(ours, full, REQUESTS[:3])
    state = ours.begin(REQUESTS[:2], full)
    for _ in range(4):
        ours.step(full, state)
    first, second = state.select([0]), state.select([1])
    joined = second.join(first).join(ours.begin(REQUESTS[2:3], full))
    last = {}
    while joined.live:
        last |= {row.request: row for row in ours.step(full, joined).rows}
    for number, i in ((1, 1), (2, 0), (4, 2)):
        np.testing.assert_array_equal(last[number].tokens, straight[i].tokens)


def test_models_that_cannot_have_a_cache_are_named(full):
    asked = REQUESTS[:1]
    with pytest.raises(UserError, match=r"sampler\.cache: got 'dual': LogitsModel keeps no keys"):
        sampler(window=3, cache="dual").begin(asked, LogitsModel(lambda batch: batch))
    with pytest.raises(UserError, match=r"sampler\.cache: .* window of its own"):
        sampler(window=3, cache="dual").begin(asked, network(Bidirectional(2)))
    with pytest.raises(UserError, match=r"sampler\.cache: .* the one before it"):
        sampler(window=3, cache="dual").begin(asked, network(Bidirectional(), shift=True))
    with pytest.raises(UserError, match=r"sampler\.window: got 3: windows must divide"):
        sampler(BLOCK, window=3)


# --- the official algorithm


@pytest.mark.parametrize(("steps", "window"), [(12, 12), (6, 12), (12, 4), (6, 4), (3, 4)])
def test_llada_as_published(full, steps, window):
    prompts = torch.tensor([[3, 0, 1, 2], [3, 2, 2, 0]])
    subs = Subs(5, (3, 4, 5, 6, 7, 8))

    def logits(x):
        return subs.restrict(full.head(full(Packed.of(list(x))))).view(*x.shape, -1)

    expected, forwards = generate(logits, prompts, 12, steps, window, 5)
    rows = run(sampler(steps=steps, window=window, temperature=0.0), full, [Request(p.numpy(), 12) for p in prompts])
    for row, tokens in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(row.tokens, tokens.numpy())
        assert row.evaluations == forwards == steps


# --- a context that slides


def test_a_sliding_context_reads_the_tokens_up_to_the_window(full):
    """Each window of the long row is that of a short one which begins where the context does."""
    request = Request(np.array([3, 0, 1, 2, 0]), 12, 4)
    settings = {"window": 3, "temperature": 0.0}
    (row,) = run(sampler(context=8, **settings), full, [request])
    assert row.computed == 8 * row.evaluations and 5 not in row.tokens
    text = row.tokens[:14]  # before the last window
    (tail,) = run(sampler(**settings), full, [Request(text[14 - 5 :], 3)])
    np.testing.assert_array_equal(row.tokens[-3:], tail.tokens[-3:])
    (whole,) = run(sampler(context=17, **settings), full, [request])
    np.testing.assert_array_equal(whole.tokens, run(sampler(**settings), full, [request])[0].tokens)
    with pytest.raises(UserError, match=r"sampler\.context: got 2, a window spans 3"):
        sampler(context=2, **settings).begin([request])
