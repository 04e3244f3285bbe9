"""Pairs as questions, lines to choose from, ranks with ties, errors with documents taken together."""

from __future__ import annotations

import math

import numpy as np
import pytest

from unveil.config import TokenizerConfig
from unveil.data.tokenizer import Tokenizer
from unveil.evaluation import reversal
from unveil.evaluation.reversal import AS_NEXT, BY_BAYES, FILLED, NEXT, Mean, Pair, Question, Way, others, pairs, rank

TOKENIZER = Tokenizer.train(TokenizerConfig(kind="bytes"), [])
START, MASK = TOKENIZER.vocabulary.start, TOKENIZER.vocabulary.mask


def test_pairs_are_neighbouring_lines_of_one_document() -> None:
    assert pairs(["a\nb\n\nc\n", "", "d", "e\nf"]) == [Pair(0, "a", "b"), Pair(0, "b", "c"), Pair(3, "e", "f")]


@pytest.mark.parametrize(
    ("way", "text", "told", "prompt"),
    [
        (NEXT, "ab\nxyz", "ab\n", "ab\n"),
        (FILLED, "ab\nxyz", "\nxyz", ""),
        (AS_NEXT, "xyz\nab", "xyz\n", "xyz\n"),
        (BY_BAYES, "ab\nxyz", "", ""),
    ],
)
def test_a_question_lays_its_lines_as_it_is_asked(way: Way, text: str, told: str, prompt: str) -> None:
    question = Question(Pair(0, "ab", "xyz"), way, TOKENIZER)
    asked = question.scored(question.truth, 7)
    assert asked.sample_id == 7 and asked.tokens[0] == START and TOKENIZER.decode(asked.tokens) == text
    assert asked.given[0] and TOKENIZER.decode(asked.tokens[asked.given]) == told
    continued = question.request(False, 3)
    assert (TOKENIZER.decode(continued.tokens), continued.length, continued.seed) == (prompt, len(question.truth), 3)
    gap = question.request(True, 3)
    assert gap.length == 0 and (gap.tokens == MASK).sum() == len(question.truth)
    assert np.array_equal(np.flatnonzero(gap.tokens == MASK), np.arange(len(gap.tokens))[question.place])
    assert question.answered(asked.tokens) and not question.answered(gap.tokens) and not question.answered(asked.tokens[:-1][:2])


def test_lines_to_choose_from_are_alike_and_of_other_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reversal, "CHOICES", 4)
    pool = [Pair(n // 2, f"{n % 7}a", "b" * (1 + n % 2)) for n in range(12)] + [Pair(9, "longer", "b")]
    found = others(pool, 0, len, 0)
    assert found[-1] is None and all(found[:-1])
    for pair, lines in zip(pool[:-1], found[:-1], strict=True):
        own = {other.first for other in pool if other.document == pair.document}
        assert lines is not None and len(set(lines)) == 3 and pair.first not in lines
        assert all(any(line == other.first and other.document != pair.document for other in pool) for line in lines), own
    assert others(pool, 0, len, 0) == found != others(pool, 0, len, 1)
    assert all(lines is None for lines in others(pool, 1, len, 0)), "one other line of each length is too few"


def test_equal_scores_share_their_places() -> None:
    assert rank([3.0, 1.0, 2.0]) == 1 and rank([1.0, 2.0, 3.0]) == 3 and rank([0.0] * 50) == 25.5 and rank([-math.inf, -math.inf, 0]) == 2.5


def test_errors_take_a_documents_pairs_together() -> None:
    values = np.random.default_rng(0).normal(size=40)
    alone = Mean.of(values.tolist(), range(40))
    assert alone.value == pytest.approx(values.mean()) and alone.stderr == pytest.approx(values.std(ddof=1) / math.sqrt(40))
    thrice = Mean.of(np.repeat(values, 3).tolist(), np.repeat(np.arange(40), 3).tolist())
    assert thrice == pytest.approx(alone), "saying a thing three times makes it no surer"
    assert math.isnan(Mean.of([1.0, 2.0], [5, 5]).stderr) and math.isnan(Mean.of([], []).value)
