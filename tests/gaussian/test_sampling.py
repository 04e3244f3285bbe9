"""The sampler section as a grid."""

from __future__ import annotations

import math

import pytest

from unveil.config import GaussianSamplerConfig
from unveil.errors import UserError
from unveil.gaussian.grid import karras, trailing
from unveil.gaussian.path import DDPM, EDM, RectifiedFlow
from unveil.gaussian.sampling import grid_of


def test_a_shift_multiplies_every_noise_level() -> None:
    plain, shifted = (grid_of(GaussianSamplerConfig(steps=5, shift=shift), RectifiedFlow()) for shift in (1.0, 3.0))
    assert shifted.times == plain.times
    for a, b in zip(shifted.instants[1:-1], plain.instants[1:-1], strict=True):
        assert math.isclose(a.n, 3.0 * b.n, rel_tol=1e-12)


@pytest.mark.parametrize("path", ["rectified-flow", "trigonometric"])
def test_another_path_begins_where_the_network_was_trained(path: str) -> None:
    """There they have no signal at all, which a network that was trained to n = 80 cannot answer."""
    grid = grid_of(GaussianSamplerConfig(steps=5, path=path), EDM())  # type: ignore[arg-type]
    levels = [instant.n for instant in grid.instants[:-1]]
    assert levels == pytest.approx([i.n for i in karras(EDM(), 5, n_min=levels[-1]).instants[:-1]])
    assert levels[-1] >= EDM().t_min


def test_a_grid_of_ones_own_choice_is_left_alone() -> None:
    grid = grid_of(GaussianSamplerConfig(steps=5, path="rectified-flow", grid="uniform"), EDM())
    assert math.isinf(grid.instants[0].n)
    assert grid_of(GaussianSamplerConfig(steps=5), DDPM()) == trailing(DDPM(), 5)
    with pytest.raises(UserError, match=r"sampler\.rho"):
        grid_of(GaussianSamplerConfig(steps=5, rho=3.0), DDPM())
