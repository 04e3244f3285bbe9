"""Points as pictures: what is where."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from unveil import plane
from unveil.errors import UserError

CORNER = np.tile([[1.0, 1.0]], (200, 1))


def ink(picture: Any) -> Any:
    """Where it is not white, within the frame."""
    return (picture[8:-24, 30:-8] < 240).any(-1)


def test_points_are_drawn_where_they_are() -> None:
    picture = plane.scatter(CORNER.reshape(-1, 2, 1, 1))
    assert picture.shape == (plane.SIDE, plane.SIDE, 3) and picture.dtype == np.uint8
    rows, columns = np.nonzero(ink(plane.scatter(CORNER)) & ~ink(plane.scatter(-CORNER)))
    assert len(rows) and rows.max() < plane.SIDE / 4 and columns.min() > plane.SIDE / 2
    both = plane.beside(CORNER, -CORNER)
    assert both.shape == (plane.SIDE, 2 * plane.SIDE, 3)


def test_a_field_points_along_its_arrows() -> None:
    at = np.stack(np.meshgrid([-1.0, 0, 1], [-1.0, 0, 1]), -1).reshape(-1, 2)
    right = plane.field(CORNER, at, np.tile([[0.2, 0.0]], (9, 1)))
    long = plane.field(CORNER, at, np.tile([[50.0, 0.0]], (9, 1)))
    pictures = (plane.field(CORNER, at, np.zeros((9, 2)) + 1e-3), right, long)
    # by colour: the grey frame does not stand on the same pixel everywhere
    widths = [(np.ptp(picture, axis=-1) > 60).any(0).sum() for picture in pictures]
    assert widths[0] < widths[1] < widths[2]


def test_paths_end_over_their_density() -> None:
    density = np.zeros((8, 8))
    density[6:, 6:] = 1.0
    tracks = np.linspace([[-1.0, -1.0]], [[1.0, 1.0]], 20)
    picture, bare = plane.paths(tracks, density), plane.paths(tracks[-1:], density)
    assert ink(picture).sum() > ink(bare).sum() and ink(bare)[:100, 300:].mean() > 0.5 > ink(bare)[200:, :150].mean()


def test_a_terminal_gets_few_pixels() -> None:
    small = plane.raster(np.concatenate([CORNER, -CORNER[:1]]), 13)
    assert small.shape == (13, 13, 1) and small[1, 11, 0] == 255 and 0 < small[11, 1, 0] < 255 and (small > 0).sum() == 2


def test_without_matplotlib_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(UserError, match=r"matplotlib.*pip install 'unveil\[images\]'"):
        plane.scatter(CORNER)
