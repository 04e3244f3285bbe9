from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unveil.config import MaskedSamplerConfig
from unveil.discrete.denoiser import Subs
from unveil.discrete.sampler import MaskedSampler
from unveil.discrete.window import quota
from unveil.errors import UserError
from unveil.family import Request
from unveil.nn.head import LogitsModel
from unveil.nn.packed import Packed
from unveil.text.vocabulary import Vocabulary


def sampler(vocabulary, stop=None, **settings):
    return MaskedSampler(Subs.of(vocabulary), vocabulary.end, MaskedSamplerConfig(**settings), stop)


def request(vocabulary, tokens, length, seed=0):
    return Request(np.array([vocabulary.start, *tokens]), length, seed)


def run(ours, model, requests):
    """Every row of every snapshot, by request."""
    state, history = ours.begin(requests), {i: [] for i in range(len(requests))}
    while state.live:
        for row in ours.step(model, state).rows:
            history[row.request].append(row)
    return history


class Constant(nn.Module):
    """The same distribution everywhere: logits of the first tokens, the rest impossible."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.tensor([*logits, *[-1e9] * (9 - len(logits))], dtype=torch.float64)

    def forward(self, batch: Packed) -> torch.Tensor:
        return self.logits.expand(len(batch.tokens_T), -1)


# --- golden trajectories


class Llama(nn.Module):
    """The network of the golden file, written out plainly: Llama's layout, bidirectional."""

    def __init__(self, arrays, config) -> None:
        super().__init__()
        self.w = {
            k.removeprefix("inputs.weights."): torch.from_numpy(v).double() for k, v in arrays.items() if k.startswith("inputs.weights.")
        }
        self.c = config

    def norm(self, x, name):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.c["rms_eps"]) * self.w[name]

    def rotate(self, x):
        half = x.shape[-1] // 2
        angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * self.c["rope_theta"] ** (
            -torch.arange(half, dtype=torch.float64) / half
        )
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    def forward(self, batch: Packed) -> torch.Tensor:
        return torch.cat([self.one(tokens) for tokens in batch.split()])

    def one(self, tokens):
        h = self.w["embed_tokens"][tokens]
        for i in range(self.c["layers"]):
            x = self.norm(h, f"layers.{i}.input_layernorm")
            q, k, v = ((x @ self.w[f"layers.{i}.{p}_proj"].T).unflatten(-1, (self.c["heads"], -1)).transpose(0, 1) for p in "qkv")
            scores = self.rotate(q) @ self.rotate(k).transpose(-1, -2) / q.shape[-1] ** 0.5
            h = h + (scores.softmax(-1) @ v).transpose(0, 1).flatten(1) @ self.w[f"layers.{i}.o_proj"].T
            x = self.norm(h, f"layers.{i}.post_attention_layernorm")
            gate, up = (x @ self.w[f"layers.{i}.{p}_proj"].T for p in ("gate", "up"))
            h = h + (torch.nn.functional.silu(gate) * up) @ self.w[f"layers.{i}.down_proj"].T
        return self.norm(h, "norm") @ self.w["lm_head"].T


@pytest.mark.parametrize("case", ["full", "few_steps", "blocks", "blocks_few"])
def test_golden_canvases(golden, case):
    """LLaDA's own sampler at temperature 0: every canvas of every step. The reference keeps the mask token in its softmax."""
    arrays, config = golden("llada_generate")
    model, setting, mask = LogitsModel(Llama(arrays, config)), config["cases"][case], config["mask_id"]
    logits = model(Packed.of(list(torch.from_numpy(arrays["inputs.forward_ids"]))))
    np.testing.assert_allclose(logits.numpy(), arrays["outputs.forward_logits"].reshape(logits.shape), rtol=0, atol=1e-9)

    settings = MaskedSamplerConfig(steps=setting["steps"], window=setting["block_length"], temperature=0.0)
    ours = MaskedSampler(Subs(mask, ()), -1, settings)
    history = run(ours, model, [Request(prompt, config["gen_length"]) for prompt in arrays["inputs.prompt"]])
    expected = arrays[f"outputs.canvases_{case}"]
    for b in range(2):
        assert len(history[b]) == setting["steps"]
        np.testing.assert_array_equal(np.stack([row.tokens for row in history[b]]), expected[1:, b])


# --- invariants of every setting

SETTINGS = [
    {"order": order, "window": window, "temperature": temperature, "end": end}
    for order in ("random", "confidence")
    for window in (0, 3)
    for temperature in (0.0, 1.0)
    for end in ("free", "forbid", "last")
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_a_batch_equals_single_runs(network, vocabulary, settings):
    """Ragged continuations and infills of different lengths, in float64: tokens, steps and confidences."""
    ours = sampler(vocabulary, steps=4, **settings)
    m = vocabulary.mask
    requests = [
        request(vocabulary, [0, 1], 7, seed=5),
        request(vocabulary, [], 4, seed=6),
        request(vocabulary, [2, m, m, 0, m, 1], 0, seed=7),
        request(vocabulary, [m, 1, 1], 5, seed=5),
        request(vocabulary, [1, 2, 0, 0, 1], 1, seed=8),
    ]
    together = run(ours, network, requests)
    for i, single in enumerate(requests):
        alone = run(ours, network, [single])[0]
        assert len(alone) == len(together[i])
        for a, b in zip(alone, together[i], strict=True):
            np.testing.assert_array_equal(a.tokens, b.tokens)
            np.testing.assert_array_equal(a.committed_at, b.committed_at)
            np.testing.assert_allclose(a.confidence, b.confidence, rtol=1e-6)
            assert a.final == b.final


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_what_is_given_stays_and_commits_follow_quota_and_window(network, vocabulary, settings):
    ours = sampler(vocabulary, steps=5, **settings)
    m = vocabulary.mask
    asked = request(vocabulary, [2, m, m, 0, m, 1, m], 5, seed=3)
    state = ours.begin([asked])
    plan = state.rows[0].windows
    quotas = [n for masks, steps in zip(plan.masks, plan.steps, strict=True) for n in quota(masks, min(masks, steps))]
    hidden = np.flatnonzero(state.rows[0].tokens == m)
    before = state.rows[0].tokens
    for step, n in enumerate(quotas, start=1):
        reach = plan.end[state.rows[0].window]
        (row,) = ours.step(network, state).rows
        changed = np.flatnonzero(row.tokens != before)
        assert len(changed) == n and set(changed) <= set(hidden[hidden < reach])
        assert (before[changed] == m).all() and (row.committed_at[changed] == step).all()
        assert (row.tokens == m).sum() == (row.committed_at == -1).sum()
        before = row.tokens
    assert row.final and not state.live
    given = np.setdiff1d(np.arange(len(before)), hidden)
    np.testing.assert_array_equal(row.tokens[given], np.array([vocabulary.start, 2, 0, 1]))
    assert (row.committed_at[given] == 0).all() and (row.confidence[given] == 1).all()
    assert np.isin(row.tokens[hidden], [0, 1, 2] if settings["end"] == "forbid" else [0, 1, 2, vocabulary.end]).all()
    assert ((row.confidence[hidden] > 0) & (row.confidence[hidden] < 1)).all()


def test_split_and_joined_rows_go_on_as_they_would_have(network, vocabulary):
    ours = sampler(vocabulary, order="random", window=3, end="forbid")
    requests = [request(vocabulary, [i], 6, seed=i) for i in range(3)]
    straight = run(ours, network, requests)
    state = ours.begin(requests[:2])
    ours.step(network, state)
    ours.step(network, state)
    first, second = state.select([0]), state.select([1])
    ours.step(network, second)  # the rows are out of step from here on
    joined = second.join(first).join(ours.begin(requests[2:]))
    last = {}
    while joined.live:
        last.update({row.request: row for row in ours.step(network, joined).rows})
    # numbering: joined rows follow the requests begun before, as the docstring says
    assert sorted(last) == [1, 2, 4]
    for number, i in ((1, 1), (2, 0), (4, 2)):
        np.testing.assert_array_equal(last[number].tokens, straight[i][-1].tokens)
        np.testing.assert_array_equal(last[number].committed_at, straight[i][-1].committed_at)


def test_a_snapshot_never_changes_and_writing_to_it_changes_nothing(network, vocabulary):
    ours = sampler(vocabulary, temperature=0.0)
    clean = run(ours, network, [request(vocabulary, [0], 5)])[0]
    state = ours.begin([request(vocabulary, [0], 5)])
    (first,) = ours.step(network, state).rows
    kept = first.tokens.copy()
    (second,) = ours.step(network, state).rows
    np.testing.assert_array_equal(first.tokens, kept)
    for values in (second.tokens, second.committed_at, second.confidence):
        values[:] = 1
    while state.live:
        (row,) = ours.step(network, state).rows
    np.testing.assert_array_equal(row.tokens, clean[-1].tokens)


# --- the law of a draw


@pytest.mark.parametrize(("temperature", "order"), [(1.0, "random"), (0.5, "confidence"), (2.0, "confidence")])
def test_draws_follow_the_tempered_softmax(vocabulary, temperature, order):
    """Chi-square over 4,000 positions filled in one step (99.9 % of chi2 with 3 degrees of freedom: 16.3)."""
    model = LogitsModel(Constant(0.3, 1.0, -0.5, -1e9, 0.0))
    ours = sampler(vocabulary, steps=1, temperature=temperature, order=order)
    row = run(ours, model, [request(vocabulary, [], 4000, seed=11)])[0][-1]
    expected = 4000 * torch.softmax(torch.tensor([0.3, 1.0, -0.5, 0.0], dtype=torch.float64) / temperature, 0).numpy()
    counts = np.array([(row.tokens[1:] == token).sum() for token in (0, 1, 2, vocabulary.end)])
    assert counts.sum() == 4000 and ((counts - expected) ** 2 / expected).sum() < 16.3
    # the confidence is untempered, whatever token was drawn
    plain = torch.softmax(torch.tensor([0.3, 1.0, -0.5, 0.0], dtype=torch.float64), 0).numpy()
    np.testing.assert_allclose(row.confidence[1:][row.tokens[1:] == 0], plain[0], rtol=1e-6)


def test_random_order_is_uniform(vocabulary):
    """Where the first of 5 masks is uncovered: chi-square over 1,000 seeds (99.9 % of chi2 with 4 degrees: 18.5)."""
    model = LogitsModel(Constant(0.0, 1.0))
    ours = sampler(vocabulary, order="random")
    state = ours.begin([request(vocabulary, [], 5, seed) for seed in range(1000)])
    first = [int((row.committed_at == 1).argmax()) - 1 for row in ours.step(model, state).rows]
    assert ((np.bincount(first, minlength=5) - 200) ** 2 / 200).sum() < 18.5


def test_ties_go_left_to_right(vocabulary):
    row = run(sampler(vocabulary, temperature=0.0), LogitsModel(Constant(0.0, 1.0)), [request(vocabulary, [0], 6)])[0][-1]
    assert row.committed_at.tolist() == [0, 0, 1, 2, 3, 4, 5, 6]


class Sure(nn.Module):
    """float32 logits: ever surer of token 0 to the right, beyond what a float32 probability can tell from 1."""

    def forward(self, batch: Packed) -> torch.Tensor:
        logits = torch.zeros(len(batch.tokens_T), 9)
        logits[:, 0] = 20.0 + batch.positions_T
        return logits


def test_confidence_is_compared_in_float64(vocabulary):
    assert (torch.tensor([21.0, 0.0, 0.0, 0.0]).softmax(0)[0] == 1).item()
    row = run(sampler(vocabulary, temperature=0.0), LogitsModel(Sure()), [request(vocabulary, [], 5)])[0][-1]
    assert row.committed_at.tolist() == [0, 5, 4, 3, 2, 1]


# --- the end token


class Ending(nn.Module):
    """Sure of the end token at odd positions and nearly sure of token 0 at even ones."""

    def forward(self, batch: Packed) -> torch.Tensor:
        logits = torch.zeros(len(batch.tokens_T), 9, dtype=torch.float64)
        odd = batch.positions_T % 2 == 1
        logits[odd, 4], logits[~odd, 0] = 30.0, 6.0
        return logits


@pytest.mark.parametrize("order", ["random", "confidence"])
@pytest.mark.parametrize("temperature", [0.0, 0.05])
def test_end_tokens_come_last_at_any_temperature(vocabulary, order, temperature):
    """LLaDA's code does this at temperature 0 only: above it commits certain end tokens first."""
    asked = [request(vocabulary, [], 8, seed=1)]
    model = LogitsModel(Ending())
    row = run(sampler(vocabulary, order=order, temperature=temperature, end="last"), model, asked)[0][-1]
    assert row.tokens.tolist() == [3, 4, 0, 4, 0, 4, 0, 4, 0]
    assert set(row.committed_at[[2, 4, 6, 8]]) == {1, 2, 3, 4}
    free = run(sampler(vocabulary, temperature=temperature), model, asked)[0][-1]
    assert set(free.committed_at[[1, 3, 5, 7]]) == {1, 2, 3, 4}
    never = run(sampler(vocabulary, order=order, temperature=temperature, end="forbid"), model, asked)[0][-1]
    assert vocabulary.end not in never.tokens


def test_text_after_a_committed_end_token_is_still_uncovered(vocabulary):
    row = run(sampler(vocabulary, temperature=0.0), LogitsModel(Ending()), [request(vocabulary, [], 8)])[0][-1]
    assert len(row.tokens) == 9 and (row.committed_at[1:] > 0).all()


def test_a_stop_ends_a_continuation_early_and_an_infill_never(vocabulary):
    asked = []

    def stop(new):
        asked.append(list(new))
        return list(new[-2:]) == [0, 4]

    ours = sampler(vocabulary, stop, temperature=0.0, window=1)
    rows = run(ours, LogitsModel(Ending()), [request(vocabulary, [0], 8), request(vocabulary, [vocabulary.mask], 8)])
    assert rows[0][-1].final and rows[0][-1].tokens.tolist() == [3, 0, 0, 4] + [vocabulary.mask] * 6
    assert asked == [[0], [0, 4]]  # every length once
    assert vocabulary.mask not in rows[1][-1].tokens


# --- mistakes and edges


def test_mistakes_are_named(vocabulary):
    with pytest.raises(UserError, match="infill: no mask"):
        sampler(vocabulary).begin([request(vocabulary, [0, 1], 0)])
    with pytest.raises(UserError, match=r"sampler\.steps: got 2 steps for 3 windows of 4 tokens"):
        sampler(vocabulary, steps=2, window=4).begin([request(vocabulary, [0], 9)])
    for name in ("steps", "window", "temperature"):
        with pytest.raises(UserError, match=rf"sampler\.{name}: got -1"):
            sampler(vocabulary, **{name: -1})


def test_a_state_without_rows_steps_to_nothing(network, vocabulary):
    ours = sampler(vocabulary)
    state = ours.begin([])
    assert ours.step(network, state).rows == [] and state.live == 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 6), st.integers(1, 9), st.integers(0, 4), st.integers(0, 2**31))
def test_no_mask_is_left_at_the_end(prompt, length, window, seed):
    vocabulary = Vocabulary(size=9, start=3, end=4, mask=5, prefix=6, suffix=7, middle=8)
    ours = sampler(vocabulary, window=window, order="random")
    row = run(ours, LogitsModel(Constant(0.0, 1.0)), [request(vocabulary, [0] * prompt, length, seed)])[0][-1]
    assert row.final and vocabulary.mask not in row.tokens and len(row.tokens) == 1 + prompt + length
