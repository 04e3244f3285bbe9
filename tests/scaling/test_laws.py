"""The laws against the numbers of the papers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unveil.errors import UserError
from unveil.scaling.laws import CHINCHILLA, DEEPSEEK, PowerLaw, dumps, fit_power_law, law, near_optimal


@pytest.mark.parametrize(
    ("compute", "lr", "batch"),
    [(8.456e22, 4.246e-4, 9.22e6), (9.946e23, 3.12e-4, 2.065e7), (1e17, 2.34e-3, 1.06e5)],
    ids=["7B", "67B", "1e17"],
)
def test_learning_rate_and_batch_of_the_papers_models(compute: float, lr: float, batch: float) -> None:
    assert DEEPSEEK.lr(compute) == pytest.approx(lr, rel=3e-3) and DEEPSEEK.batch(compute) == pytest.approx(batch, rel=4e-3)


def test_model_and_data_multiply_to_the_budget() -> None:
    assert DEEPSEEK.scale(1e17) == pytest.approx(1.40e8, rel=5e-3) and DEEPSEEK.tokens(1e17) == pytest.approx(7.12e8, rel=5e-3)
    for compute in (1e17, 1e20, 1e24):
        assert DEEPSEEK.scale(compute) * DEEPSEEK.tokens(compute) == pytest.approx(compute, rel=2e-3)
        assert CHINCHILLA.scale(compute) * CHINCHILLA.tokens(compute) == pytest.approx(compute)


def test_chinchilla_at_gophers_budget() -> None:
    """67 B parameters and 1.5 T tokens (Hoffmann et al. 2022, table 3, approach 1)."""
    assert CHINCHILLA.scale(5.76e23) / 6 == pytest.approx(67e9, rel=0.05) and CHINCHILLA.tokens(5.76e23) == pytest.approx(1.5e12, rel=0.1)


def test_how_far_outside_its_range_a_law_is_asked() -> None:
    assert [DEEPSEEK.scale.beyond(c) for c in (1e16, 1e18, 3e21)] == pytest.approx([10, 1, 10])


def test_a_power_law_is_found_exactly() -> None:
    exact = PowerLaw(0.3, -0.7, 1e3, 1e6)
    found = fit_power_law([1e3, 1e4, 1e6], [exact(c) for c in (1e3, 1e4, 1e6)])
    assert (found.factor, found.exponent, found.low, found.high) == pytest.approx((0.3, -0.7, 1e3, 1e6))
    with pytest.raises(ValueError, match="two budgets"):
        fit_power_law([1e3, 1e3], [1, 2])


def test_a_quarter_of_a_percent_is_near_optimal() -> None:
    assert near_optimal([2.0, 2.0049, 2.0051, 1.9999999]).tolist() == [True, True, False, True]
    assert np.flatnonzero(near_optimal([3.0, 1.0])).tolist() == [1]


def test_a_fitted_law_says_its_part_and_others_the_rest(tmp_path: Path) -> None:
    mine, rates = tmp_path / "law.json", tmp_path / "rates.json"
    mine.write_text(dumps("mine", {"scale": PowerLaw(2.0, 0.4, 1.0, 9.0)}))
    rates.write_text(dumps("rates", {"lr": PowerLaw(1.0, -0.2, 1.0, 9.0)}))
    found = law(f"{mine},{rates}")
    assert found.scale == PowerLaw(2.0, 0.4, 1.0, 9.0) and found.lr.exponent == -0.2 and found.batch == DEEPSEEK.batch
    assert law("chinchilla") == CHINCHILLA
    mine.write_text('{"source": "x", "scale": {"factor": 1}}')
    for name, said in ((str(mine), "damaged"), ("nobody", "no law")):
        with pytest.raises(UserError, match=said):
            law(name)
