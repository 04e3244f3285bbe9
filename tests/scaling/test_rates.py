"""Learning rate and batch: a known law is found again, edges are said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.scaling.made import BASE, write
from unveil.errors import UserError
from unveil.scaling.configure import Choice
from unveil.scaling.laws import DEEPSEEK
from unveil.scaling.rates import fit
from unveil.scaling.runs import read
from unveil.scaling.sweep import lr_batch

BUDGETS = [1e15, 1e16, 1e17]


def bowl(choice: Choice) -> float:
    """Best at twice DeepSeek's learning rate and at half its batch, by the same exponents."""
    lr = np.log(choice.recipe.optimizer.lr / (2 * DEEPSEEK.lr(choice.compute)))
    batch = np.log(2 * choice.batch / DEEPSEEK.batch(choice.compute))
    return float(2.0 + 0.01 * lr**2 + 0.01 * batch**2)


def test_a_known_law_of_learning_rate_and_batch(tmp_path: Path) -> None:
    write(lr_batch(BASE, BUDGETS, [0.5, 1, 2, 4, 8], [0.125, 0.25, 0.5, 1, 2], DEEPSEEK), tmp_path / "grid", bowl)
    found = read(tmp_path / "grid")
    assert not found.varies_model
    rates = fit(found)
    assert rates.lr_exponent.value == pytest.approx(-0.125, abs=1e-3) and rates.batch_exponent.value == pytest.approx(0.3271, abs=0.02)
    assert rates.lr(1e16) == pytest.approx(2 * DEEPSEEK.lr(1e16), rel=0.02)
    assert rates.batch(1e16) == pytest.approx(DEEPSEEK.batch(1e16) / 2, rel=0.05)
    assert all(1 < len(grid.near) < 25 and not grid.edges for grid in rates.grids)
    assert rates.batch_exponent.low < 0.3271 < rates.batch_exponent.high  # whole packs move what is best by less than a step of the grid


def test_with_noise_the_truth_is_in_the_interval(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    choices = lr_batch(BASE, BUDGETS, [0.5, 1, 2, 4, 8], [0.125, 0.25, 0.5, 1, 2], DEEPSEEK)
    write(choices, tmp_path / "grid", lambda choice: bowl(choice) + rng.normal(0.0, 0.004))
    rates = fit(read(tmp_path / "grid"))
    assert rates.lr_exponent.low < -0.125 < rates.lr_exponent.high and rates.batch_exponent.low < 0.3271 < rates.batch_exponent.high


def test_a_best_at_the_edge_is_said_and_one_budget_is_no_law(tmp_path: Path) -> None:
    write(lr_batch(BASE, BUDGETS, [0.25, 0.5, 1], [0.5], DEEPSEEK), tmp_path / "grid", bowl)
    rates = fit(read(tmp_path / "grid"))
    assert all("is the largest tried" in grid.edges and "batch" not in grid.edges for grid in rates.grids)
    # the same multiple is best everywhere, which says no more than that it is best within half a step
    assert rates.lr_exponent.high - rates.lr_exponent.low == pytest.approx(0.2, abs=0.1)
    write(lr_batch(BASE, BUDGETS[:1], [1, 2], [0.5], DEEPSEEK), tmp_path / "one", bowl)
    with pytest.raises(UserError, match="one budget"):
        fit(read(tmp_path / "one"))
