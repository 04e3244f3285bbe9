"""Self-speculation writes what the trunk alone would: the same text at temperature 0, the same law above it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from unveil.autoregressive.drafting import Drafting
from unveil.autoregressive.sampler import NextTokenSampler, State
from unveil.autoregressive.speculative import SpeculativeSampler
from unveil.autoregressive.verify import verify
from unveil.config import LatentConfig, MTPConfig, NextTokenSamplerConfig, TransformerConfig
from unveil.errors import UserError
from unveil.family import Request, Row
from unveil.nn.head import LogitsModel
from unveil.nn.mtp import states_ahead
from unveil.nn.packed import Packed
from unveil.nn.transformer import Transformer
from unveil.text.vocabulary import Vocabulary

Make = Callable[..., Transformer]
WORDS = Vocabulary(size=40, start=34, end=35, mask=36, prefix=37, suffix=38, middle=39)
PROMPTS = ([34], [34, 1, 2, 3, 4, 5, 6, 7, 8], [34, 9], [34, 3, 3, 3], [34], [34, 30, 20, 10, 0])
SMALL = TransformerConfig(width=16, depth=2, heads=2, kv_heads=1, init="normal", init_std=0.3)
NETWORKS = {
    "one": replace(SMALL, mtp=MTPConfig(depths=1)),
    "three": replace(SMALL, mtp=MTPConfig(depths=3)),
    "two, raw": replace(SMALL, mtp=MTPConfig(depths=2, carry="raw")),
    "two, windowed": replace(SMALL, mtp=MTPConfig(depths=2), window=4),
    "two, latent": TransformerConfig(
        width=16, depth=2, heads=2, init="normal", init_std=0.3, mtp=MTPConfig(depths=2),
        latent=LatentConfig(width=12, query=8, plain=6, rotary=4, value=8),
    ),
}  # fmt: skip
WAYS = {
    "greedy": NextTokenSamplerConfig(temperature=0.0),
    "greedy, penalty": NextTokenSamplerConfig(temperature=0.0, repetition_penalty=1.5),
    "drawn": NextTokenSamplerConfig(),
    "all settings": NextTokenSamplerConfig(temperature=1.4, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.2),
}


def taught(model: Transformer) -> Transformer:
    """Depths that are often right, as training makes them: all blocks add little, so that the newest token says most of the next one, and a
    depth hears that token before all."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("attention.out.weight", "feedforward.down.weight")):
                weight *= 0.06
            if name.endswith("project.weight"):
                weight[:] = weight * 0.1 + torch.eye(16, 32)
    return model


def requests(prompts: Sequence[Sequence[int]] = PROMPTS) -> list[Request]:
    return [Request(np.array(p), length=6 + 5 * i % 20, seed=100 - i) for i, p in enumerate(prompts)]


def finish(sampler: NextTokenSampler, model: torch.nn.Module, state: State) -> dict[int, Row]:
    done: dict[int, Row] = {}
    while state.live:
        done.update({row.request: row for row in sampler.step(model, state).rows if row.final})
    return done


def written(model: torch.nn.Module, config: NextTokenSamplerConfig, asked: Sequence[Request]) -> list[Row]:
    sampler = (SpeculativeSampler if config.speculate else NextTokenSampler)(WORDS, config)
    done = finish(sampler, model, sampler.begin(model, asked))
    return [done[i] for i in range(len(asked))]


def same(a: Row, b: Row) -> None:
    assert a.tokens.tolist() == b.tokens.tolist()
    assert np.abs(a.confidence - b.confidence).max() <= 1e-7  # they are float32


@pytest.mark.parametrize(
    ("kind", "way"), [*((kind, "greedy") for kind in NETWORKS), ("three", "greedy, penalty"), ("two, latent", "greedy, penalty")]
)
def test_greedy_text_is_that_of_plain_decoding(network: Make, kind: str, way: str) -> None:
    """In batches of six and alone, over many prompts, with as many drafts as there are depths and with fewer."""
    config = NETWORKS[kind]
    model = taught(network(size=40, config=config))
    rng = np.random.default_rng(0)
    prompts = [[34, *rng.integers(0, 34, n).tolist()] for n in rng.integers(0, 12, 6)]
    asked = requests([*PROMPTS, *prompts])
    plain = written(model, WAYS[way], asked)
    stood = 0
    for drafts in {1, config.mtp.depths}:
        chosen = replace(WAYS[way], speculate=drafts)
        fast = [row for at in range(0, 12, 6) for row in written(model, chosen, asked[at : at + 6])]
        for index, (row, twin) in enumerate(zip(fast, plain, strict=True)):
            same(row, twin)
            stood += row.drafts[0][1]
            new = len(row.tokens) - len(asked[index].tokens)
            assert len(row.drafts) == drafts and row.evaluations <= new
            if index % 3 == 0:
                same(written(model, chosen, asked[index : index + 1])[0], row)
    assert stood > 8  # the test is of something: drafts stand, and fall


@pytest.mark.parametrize("kind", ["one", "three", "two, latent"])
@pytest.mark.parametrize("way", ["drawn", "all settings"])
def test_a_batch_equals_its_rows_alone(network: Make, kind: str, way: str) -> None:
    model, config = taught(network(size=40, config=NETWORKS[kind])), replace(WAYS[way], speculate=NETWORKS[kind].mtp.depths)
    for index, row in enumerate(written(model, config, requests())):
        (alone,) = written(model, config, requests()[index : index + 1])
        same(alone, row)
        assert alone.committed_at.tolist() == row.committed_at.tolist() and alone.drafts == row.drafts


def test_rows_that_join_late_or_move_become_what_they_would_have_been(network: Make) -> None:
    model, config = taught(network(size=40, config=NETWORKS["three"])), replace(WAYS["all settings"], speculate=3)
    sampler, alone, done = SpeculativeSampler(WORDS, config), written(model, config, requests()), {}

    def steps(state: State, count: int) -> None:
        for _ in range(count):
            done.update({row.request: row for row in sampler.step(model, state).rows if row.final})

    state: State = sampler.begin(model, requests()[:2])
    steps(state, 1)
    state = state.join(sampler.begin(model, requests()[2:4]))
    steps(state, 1)
    left = state.select(range(state.live))
    state = state.select(list(reversed(range(state.live))))
    steps(state, 1)
    state = state.join(sampler.begin(model, requests()[4:]))
    while state.live:
        steps(state, 1)
    assert sorted(done) == list(range(len(PROMPTS)))
    for index, row in [*enumerate(alone), *finish(sampler, model, left).items()]:
        same(done[index], row)


@torch.no_grad()
@pytest.mark.parametrize("kind", NETWORKS)
def test_drafts_are_those_of_the_whole_text_read_anew(network: Make, kind: str) -> None:
    """Whatever was accepted and cut back before: caches, window and states against the training form."""
    config = NETWORKS[kind]
    model, depths = network(size=40, config=config), config.mtp.depths
    generator = torch.Generator().manual_seed(3)
    texts = [torch.randint(0, 34, (40,), generator=generator) for _ in range(3)]
    lengths = [1, 7, 3]
    context, _ = Drafting.read(model, [t[:n] for t, n in zip(texts, lengths, strict=True)], 8, depths)
    for accepted in ([0, 0, 0], [depths, 0, 1], [0, depths, depths], [1, 0, 0], [0, 1, 0]):
        rows = np.stack([np.where(np.arange(40) <= n, t.numpy(), 0) for t, n in zip(texts, lengths, strict=True)])
        seen: list[torch.Tensor] = []

        def choose(hidden_BD: torch.Tensor, number: int, seen: list[torch.Tensor] = seen, lengths: list[int] = lengths) -> torch.Tensor:
            seen.append(hidden_BD)
            # the right token where it is to stand, another where it is to fall
            return torch.stack([t[n + number + 1] if number < a else t[n + number + 1] * 0 for t, n, a in zip(texts, lengths, accepted, strict=True)])  # noqa: B023, E501  # fmt: skip

        drafts = context.draft(rows, choose)
        for row, (text, n) in enumerate(zip(texts, lengths, strict=True)):
            whole = Packed.of([torch.cat([text[: n + 1], drafts[row]])])
            for number, hidden_TD in enumerate(states_ahead(model, whole)[1:]):
                torch.testing.assert_close(seen[number][row], hidden_TD[n - 1], rtol=0, atol=1e-11)
        newest = torch.stack([t[n] for t, n in zip(texts, lengths, strict=True)])
        carried, _ = context.extend(torch.cat((newest[:, None], drafts), dim=1))
        context.cut(carried, accepted)
        lengths = [n + 1 + a for n, a in zip(lengths, accepted, strict=True)]
        assert context.cache.lengths == lengths


def test_the_rule_leaves_the_verifiers_law_exactly() -> None:
    """Over a vocabulary of three and two drafts, every outcome enumerated: drafts by q, judged by thresholds, the rest drawn."""
    generator = torch.Generator().manual_seed(0)
    v, k = 3, 2
    # p and q of the first place, of the second given the first, and p of the third given both
    q1, p1 = (torch.rand(v, generator=generator, dtype=torch.float64).softmax(-1) for _ in range(2))
    q2, p2 = ((torch.randn(v, v, generator=generator, dtype=torch.float64) * 2).softmax(-1) for _ in range(2))
    p3 = (torch.randn(v, v, v, generator=generator, dtype=torch.float64) * 2).softmax(-1)
    law = torch.zeros(v, v, dtype=torch.float64)
    """Of the first two tokens that are committed or drawn next."""
    for a, b in itertools.product(range(v), repeat=k):
        p = torch.stack([p1, p2[a], p3[a, b]]).log()[None]
        q = torch.stack([q1, q2[a]]).log()[None]
        stands = (min(1.0, float(p1[a] / q1[a])), min(1.0, float(p2[a, b] / q2[a, b])))
        weight = float(q1[a] * q2[a, b])
        for first, second in itertools.product((True, False), repeat=2):
            # a uniform just inside of where the draft stands, or just outside
            chance, uniforms = 1.0, []
            for stand, share in zip((first, second), stands, strict=True):
                chance *= share if stand else 1 - share
                uniforms.append(share * (1 - 1e-9) if stand else share * (1 + 1e-9))
            if chance == 0:
                continue
            count, logits = verify(p, q, torch.tensor([[a, b]]), torch.tensor([uniforms], dtype=torch.float64))
            assert int(count) == (2 if first and second else 1 if first else 0)
            rest = logits[0].softmax(-1)
            if not first:
                for c in range(v):  # the token in its place, and then plainly
                    law[c] += weight * chance * rest[c] * p2[c]
            elif not second:
                law[a] += weight * chance * rest
            else:
                law[a, b] += weight * chance
    torch.testing.assert_close(law, p1[:, None] * p2, rtol=0, atol=1e-12)


def test_equal_laws_always_stand() -> None:
    p = torch.randn(4, 2, 9, dtype=torch.float64)
    drafts = p[:, :1].argmax(-1)
    count, logits = verify(p, p[:, :1], drafts, torch.full((4, 1), 1 - 1e-12, dtype=torch.float64))
    assert count.tolist() == [1] * 4 and torch.equal(logits, p[:, 1])


@pytest.mark.parametrize("way", ["drawn", "all settings"])
def test_texts_follow_the_law_of_plain_decoding(network: Make, vocabulary: Vocabulary, way: str) -> None:
    """All texts of at most three tokens out of three and the end: their counts against the exact law, and drafts that often fall."""
    model = network(config=replace(SMALL, mtp=MTPConfig(depths=2)))
    config = replace(WAYS[way], speculate=2, top_k=3 if way == "all settings" else 0)
    sampler, law = SpeculativeSampler(vocabulary, config), {}
    plain = NextTokenSampler(vocabulary, replace(config, speculate=0))
    prompt = [3, 1]

    def follow(text: list[int], p: float) -> None:
        if len(text) == 3 or 4 in text:
            law[tuple(text)] = p
            return
        state = plain.begin(model, [Request(np.array(prompt + text), 1)])
        from unveil.text.proposals import propose

        q = propose(state.logits_BV, plain.config, state.seen_BV)[0].double().softmax(-1)
        for token in range(9):
            if q[token] > 0:
                follow([*text, token], p * float(q[token]))

    follow([], 1.0)
    number = 4_000
    done = finish(sampler, model, sampler.begin(model, [Request(np.array(prompt), 3, seed) for seed in range(number)]))
    counts = dict.fromkeys(law, 0)
    for row in done.values():
        counts[tuple(row.tokens[2:].tolist())] += 1
    common = [text for text, p in law.items() if p * number >= 5]
    observed = [counts[t] for t in common] + [number - sum(counts[t] for t in common)]
    expected = [law[t] * number for t in common] + [number * (1 - sum(law[t] for t in common))]
    if expected[-1] < 5:
        rare, few = expected.pop(), observed.pop()
        observed[-1], expected[-1] = observed[-1] + few, expected[-1] + rare
    assert chisquare(observed, expected).pvalue > 1e-3
    tested, stood = np.sum([row.drafts[0] for row in done.values()], axis=0)
    assert 0.1 < stood / tested < 0.95


def test_rows_end_at_the_end_token_the_length_or_a_stop(network: Make) -> None:
    """Also in the middle of drafts that stand: a draft behind the end of a text is none of it."""
    model = taught(network(size=40, config=NETWORKS["three"]))
    config, asked = replace(WAYS["greedy"], speculate=3), [Request(np.array(p), 30) for p in PROMPTS]
    plain = written(model, WAYS["greedy"], asked)

    def stop(new: np.ndarray) -> bool:
        return len(new) >= 2 and bool(new[-1] % 5 == 0)

    texts = [finish(s, model, s.begin(model, asked)) for s in (NextTokenSampler(WORDS, WAYS["greedy"], stop), SpeculativeSampler(WORDS, config, stop))]  # noqa: E501  # fmt: skip
    for index in range(len(PROMPTS)):
        same(texts[0][index], texts[1][index])
    assert any(len(texts[0][i].tokens) < len(plain[i].tokens) for i in range(len(PROMPTS)))
    inside = 0
    for end in sorted({int(token) for row in plain for token in row.tokens[len(row.tokens) - 12 :: 3]})[:10]:
        ending = replace(WORDS, end=end)
        texts = [finish(s, model, s.begin(model, asked)) for s in (NextTokenSampler(ending, WAYS["greedy"]), SpeculativeSampler(ending, config))]  # noqa: E501  # fmt: skip
        for index in range(len(PROMPTS)):
            same(texts[0][index], texts[1][index])
            row = texts[1][index]
            # fewer tokens than its drafts that stood and its own draws: some stood behind the end
            inside += int((row.committed_at > 0).sum()) < row.drafts[0][0] + sum(stood for _, stood in row.drafts)
    assert inside
    for length in range(1, 7):
        for row, twin in zip(written(model, config, [replace(r, length=length) for r in asked]), plain, strict=True):
            assert row.tokens.tolist() == twin.tokens[: len(row.tokens)].tolist()


def test_the_steps_and_passes_of_a_row_are_told(network: Make) -> None:
    model = taught(network(size=40, config=NETWORKS["three"]))
    sampler = SpeculativeSampler(WORDS, replace(WAYS["greedy"], speculate=3))
    passes: list[tuple[int, ...]] = []
    extend = model.extend
    model.extend = lambda tokens, cache: passes.append(tuple(tokens.shape)) or extend(tokens, cache)  # type: ignore[method-assign, func-returns-value]
    state = sampler.begin(model, [Request(np.array([34, 5]), 20)])
    while state.live:
        (row,) = sampler.step(model, state).rows
        assert row.evaluations == len(passes) + 1
        assert row.committed_at.max() == state.steps
        stood = row.drafts
        assert all(b[0] == a[1] for a, b in itertools.pairwise(stood)) and stood[0][0] == len(passes)
    assert set(passes) == {(1, 4)}


@pytest.mark.slow
def test_a_compiled_step_writes_the_same(network: Make) -> None:
    model = taught(network(size=40, config=NETWORKS["one"]))
    plain = written(model, WAYS["greedy"], requests())
    model.compile_decoding("aot_eager")
    rows = written(model, replace(WAYS["greedy"], speculate=1), requests())
    for row, twin in zip(rows, plain, strict=True):
        same(row, twin)
    assert sum(row.drafts[0][1] for row in rows) > 5


def test_a_model_without_depths_does_not_speculate(network: Make) -> None:
    sampler = SpeculativeSampler(WORDS, NextTokenSamplerConfig(speculate=2))
    for model in (network(size=40, config=NETWORKS["one"]), LogitsModel(lambda batch: torch.zeros(len(batch.tokens_T), 40))):
        with pytest.raises(UserError, match=r"^sampler\.speculate: got 2, the model has [01] depths"):
            sampler.begin(model, requests())
