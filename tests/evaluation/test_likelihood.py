from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unveil.data.loader import Scored
from unveil.evaluation.likelihood import held_out_bits
from unveil.nn.packed import Packed

START, END = 510, 511


class Scripted:
    """A family whose log-likelihood of a token is a function of its id, with an error per sequence that is told."""

    def __init__(self, cost: Callable[[Tensor], Tensor], error: float = 0.0) -> None:
        self.cost, self.error = cost, error

    def log_likelihood(self, model: nn.Module, batch: Packed, draws: int, seed: int, counted_T: Tensor) -> tuple[Tensor, Tensor]:
        assert not model.training
        losses_T = torch.where(counted_T, self.cost(batch.tokens_T.double()), 0.0)
        return torch.stack([-part.sum() for part in batch.split(losses_T)]), torch.full((len(batch.lengths),), self.error).double()


def held_out(*pieces: tuple[list[int], bool, int]) -> Scored:
    batch = Packed.of([torch.tensor([START, *ids] + [END] * ends) for ids, ends, _ in pieces])
    content_T = (batch.tokens_T != START) & (batch.tokens_T != END)
    return Scored(batch, content_T, torch.tensor([size for *_, size in pieces]))


def score(family: Any, *batches: Any) -> Any:
    return held_out_bits(family, nn.Identity(), batches)


def test_a_uniform_model_costs_log_v_per_token() -> None:
    uniform = Scripted(lambda ids: torch.full_like(ids, math.log(512)))
    bits = score(uniform, held_out(([1, 2, 3], True, 7), ([4], False, 2)), held_out(([5, 6], True, 6)))
    assert bits.content == pytest.approx(9 * 6 / 15, rel=1e-12)
    assert bits.ending == pytest.approx(9, rel=1e-12)
    assert (bits.tokens, bits.bytes, bits.sequences) == (6, 15, 3)
    assert bits.nats_per_token == pytest.approx(math.log(512), rel=1e-12)
    assert bits.draws_stderr == 0


def test_the_end_costs_apart_from_the_content() -> None:
    dear = Scripted(lambda ids: torch.where(ids == END, 100.0, 1.0))
    bits = score(dear, held_out(([1, 2], True, 2), ([3], False, 1)))
    assert bits.content == pytest.approx(1 / math.log(2))
    assert bits.ending == pytest.approx(100 / math.log(2))
    assert math.isnan(score(dear, held_out(([1, 2], False, 2))).ending)


def test_standard_error_is_that_of_the_ratio() -> None:
    # costs 1, 2, 6 nats over 1, 2, 3 bytes: ratio 9/6, residuals -0.5, -1, 1.5
    by_id = Scripted(lambda ids: ids)
    bits = score(by_id, held_out(([1], False, 1), ([2], False, 2), ([6], False, 3)))
    assert bits.stderr == pytest.approx(math.sqrt((0.25 + 1 + 2.25) * 3 / 2) / 6 / math.log(2))
    same = score(Scripted(torch.ones_like), held_out(([1, 2], False, 2), ([6], False, 1)))
    assert same.stderr == pytest.approx(0, abs=1e-12)


def test_errors_of_the_draws_add_in_squares() -> None:
    bits = score(Scripted(torch.ones_like, error=0.3), held_out(([1], False, 4), ([2], False, 4)))
    assert bits.draws_stderr == pytest.approx(0.3 * math.sqrt(2) / 8 / math.log(2))
    assert math.isnan(score(Scripted(torch.ones_like, error=math.nan), held_out(([1], False, 4))).draws_stderr)


def test_the_model_is_left_in_the_mode_it_was_in() -> None:
    model = nn.Identity().train()
    held_out_bits(Scripted(torch.ones_like), model, [held_out(([1], False, 4))])
    assert model.training


def test_nothing_to_score() -> None:
    with pytest.raises(ValueError, match="no held-out bytes"):
        score(Scripted(torch.ones_like))
