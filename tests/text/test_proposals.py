from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from unveil.config import NextTokenSamplerConfig
from unveil.errors import UserError
from unveil.text import proposals

HALVES = torch.tensor([[0.125, 0.5, 0.25, 0.125]], dtype=torch.float64).log()
"""Probabilities whose sums are exact in binary."""


def kept(logits_BV: torch.Tensor) -> list[int]:
    return torch.isfinite(logits_BV[0]).nonzero()[:, 0].tolist()


@pytest.mark.parametrize(("p", "tokens"), [(0.3, [1]), (0.5, [1]), (0.51, [1, 2]), (0.75, [1, 2]), (0.76, [0, 1, 2]), (0.9, [0, 1, 2, 3])])
def test_top_p_keeps_the_token_that_crosses(p: float, tokens: list[int]) -> None:
    assert kept(proposals.top_p(HALVES, p)) == tokens


def test_top_p_is_the_smallest_set_that_reaches_p_row_by_row() -> None:
    logits = torch.randn(50, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for row, cut in zip(logits.softmax(-1), proposals.top_p(logits, 0.8), strict=True):
        nucleus = row[torch.isfinite(cut)]
        assert nucleus.sum() >= 0.8 > nucleus.sum() - nucleus.min()
        assert nucleus.min() > row[~torch.isfinite(cut)].max()


@pytest.mark.parametrize(("k", "tokens"), [(1, [1]), (2, [1, 2]), (3, [0, 1, 2, 3]), (9, [0, 1, 2, 3])])
def test_top_k_keeps_k_and_ties(k: int, tokens: list[int]) -> None:
    assert kept(proposals.top_k(HALVES, k)) == tokens


@pytest.mark.parametrize(("p", "tokens"), [(0.2, [0, 1, 2, 3]), (0.3, [1, 2]), (0.49, [1, 2]), (0.6, [1]), (1.0, [1])])
def test_min_p_is_relative_to_the_most_probable(p: float, tokens: list[int]) -> None:
    assert kept(proposals.min_p(HALVES, p)) == tokens


def test_repetition_penalty_lowers_positive_and_negative_logits_alike() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert proposals.repetition_penalty(logits, seen, 2.0).tolist() == [[1.0, -4.0, 2.0, -2.0]]


def test_forbidden_tokens_get_no_probability_and_the_rest_keeps_its_ratios() -> None:
    p = proposals.forbid(HALVES, torch.tensor([1, 3])).softmax(-1)
    assert torch.allclose(p, torch.tensor([[1 / 3, 0, 2 / 3, 0]], dtype=torch.float64))


def test_temperature_comes_before_the_nucleus() -> None:
    # At temperature 1/2 the probabilities are squared: 16/22 for the first already reaches 0.7, which 0.5 does not.
    assert kept(proposals.propose(HALVES, NextTokenSamplerConfig(temperature=0.5, top_p=0.7))) == [1]
    assert kept(proposals.propose(HALVES, NextTokenSamplerConfig(temperature=1.0, top_p=0.7))) == [1, 2]


def test_temperature_scales_log_odds() -> None:
    scaled = proposals.propose(HALVES.float(), NextTokenSamplerConfig(temperature=2.0))
    assert scaled.dtype == torch.float64
    assert float(scaled[0, 1] - scaled[0, 2]) == pytest.approx(math.log(2) / 2, rel=1e-6)


def test_temperature_zero_ignores_truncation_but_not_the_penalty() -> None:
    config = NextTokenSamplerConfig(temperature=0.0, top_k=1, top_p=0.1, min_p=0.9, repetition_penalty=100.0)
    seen = torch.tensor([[False, True, False, False]])
    assert proposals.propose(HALVES, config, seen).argmax().item() == 2


SETTINGS = [NextTokenSamplerConfig(), NextTokenSamplerConfig(temperature=0.6), NextTokenSamplerConfig(temperature=1.5, top_k=4)]


@pytest.mark.parametrize("config", SETTINGS)
def test_inverse_cdf_follows_softmax(config: NextTokenSamplerConfig) -> None:
    logits = proposals.propose(torch.tensor([[0.3, -1.0, 2.0, 0.0, 1.2, -0.4]]), config)
    uniforms = torch.from_numpy(np.random.default_rng(1).random(40_000))
    counts = proposals.inverse_cdf(logits.expand(40_000, -1), uniforms).bincount(minlength=6).double()
    expected = logits[0].softmax(-1) * 40_000
    assert counts[expected == 0].sum() == 0
    assert chisquare(counts[expected > 0].numpy(), expected[expected > 0].numpy()).pvalue > 1e-3


def test_inverse_cdf_at_the_edges_stays_on_tokens_with_probability() -> None:
    uniforms = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    for seed in range(200):
        logits = torch.randn(1, 37, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        logits[:, [0, 1, 35, 36]] = -math.inf
        assert proposals.inverse_cdf(logits.expand(2, -1), uniforms).tolist() == [2, 34]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("temperature", math.nan),
    ],
)
def test_a_setting_outside_its_range_is_named(field: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"^sampler\.{field}: got "):
        proposals.check(NextTokenSamplerConfig(**{field: value}))
