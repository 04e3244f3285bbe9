"""Perplexity under a judge and unigram entropy, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from unveil.evaluation.generative import perplexity, unigram_entropy
from unveil.nn.packed import Packed

END = 0


class Even:
    """A judge to whom every token costs log V."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary, self.packs = vocabulary, 0

    def log_likelihood(self, model: nn.Module, batch: Packed, draws: int, seed: int, counted_T: object = None) -> tuple[torch.Tensor, ...]:
        self.packs += 1
        lengths = torch.tensor(batch.lengths, dtype=torch.float64)
        return -(lengths - 1) * math.log(self.vocabulary), torch.zeros(len(lengths))


def texts(*rows: list[int]) -> list[torch.Tensor]:
    return [torch.tensor(row) for row in rows]


def test_an_even_judge_is_as_perplexed_as_its_vocabulary_is_large() -> None:
    judge = Even(7)
    assert perplexity(judge, nn.Linear(1, 1), texts(*[[1, 2, 3, 4]] * 20, [1, 5]), END) == pytest.approx(7)
    assert judge.packs == 2


def test_what_follows_the_end_is_not_read() -> None:
    class Costly(Even):
        def log_likelihood(self, model, batch, draws, seed, counted_T=None):  # type: ignore[no-untyped-def]
            assert END not in batch.tokens_T[1:].tolist()
            return super().log_likelihood(model, batch, draws, seed)

    assert perplexity(Costly(5), nn.Linear(1, 1), texts([1, 2, END, 9, 9]), END) == pytest.approx(5)
    assert unigram_entropy(texts([1, 2, 3, END, 9, 9, 9]), END) == pytest.approx(math.log(2))


def test_entropy_of_one_word_is_nought_and_of_k_even_words_log_k() -> None:
    assert unigram_entropy(texts([1, 2, 2, 2]), END) == 0
    assert unigram_entropy(texts([1, 2, 3, 4, 5, 2, 3, 4, 5]), END) == pytest.approx(math.log(4))
    assert unigram_entropy(texts([1, 2, 2], [1, 2, 3]), END) == pytest.approx(math.log(2) / 2)


def test_where_start_and_end_are_one_the_first_token_is_the_start() -> None:
    assert unigram_entropy(texts([END, 2, 3, END, 9]), END) == pytest.approx(math.log(2))


def test_nothing_written_is_not_a_number() -> None:
    assert math.isnan(perplexity(Even(5), nn.Linear(1, 1), texts([1, END]), END))
    assert math.isnan(unigram_entropy(texts([1, END]), END))
