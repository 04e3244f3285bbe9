"""Conversations from rows to packs: what is told, what is learned, what is scored, and what does not fit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from unveil.autoregressive.family import Autoregressive
from unveil.config import (
    BlockConfig,
    MaskedConfig,
    MaskedSamplerConfig,
    NextTokenConfig,
    NextTokenSamplerConfig,
    SourceConfig,
    TextDataConfig,
    TokenizerConfig,
    TransformerConfig,
)
from unveil.data import chats
from unveil.data.held_out import held_out
from unveil.data.loader import Loader
from unveil.data.shards import prepare
from unveil.data.tokenizer import Tokenizer
from unveil.discrete.family import Discrete
from unveil.errors import UserError
from unveil.evaluation.likelihood import held_out_bits
from unveil.nn.head import LogitsModel
from unveil.nn.packed import Packed
from unveil.text.chat import PlainTemplate

MODEL = TransformerConfig(width=16, depth=1, heads=2, init="normal", init_std=0.3)
TWO = [("Hi?", "Yes."), ("Why?", "Because é.")]


def talk(*turns: tuple[str, str], system: str = "") -> dict[str, Any]:
    spoken = [{"role": role, "content": text} for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)]
    return {"messages": [{"role": "system", "content": system}] * bool(system) + spoken}


def rows(count: int = 120, turns: int = 3) -> list[dict[str, Any]]:
    return [talk((f"Say {i}", str(i) * (1 + i % 5)), *TWO[: i % turns]) for i in range(count)]


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., TextDataConfig]:
    def make(found: list[dict[str, Any]], **more: Any) -> TextDataConfig:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        path.write_text("\n".join(map(json.dumps, found)), encoding="utf-8")
        settings = {"context": 128, "packing_length": 256, "validation": 0.2, "tokenizer": TokenizerConfig(kind="bytes")} | more
        return TextDataConfig(sources=(SourceConfig(kind="chat", path=str(path)),), cache=str(tmp_path / "cache"), **settings)

    return make


def autoregressive(tokenizer: Tokenizer) -> Autoregressive:
    return Autoregressive(tokenizer.vocabulary, MODEL, NextTokenConfig(fim_rate=0.0), NextTokenSamplerConfig())


def discrete(tokenizer: Tokenizer, kind: Any = MaskedConfig, **more: Any) -> Discrete:
    return Discrete(tokenizer.vocabulary, MODEL, kind(random_length=0.0, **more), MaskedSamplerConfig())


def test_a_row_in_tokens_is_its_text_and_the_spans_are_the_answers() -> None:
    tokenizer = Tokenizer.train(TokenizerConfig(kind="bytes"), [])
    data = chats.canonical(talk(*TWO), "chat", "x:1")
    found = chats.encode(data, "x:1", tokenizer, PlainTemplate(), 128)
    assert found is not None and not found.shortened
    text = "User: Hi?\nAssistant: Yes.\nUser: Why?\nAssistant: Because é.\n"
    assert tokenizer.decode(found.tokens) == text == chats.text_of(data, "x:1", PlainTemplate()).decode()
    learned = [(tokenizer.decode(found.tokens[a:b]), tokenizer.decode(found.tokens[b:c]), size) for a, b, c, size in found.spans.tolist()]
    assert learned == [(" Yes.", "\n", 4), (" Because é.", "\n", 11)]
    assert found.source_bytes == len("Hi?Yes.Why?Because é.".encode())


def test_a_prompt_and_a_response_are_a_conversation() -> None:
    assert chats.canonical({"prompt": "Hi?", "response": "Yes."}, "chat", "") == chats.canonical(talk(TWO[0]), "chat", "")


def test_a_start_token_that_the_text_spells_is_not_doubled() -> None:
    made = Tokenizer.train(TokenizerConfig(kind="bytes"), [])
    start = made.name(made.vocabulary.start)
    for opens in (True, False):
        tokenizer = Tokenizer(made._backend, made.vocabulary, opens)
        assert chats.opening(tokenizer, "ab").tolist() == [97, 98]
        spelled = chats.opening(tokenizer, start + "ab").tolist()
        assert spelled == ([97, 98] if opens else [made.vocabulary.start, 97, 98])


def test_too_long_a_conversation_loses_its_oldest_turns_or_is_left_out_and_both_are_counted(config: Any) -> None:
    long = talk(("x" * 60, "old"), ("short?", "new"), system="S")
    hopeless = talk(("a", "b"), ("y" * 90, "z" * 90))
    data = prepare(config([*rows(turns=1), long, long, hopeless], context=64, split="document", validation=0.0))
    assert (data.shortened, data.dropped) == (2, 1)
    (store,) = data.splits["train"]
    texts = [data.tokenizer.decode(store.tokens(i)) for i in range(len(store))]
    assert texts.count("System: S\nUser: short?\nAssistant: new\n") == 2 and not any("zz" in text or "old" in text for text in texts)
    assert max(store.lengths) + 2 <= 64
    again = prepare(config([*rows(turns=1), long, long, hopeless], context=64, split="document", validation=0.0))
    assert (again.shortened, again.dropped) == (2, 1)
    with pytest.raises(UserError, match=r"data\.validation: 0\.01 holds out conversations of which none fits"):
        prepare(config([*rows(4, turns=1), *[hopeless] * 400], context=64, validation=0.01))
    with pytest.raises(UserError, match=r"data\.context: 8 tokens hold none"):
        prepare(config(rows(), context=8, packing_length=8, validation=0.0))


def learned(batch: Any, noise: Any, tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Of every sequence the whole text and what of it is learned, specials written out."""
    parts = zip(batch.split(), batch.split(noise["given"]), strict=True)
    return [(tokenizer.decode(t.tolist(), specials=True), tokenizer.decode(t[~g].tolist(), specials=True)) for t, g in parts]


def test_an_autoregressive_family_learns_every_answer_and_a_masked_one_the_last_it_sees(config: Any) -> None:
    chosen = config(rows())
    data = prepare(chosen)
    turns: dict[str, set[str]] = {"ar": set(), "masked": set()}
    for name, kind in (("ar", autoregressive(data.tokenizer)), ("masked", discrete(data.tokenizer))):
        for batch, noise in islice(Loader(data, chosen, 0, kind), 40):
            for text, part in learned(batch, noise, data.tokenizer):
                assert text.startswith("<|start|>User: Say ") and text.endswith("\n<|end|>")
                spoken = text.removesuffix("<|end|>").split("Assistant:")[1:]
                said = [answer.split("User:")[0] for answer in spoken]
                assert part == ("".join(said) if name == "ar" else said[-1]) + "<|end|>"
                turns[name].add(f"{len(said)}")
    assert turns["ar"] == turns["masked"] == {"1", "2", "3"}


def test_end_padding_is_learned_and_no_length_of_it_is_strange(config: Any) -> None:
    chosen = config(rows())
    data = prepare(chosen)
    lengths = []
    for batch, noise in islice(Loader(data, chosen, 0, discrete(data.tokenizer, end_padding=120)), 60):
        for text, part in learned(batch, noise, data.tokenizer):
            assert text.endswith(part) and part.endswith("<|end|>")
        lengths += batch.lengths
    assert 110 < max(lengths) <= 120 and len(set(lengths)) > 50


def test_packs_of_conversations_resume_and_do_not_depend_on_ranks(config: Any) -> None:
    chosen = config(rows())
    data = prepare(chosen)

    def seen(loader: Loader, count: int) -> list[Any]:
        return [(b.tokens_T.tolist(), n["given"].tolist(), n["u"].tolist()) for b, n in islice(loader, count)]

    kind = discrete(data.tokenizer, end_padding=64)
    straight = seen(Loader(data, chosen, 0, kind), 12)
    loader = Loader(data, chosen, 0, kind)
    seen(loader, 5)
    again = Loader(data, chosen, 0, kind)
    again.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    assert seen(again, 7) == straight[5:]
    assert [seen(Loader(data, chosen, 0, kind, rank, 2), 3) for rank in (0, 1)] == [straight[0:6:2], straight[1:6:2]]


def test_conversations_and_text_are_mixed(config: Any, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("plain words. " * 400)
    chosen = config(rows())
    text = SourceConfig(kind="text", path=str(tmp_path / "text.txt"))
    chosen = TextDataConfig(**{**vars(chosen), "sources": (*chosen.sources, text), "validation": 0.0})
    data = prepare(chosen)
    told = {
        text.startswith("<|start|>User"): part != text
        for batch, noise in islice(Loader(data, chosen, 0, autoregressive(data.tokenizer)), 20)
        for text, part in learned(batch, noise, data.tokenizer)
    }
    assert told == {True: True, False: False}


def running(batch: Packed) -> torch.Tensor:
    """Logits that depend on every token so far, and on nothing else."""
    seen = torch.cat([part.double().mul(0.37).sin().cumsum(0) for part in batch.split()])
    return torch.sin(seen[:, None] * torch.arange(1, 263))


def test_held_out_answers_are_scored_alone_given_all_before_them(config: Any) -> None:
    """In float64 the answers' nats, each in a sequence of its own, are those of one pass over the whole conversation."""
    chosen = config(rows())
    data = prepare(chosen)
    (store,) = data.splits["validation"]
    kind, model, start = autoregressive(data.tokenizer), LogitsModel(running), data.tokenizer.vocabulary.start
    batches = list(held_out(data, chosen, "validation", 0, kind))
    said = [
        data.tokenizer.decode(part[at].tolist())
        for scored in batches
        for part, at in zip(scored.packed.split(), scored.packed.split(scored.content_T), strict=True)
    ]
    spans = [(i, a, b) for i in range(len(store)) for a, b, _, _ in store.spans(i).tolist()]
    assert sorted(said) == sorted(data.tokenizer.decode(store.tokens(i)[a:b]) for i, a, b in spans)
    bits, nats = held_out_bits(kind, model, batches), 0.0
    for i in range(len(store)):
        ids = torch.tensor([start, *store.tokens(i).tolist()])
        counted = torch.zeros(len(ids), dtype=torch.bool)
        for a, b, _, _ in store.spans(i).tolist():
            counted[1 + a : 1 + b] = True
        nats -= float(kind.log_likelihood(model, Packed.of([ids]), 1, 0, counted)[0])
    assert bits.bytes == (size := sum(len(text.strip().encode()) for text in said))
    assert bits.content == pytest.approx(nats / math.log(2) / size, rel=1e-12)
    assert bits.sequences == len(said) and bits.ending > 0


@pytest.mark.parametrize("kind", [MaskedConfig, BlockConfig])
def test_a_discrete_family_scores_an_answer_with_its_prompt_clean(config: Any, kind: Any) -> None:
    chosen = config(rows(), validation=0.1)
    data = prepare(chosen)
    family = discrete(data.tokenizer, kind, end_padding=96)
    told = next(iter(held_out(data, chosen, "validation", 0, family)))
    assert told.given_T is not None
    start, end = data.tokenizer.vocabulary.start, data.tokenizer.vocabulary.end
    for tokens, content, given in zip(told.packed.split(), told.packed.split(told.content_T), told.packed.split(told.given_T), strict=True):
        assert bool(given[0]) and int(tokens[0]) == start and len(tokens) == 96
        assert not bool((content & given).any()) and bool((tokens[~given & ~content] != start).all())
        assert int((tokens[~given] == end).sum()) == int((~given).sum()) - int(content.sum()) - 1, "a newline closes the turn"
    assert math.isfinite(held_out_bits(family, family.build(), [told], 2).content)


@pytest.mark.parametrize("kind", ["chat", "preference"])
def test_a_conversation_fits_to_the_last_token(kind: str) -> None:
    """With the start token before it and an end token after it; of a pair the longer answer decides."""
    tokenizer = Tokenizer.train(TokenizerConfig(kind="bytes"), [])
    row = talk(("Hi?", "Yes.")) if kind == "chat" else {"prompt": "Hi?", "chosen": "No", "rejected": "Yes."}
    data = chats.canonical(row, kind, "x:1")
    room = 1 + len("User: Hi?\nAssistant: Yes.\n") + 1
    found = chats.encode(data, "x:1", tokenizer, PlainTemplate(), room)
    assert found is not None and chats.encode(data, "x:1", tokenizer, PlainTemplate(), room - 1) is None
    said = [tokenizer.decode(found.tokens[a:c]) for a, _, c, _ in found.spans.tolist()]
    assert said == ([" Yes.\n"] if kind == "chat" else [" No\n", " Yes.\n"])
    assert found.source_bytes == (7 if kind == "chat" else 9)
