from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from unveil.autoregressive.context import Cached, Reread
from unveil.autoregressive.sampler import NextTokenSampler, State
from unveil.config import NextTokenSamplerConfig, TransformerConfig
from unveil.errors import UserError
from unveil.family import Request, Row
from unveil.nn.head import LogitsModel
from unveil.nn.packed import Packed
from unveil.nn.transformer import Transformer
from unveil.text.vocabulary import Vocabulary

Make = Callable[..., Transformer]
WORDS = Vocabulary(size=40, start=34, end=35, mask=36, prefix=37, suffix=38, middle=39)
PROMPTS = ([34], [34, 1, 2, 3, 4, 5, 6, 7, 8], [34, 9], [34, 3, 3, 3], [34], [34, 30, 20, 10, 0])
CONFIGS = [
    NextTokenSamplerConfig(temperature=0.0),
    NextTokenSamplerConfig(),
    NextTokenSamplerConfig(temperature=0.0, repetition_penalty=1.5),
    NextTokenSamplerConfig(temperature=1.4, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.2),
]


def requests() -> list[Request]:
    return [Request(np.array(p), length=6 + 5 * i, seed=100 - i) for i, p in enumerate(PROMPTS)]


def uncached(model: Transformer) -> LogitsModel:
    return LogitsModel(lambda batch: model.head(model(batch)))


def finish(sampler: NextTokenSampler, model: torch.nn.Module, state: State) -> dict[int, Row]:
    done = {}
    while state.live:
        done.update({row.request: row for row in sampler.step(model, state).rows if row.final})
    return done


def same(a: Row, b: Row, tolerance: float) -> None:
    assert a.tokens.tolist() == b.tokens.tolist()
    assert a.committed_at.tolist() == b.committed_at.tolist()
    assert np.abs(a.confidence - b.confidence).max() <= tolerance


@pytest.mark.parametrize("config", CONFIGS)
def test_a_batch_equals_its_rows_alone(network: Make, config: NextTokenSamplerConfig) -> None:
    model, sampler = network(size=40), NextTokenSampler(WORDS, config)
    together = finish(sampler, model, sampler.begin(model, requests()))
    assert sorted(together) == list(range(len(PROMPTS)))
    for index, request in enumerate(requests()):
        same(together[index], finish(sampler, model, sampler.begin(model, [request]))[0], 1e-7)  # confidences are float32


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("config", CONFIGS)
def test_cached_equals_uncached(network: Make, config: NextTokenSamplerConfig, window: int) -> None:
    size = TransformerConfig(width=16, depth=2, heads=2, kv_heads=1, init="normal", init_std=0.3, window=window)
    model, sampler = network(size=40, config=size), NextTokenSampler(WORDS, config)
    plain = uncached(model)
    fast, slow = sampler.begin(model, requests()), sampler.begin(plain, requests())
    assert isinstance(fast.context, Cached) and isinstance(slow.context, Reread)
    while fast.live:
        assert torch.allclose(fast.logits_BV, slow.logits_BV, rtol=0, atol=1e-12)
        ours, twin = sampler.step(model, fast), sampler.step(plain, slow)
        for a, b in zip(ours.rows, twin.rows, strict=True):
            same(a, b, 1e-7)
    assert not slow.live


def test_cached_equals_uncached_to_1e_5_in_float32(network: Make) -> None:
    model, sampler = network(torch.float32, size=40), NextTokenSampler(WORDS, CONFIGS[0])
    plain = uncached(model)
    fast, slow = sampler.begin(model, requests()), sampler.begin(plain, requests())
    assert fast.logits_BV.dtype == torch.float32
    while fast.live:
        finite = torch.isfinite(slow.logits_BV)
        assert torch.allclose(fast.logits_BV[finite], slow.logits_BV[finite], rtol=1e-5, atol=1e-5)
        for a, b in zip(sampler.step(model, fast).rows, sampler.step(plain, slow).rows, strict=True):
            same(a, b, 1e-5)


def test_rows_that_join_late_or_move_become_what_they_would_have_been(network: Make) -> None:
    config = CONFIGS[3]
    model, sampler = network(size=40), NextTokenSampler(WORDS, config)
    alone = [finish(sampler, model, sampler.begin(model, [r]))[0] for r in requests()]
    done: dict[int, Row] = {}

    def steps(state: State, count: int) -> None:
        for _ in range(count):
            done.update({row.request: row for row in sampler.step(model, state).rows if row.final})

    state = sampler.begin(model, requests()[:2])
    steps(state, 3)
    other = sampler.begin(model, requests()[2:4])
    state = state.join(other)
    steps(state, 4)
    state = state.select(list(reversed(range(state.live))))
    steps(state, 2)
    state = state.join(sampler.begin(model, requests()[4:]))
    while state.live:
        steps(state, 1)
    assert sorted(done) == list(range(len(PROMPTS)))
    for index, row in enumerate(alone):
        same(done[index], row, 1e-7)


def test_selected_rows_and_those_they_came_from_go_on_independently(network: Make) -> None:
    model, sampler = network(size=40), NextTokenSampler(WORDS, CONFIGS[3])
    whole = finish(sampler, model, sampler.begin(model, requests()))
    state = sampler.begin(model, requests())
    sampler.step(model, state)
    part = state.select([5, 1])
    first = finish(sampler, model, part)
    rest = finish(sampler, model, state)
    assert sorted(first) == [1, 5] and len(rest) >= len(PROMPTS) - 1
    for index, row in [*first.items(), *rest.items()]:
        same(row, whole[index], 1e-7)


def test_a_step_decodes_once_and_finished_rows_leave_the_cache(network: Make) -> None:
    model, sampler = network(size=40), NextTokenSampler(WORDS, CONFIGS[0])
    batches: list[int] = []
    decode = model.decode
    model.decode = lambda tokens, cache: batches.append(len(tokens)) or decode(tokens, cache)  # type: ignore[method-assign, func-returns-value]
    state = sampler.begin(model, requests())
    while state.live:
        before = len(batches)
        rows = sampler.step(model, state).rows
        assert state.live == sum(not row.final for row in rows)
        assert batches[before:] == ([state.live] if state.live else [])
        assert isinstance(state.context, Cached)
        assert state.context.cache.lengths == (state.canvases.length_B).tolist()
    assert sampler.step(model, state).rows == []


def test_snapshots_never_change_later(network: Make) -> None:
    model, sampler = network(size=40), NextTokenSampler(WORDS, CONFIGS[1])
    state = sampler.begin(model, requests())
    taken: list[tuple[Row, list[int]]] = []
    while state.live:
        snapshot = sampler.step(model, state)
        taken += [(row, row.tokens.tolist()) for row in snapshot.rows]
        assert all(max(row.committed_at) == snapshot.step for row in snapshot.rows)
    assert all(row.tokens.tolist() == tokens for row, tokens in taken)
    with pytest.raises(ValueError, match="read-only"):
        taken[0][0].tokens[0] = 1


def table_model(logits: Sequence[float]) -> LogitsModel:
    """Every next token from one distribution."""
    return LogitsModel(lambda batch: torch.tensor(logits, dtype=torch.float64).expand(len(batch.tokens_T), -1))


def test_draws_follow_the_model_and_confidence_is_its_probability(vocabulary: Vocabulary) -> None:
    logits = [0.5, 1.5, -0.5, 9.0, 0.0, 9.0, 9.0, 9.0, 9.0]  # specials high: they are never drawn all the same
    model, sampler = table_model(logits), NextTokenSampler(vocabulary, NextTokenSamplerConfig())
    state = sampler.begin(model, [Request(np.array([3]), 1, seed) for seed in range(20_000)])
    rows = sampler.step(model, state).rows
    p = torch.tensor(logits, dtype=torch.float64)[[0, 1, 2, 4]].softmax(-1)
    drawn = np.array([row.tokens[1] for row in rows])
    counts = np.bincount(drawn, minlength=9)
    assert counts[[3, 5, 6, 7, 8]].sum() == 0
    assert chisquare(counts[[0, 1, 2, 4]], p.numpy() * 20_000).pvalue > 1e-3
    probability = dict(zip([0, 1, 2, 4], p.tolist(), strict=True))
    assert all(abs(row.confidence[1] - probability[int(row.tokens[1])]) < 1e-6 and row.confidence[0] == 1 for row in rows[:100])


def test_successive_draws_of_a_row_are_independent(vocabulary: Vocabulary) -> None:
    model = table_model([0.0, 0.0, 0.0] + [-50.0] * 6)
    sampler = NextTokenSampler(vocabulary, NextTokenSamplerConfig())
    rows = finish(sampler, model, sampler.begin(model, [Request(np.array([3]), 3, seed) for seed in range(9_000)])).values()
    triples = np.bincount([int(np.dot(row.tokens[1:], [9, 3, 1])) for row in rows], minlength=27)
    assert chisquare(triples).pvalue > 1e-3


def test_confidence_is_untempered(vocabulary: Vocabulary) -> None:
    logits = [2.0, 1.0, 0.0] + [-50.0] * 6
    sampler = NextTokenSampler(vocabulary, NextTokenSamplerConfig(temperature=0.1, top_k=1))
    model = table_model(logits)
    (row,) = sampler.step(model, sampler.begin(model, [Request(np.array([3]), 1)])).rows
    assert row.tokens.tolist() == [3, 0]
    assert row.confidence[1] == pytest.approx(float(torch.tensor(logits).softmax(-1)[0]), rel=1e-6)


def test_the_repetition_penalty_sees_the_prompt_and_what_was_drawn(vocabulary: Vocabulary) -> None:
    config = NextTokenSamplerConfig(temperature=0.0, repetition_penalty=2.0)
    model, sampler = table_model([2.0, 1.5, 0.9] + [-50.0] * 6), NextTokenSampler(vocabulary, config)
    done = finish(sampler, model, sampler.begin(model, [Request(np.array(p), 3) for p in ([3], [3, 0])]))
    # Halved once, 0 has 1 and 1 has 0.75: 2 never leads, and 0 comes back when 1 was said.
    assert [done[i].tokens.tolist() for i in range(2)] == [[3, 0, 1, 0], [3, 0, 1, 0, 0]]


def test_rows_end_at_the_end_token_the_length_or_a_stop(vocabulary: Vocabulary) -> None:
    # After n tokens the next is script[n]: 0, 1, 2, 0, end.
    script = [9, 0, 1, 2, 0, 4]

    def model(batch: Packed) -> torch.Tensor:
        following = torch.tensor(script)[(batch.positions_T + 1).clamp(max=5)]
        return torch.nn.functional.one_hot(following, 9).double() * 50

    network = LogitsModel(model)
    sampler = NextTokenSampler(vocabulary, NextTokenSamplerConfig(temperature=0.0))
    done = finish(sampler, network, sampler.begin(network, [Request(np.array([3]), n) for n in (2, 9, 5)]))
    assert [done[i].tokens.tolist() for i in range(3)] == [[3, 0, 1], [3, 0, 1, 2, 0, 4], [3, 0, 1, 2, 0, 4]]
    asked: list[list[int]] = []

    def stop(new: np.ndarray) -> bool:
        asked.append(new.tolist())
        return new[-1] == 2

    sampler = NextTokenSampler(vocabulary, NextTokenSamplerConfig(temperature=0.0), stop)
    done = finish(sampler, network, sampler.begin(network, [Request(np.array([3, 0]), 9)]))
    assert done[0].tokens.tolist() == [3, 0, 1, 2]
    assert asked == [[1], [1, 2]]
    assert done[0].committed_at.tolist() == [0, 0, 1, 2]


def test_requests_that_ask_for_nothing_are_refused(network: Make) -> None:
    model, sampler = network(size=40), NextTokenSampler(WORDS, NextTokenSamplerConfig())
    with pytest.raises(UserError, match=r"^sampler\.length: got 0"):
        sampler.begin(model, [Request(np.array([34]), 0)])
    with pytest.raises(ValueError, match="start token"):
        sampler.begin(model, [Request(np.array([], dtype=np.int64), 4)])


def test_tokens_are_counted_as_the_network_gets_them(network: Make) -> None:
    model, sampler = network(size=40), NextTokenSampler(WORDS, NextTokenSamplerConfig())
    seen: list[int] = []
    twin = LogitsModel(lambda batch: (seen.append(len(batch.tokens_T)), model.head(model(batch)))[1])
    together = finish(sampler, model, sampler.begin(model, requests()[:3]))
    for index, row in together.items():
        seen.clear()
        plain = finish(sampler, twin, sampler.begin(twin, [requests()[index]]))[0]
        new = int((row.committed_at > 0).sum())
        assert row.evaluations == plain.evaluations == new == len(seen)
        assert (plain.computed, plain.reused) == (sum(seen), 0)
        assert row.computed == len(row.tokens) - 1 and row.computed + row.reused == plain.computed, "every token is seen, computed or not"
