"""The page and its figures: several sweeps in one plot, nothing fetched from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.scaling.made import BASE, bowl, write
from tests.scaling.test_rates import bowl as rates_bowl
from unveil import cli
from unveil.config import DiscreteRecipe
from unveil.scaling.laws import DEEPSEEK, law
from unveil.scaling.sweep import isoflop, lr_batch


def test_two_paradigms_and_a_grid_on_one_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    budgets, masked = [1e14, 3e14, 1e15], DiscreteRecipe(data=BASE.data)
    write(isoflop(BASE, budgets, [0.25, 0.5, 1, 2, 4], DEEPSEEK), tmp_path / "next-token", bowl(0.5, 1))
    write(isoflop(masked, budgets, [0.25, 0.5, 1, 2, 4], DEEPSEEK), tmp_path / "masked", bowl(0.4, 2))
    write(lr_batch(BASE, [1e16, 1e17], [1, 2, 4], [0.25, 0.5, 1], DEEPSEEK), tmp_path / "rates", rates_bowl)
    cli.main(["scaling", "fit", *(str(tmp_path / name) for name in ("next-token", "masked", "rates"))])
    shown = capsys.readouterr().out
    page = (tmp_path / "next-token" / "scaling.html").read_text()
    assert page.count("<svg") == 5 and not re.search(r"<(script|link|img)|url\(http", page)
    for name in ("next-token", "masked", "rates"):
        assert f"<h2>{name}</h2>" in page and name in shown
    assert shown.count("exponent of M_opt") == 2 and shown.count("exponent of lr") == 1
    found = law(f"{tmp_path / 'masked' / 'law.json'},{tmp_path / 'rates' / 'law.json'}")
    assert 0.2 < found.scale.exponent < 0.5 and found.lr(1e17) == pytest.approx(2 * DEEPSEEK.lr(1e17), rel=0.2)
