"""Features of the noise level, and the vector of all that a network is told."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from unveil.config import ConditionConfig
from unveil.nn.timestep import Condition, Fourier, sinusoids

LEVELS = torch.tensor([-1.5, 0.0, 0.3, 977.0])


def told(config: ConditionConfig) -> Condition:
    torch.manual_seed(0)
    condition = Condition(config, 8, 6).double()
    for p in condition.parameters():
        torch.nn.init.normal_(p)
    return condition


def ask(condition: Condition, classes: Tensor | None = None, embedding: Tensor | None = None, augmentation: Tensor | None = None) -> Tensor:
    return condition(LEVELS, torch.float64, classes, embedding, augmentation)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_sinusoids_are_geometric_from_1_to_one_ten_thousandth(shift: float) -> None:
    found = sinusoids(LEVELS, 8, shift).double()
    for k in range(4):
        angle = LEVELS.double() * 10000 ** (-k / (4 - shift))
        torch.testing.assert_close(found[:, [k, k + 4]], torch.stack((angle.cos(), angle.sin()), 1), rtol=0, atol=1e-4)
    torch.testing.assert_close(sinusoids(LEVELS, 8, shift, cosine_first=False), found.float().roll(4, 1), rtol=0, atol=0)


def test_sinusoids_do_not_depend_on_the_dtype() -> None:
    assert torch.equal(sinusoids(LEVELS, 8), sinusoids(LEVELS.double(), 8))


def test_fourier_features_repeat_after_one_over_the_frequency() -> None:
    fourier = Fourier(16, scale=2.0).double()
    period = 1 / fourier.frequencies
    shifted = fourier.forward(LEVELS[1] + period).diagonal(), fourier.forward(LEVELS[1] + period)[:, 8:].diagonal()
    torch.testing.assert_close(shifted, (torch.ones(8).double(), torch.zeros(8).double()), rtol=0, atol=1e-9)
    torch.manual_seed(0)
    assert Fourier(20000, scale=2.0).frequencies.std() == pytest.approx(2.0, rel=0.03)


def test_frequencies_are_kept_with_the_weights() -> None:
    assert "fourier.frequencies" in told(ConditionConfig(level="fourier")).state_dict()


def test_no_class_is_the_null_class() -> None:
    condition = told(ConditionConfig(classes=3))
    assert torch.equal(ask(condition), ask(condition, torch.full((4,), 3)))
    assert not torch.equal(ask(condition), ask(condition, torch.full((4,), 2)))


def test_no_embedding_and_no_augmentation_are_zeros() -> None:
    condition = told(ConditionConfig(embedding=5, augmentation=2))
    zeros = ask(condition, None, torch.zeros(4, 5), torch.zeros(4, 2))
    assert torch.equal(ask(condition), zeros)
    assert not torch.equal(zeros, ask(condition, None, torch.ones(4, 5)))
    assert not torch.equal(zeros, ask(condition, None, None, torch.ones(4, 2)))


def test_conditions_add_up() -> None:
    condition = told(ConditionConfig(classes=3, embedding=5))
    none, some = torch.full((4,), 3), torch.arange(4) % 3
    e = torch.randn(4, 5)
    both = ask(condition, some, e) - ask(condition, none)
    torch.testing.assert_close(both, ask(condition, some) + ask(condition, none, e) - 2 * ask(condition, none), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("config", "given", "match"),
    [
        (ConditionConfig(), {"classes": torch.zeros(4, dtype=torch.int64)}, "knows no classes"),
        (ConditionConfig(), {"embedding": torch.zeros(4, 5)}, "takes no embedding"),
        (ConditionConfig(), {"augmentation": torch.zeros(4, 5)}, "takes no augmentation"),
        (ConditionConfig(classes=3, null_class=False), {}, "no null class"),
    ],
)
def test_what_it_does_not_know_is_refused(config: ConditionConfig, given: dict[str, Tensor], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        ask(told(config), **given)


def test_the_mlp_is_between_the_features_and_the_rest() -> None:
    condition = told(ConditionConfig())
    features = sinusoids(LEVELS, 8).double()
    hidden = features @ condition.enter.weight.T + condition.enter.bias
    hidden = hidden / (1 + torch.exp(-hidden))
    torch.testing.assert_close(ask(condition), hidden @ condition.leave.weight.T + condition.leave.bias, rtol=0, atol=1e-12)
    assert math.prod(ask(condition).shape) == 24
