"""Heat maps as small pictures, one pixel a cell, that the page stretches; words and numbers are HTML around them."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np

from unveil.data.png import png
from unveil.family import HeatMap
from unveil.report.chart import Tick, short, ticks

LEAST, EVEN, MOST = np.array([(37, 78, 160), (240, 238, 232), (196, 88, 12)], dtype=np.float64)
"""Colours of 0, 1 and ``FULL``; the page's legend has the same."""
FULL = 2.0


@dataclass(frozen=True)
class Panel:
    name: str
    rows: int
    picture: str
    """A PNG file in base64."""


@dataclass(frozen=True)
class Heat:
    title: str
    note: str
    panels: list[Panel]
    x_label: str
    y_label: str
    x_ticks: list[Tick]


def draw(view: HeatMap) -> Heat:
    """Colour the cells and place the ticks under their columns."""
    low, high = min(view.x), max(view.x)
    placed = [Tick(round(100 * (v - low) / (high - low), 2) if high > low else 50.0, short(v)) for v in ticks(low, high, 4)]
    panels = [Panel(name, len(rows), _picture(np.asarray(rows, dtype=np.float64))) for name, rows in view.panels.items()]
    return Heat(view.title, view.note, panels, view.x_label, view.y_label, placed)


def _picture(values: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> str:
    below, above = np.clip(values, 0.0, 1.0)[..., None], np.clip((values - 1.0) / (FULL - 1.0), 0.0, 1.0)[..., None]
    pixels = LEAST + (EVEN - LEAST) * below + (MOST - EVEN) * above
    return base64.b64encode(png(np.rint(pixels).astype(np.uint8))).decode()
