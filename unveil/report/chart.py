"""Curves and bars as HTML and inline SVG that follow the page's colours and its width.

The SVG holds lines only and is stretched; words and numbers are HTML around it, so that they keep their size on a narrow screen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Series = tuple[str, Sequence[float], Sequence[float]]
"""A line: its name, x and y."""
POINTS = 240
"""Points kept per line: more than the pixels can tell apart only makes the page heavier."""


@dataclass(frozen=True)
class Tick:
    at: float
    """Place along the axis, percent from its origin."""
    label: str


@dataclass(frozen=True)
class Line:
    name: str
    path: str
    """SVG path in a box of 100 x 100, y downwards."""
    points: list[tuple[float, float, float, float]]
    """(x percent, y percent from the bottom, x, y) for the readout under the pointer."""


@dataclass(frozen=True)
class Chart:
    title: str
    x_label: str
    y_label: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


@dataclass(frozen=True)
class Bar:
    name: str
    value: float
    width: float
    """Percent of the longest bar."""
    kind: str
    """``run-0``, ``run-1``, ... for the runs of the page, ``base`` for a baseline."""
    note: str = ""
    error: float = 0.0


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers from ``low`` to ``high``: steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number in at most four significant digits, with k, M, G or T for the thousands."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


def smooth(values: Sequence[float], share: float = 0.04) -> list[float]:
    """A centred mean over a window of ``share`` of the values (at least one), shorter at both ends."""
    half = int(len(values) * share / 2)
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    means: list[float] = ((sums[high] - sums[low]) / (high - low)).tolist()
    return means


def decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten from ``low`` to ``high``; the powers alone where these would be more than eight."""
    powers = [10.0**k for k in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    found = [m * power for power in powers for m in (1, 2, 5) if low * (1 - 1e-9) <= m * power <= high * (1 + 1e-9)]
    return found if len(found) <= 8 else [power for power in powers if low <= power <= high]


def draw(title: str, series: Sequence[Series], x_label: str = "", y_label: str = "", log_x: bool = False) -> Chart | None:
    """Place the lines in the box; points that are not finite are left out. None where no point is left.

    ``log_x``: equal ratios of x, all above 0, stand equally far apart.
    """
    finite = [(name, _finite(x, y)) for name, x, y in series]
    finite = [(name, points) for name, points in finite if points]
    if not finite:
        return None
    xs, ys = zip(*(point for _, points in finite for point in points), strict=True)
    x_low, x_high, y_low, y_high = min(xs), max(xs), min(ys), max(ys)
    y_ticks = ticks(y_low - 0.05 * (y_high - y_low), y_high + 0.05 * (y_high - y_low))
    y_low, y_high = min(y_low, *y_ticks), max(y_high, *y_ticks)

    def place(value: float, low: float, high: float) -> float:
        return round(100 * (value - low) / (high - low), 2) if high > low else 50.0

    def across(x: float) -> float:
        return place(*map(math.log, (x, x_low, x_high))) if log_x else place(x, x_low, x_high)

    lines = []
    for name, points in finite:
        kept = points[:: max(1, math.ceil(len(points) / POINTS))]
        kept = kept if kept[-1] == points[-1] else [*kept, points[-1]]
        placed = [(across(x), place(y, y_low, y_high), x, round(y, 4)) for x, y in kept]
        lines.append(Line(name, "M" + "L".join(f"{a:g} {round(100 - b, 2):g}" for a, b, _, _ in placed), placed))
    return Chart(
        title,
        x_label,
        y_label,
        lines,
        [Tick(across(v), short(v)) for v in (decades(x_low, x_high) if log_x else ticks(x_low, x_high, 4))],
        [Tick(place(v, y_low, y_high), short(v)) for v in y_ticks],
    )


def bars(rows: Sequence[tuple[str, float, str, str, float]], in_order: bool = False) -> list[Bar]:
    """Bars from ``(name, value, kind, note, error)``, the lowest value last unless ``in_order``, as widths relative to the highest.

    An error that is not finite is none.
    """
    finite = [(name, value, kind, note, error if math.isfinite(error) else 0.0) for name, value, kind, note, error in rows]
    top = max((value + error for _, value, _, _, error in finite), default=1.0) or 1.0
    ordered = finite if in_order else sorted(finite, key=lambda row: -row[1])
    return [Bar(name, value, round(100 * value / top, 2), kind, note, error) for name, value, kind, note, error in ordered]


def _finite(x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
    pairs = ((float(a), float(b)) for a, b in zip(x, y, strict=True))
    return [(a, b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
