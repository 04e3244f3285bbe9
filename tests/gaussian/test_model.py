"""The path section as a path."""

from __future__ import annotations

from typing import Any

import pytest

from unveil.config import PathConfig
from unveil.errors import UserError
from unveil.gaussian.model import path_of
from unveil.gaussian.path import DDPM, EDM, VP, RectifiedFlow, Shifted


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"kind": "ddpm", "steps": 100, "beta_min": 0.001, "beta_max": 0.01}, DDPM(steps=100, beta_min=0.001, beta_max=0.01)),
        ({"kind": "ddpm", "table": (0.1, 0.2), "zero_terminal_snr": True}, DDPM(table=(0.1, 0.2), zero_terminal=True)),
        ({"kind": "vp", "beta_max": 12.0}, VP(beta_max=12.0)),
        ({"kind": "edm", "t_min": 0.01, "t_max": 20.0}, EDM(0.01, 20.0)),
        ({"kind": "rectified-flow", "shift": 2.0}, Shifted(RectifiedFlow(), 2.0)),
    ],
    ids=str,
)
def test_settings_that_are_given_are_the_paths(given: dict[str, Any], path: Any) -> None:
    assert path_of(PathConfig(**given)) == path


@pytest.mark.parametrize(
    "given", [{"kind": "edm", "beta_min": 0.1}, {"kind": "ddpm", "t_max": 3.0}, {"kind": "ve", "table": (0.1,)}], ids=str
)
def test_settings_of_another_path_are_refused(given: dict[str, Any]) -> None:
    name = next(key for key in given if key != "kind")
    with pytest.raises(UserError, match=rf"objective\.path\.{name}: the path '{given['kind']}'"):
        path_of(PathConfig(**given))
