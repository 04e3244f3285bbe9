"""Budgets to recipes that load, whose network has the M that was asked for."""

from __future__ import annotations

import math
import tomllib
from dataclasses import replace

import pytest

from unveil import recipe as recipes
from unveil.config import AutoregressiveRecipe, OptimizerConfig, TransformerConfig
from unveil.errors import UserError
from unveil.scaling.configure import configure, for_budget, within
from unveil.scaling.cost import network_cost
from unveil.scaling.laws import DEEPSEEK


@pytest.mark.parametrize("scale", [3e6, 1.4e8, 4.2e10])
def test_a_network_of_the_scale_that_was_asked_for(scale: float) -> None:
    found = configure(TransformerConfig(), scale, 512)
    assert network_cost(found, 512, 0).scale == pytest.approx(scale, rel=0.06)
    assert 1 / 3 < found.depth / (math.sqrt(found.width) / 2.4) < 3 and found.width % (2 * found.heads) == 0


def test_the_ratios_of_the_network_stay() -> None:
    found = configure(TransformerConfig(width=256, heads=4, kv_heads=1, hidden=1024), 1e9, 256)
    assert found.kv_heads and found.heads >= 4 * found.kv_heads and found.heads % found.kv_heads == 0 and found.hidden == 4 * found.width


def test_a_budget_is_spent_by_the_law() -> None:
    base = AutoregressiveRecipe(optimizer=OptimizerConfig(kind="muon", lr=1.0))
    choice = for_budget(base, 1e17, DEEPSEEK)
    assert choice.scale * choice.tokens == pytest.approx(1e17, rel=1e-3) and choice.scale == pytest.approx(DEEPSEEK.scale(1e17), rel=0.06)
    assert choice.batch == pytest.approx(DEEPSEEK.batch(1e17), rel=0.01)
    assert (choice.recipe.optimizer.kind, choice.recipe.optimizer.lr) == ("adamw", DEEPSEEK.lr(1e17))
    assert recipes.parse(tomllib.loads(recipes.dumps(choice.recipe))) == choice.recipe


def test_multiples_of_the_law_and_packs_no_larger_than_a_batch() -> None:
    base = AutoregressiveRecipe()
    plain, other = for_budget(base, 1e14, DEEPSEEK), for_budget(base, 1e14, DEEPSEEK, lr=2.0, batch=0.1)
    assert other.recipe.optimizer.lr == pytest.approx(2 * plain.recipe.optimizer.lr)
    assert other.batch == other.recipe.data.packing_length == round(0.1 * DEEPSEEK.batch(1e14)) and other.recipe.training.packs == 1


def test_a_time_is_spent_with_the_vocabulary_in_it() -> None:
    assert within(1e15, lambda c: c + 50 * c**0.75) == pytest.approx(1e15 - 50 * within(1e15, lambda c: c + 50 * c**0.75) ** 0.75, rel=1e-6)


def test_a_budget_that_nothing_meets() -> None:
    base = AutoregressiveRecipe()
    with pytest.raises(UserError, match="no network has M"):
        for_budget(base, 1e8, DEEPSEEK)
    with pytest.raises(UserError, match="0 steps"):
        for_budget(replace(base, data=replace(base.data, context=2048)), 1e9, DEEPSEEK, scale=1e7)
