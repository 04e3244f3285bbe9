"""Points in the plane as pictures: scattered, with arrows, with paths over a density."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from unveil.errors import UserError

PLANE = (2, 1, 1)
"""The shape of a point where images have channels, height and width."""
POINTS_SHOWN = 2000
"""Drawn in one picture."""
FRAME = 1.3
"""The pictures show the coordinates between this and its negative."""
SIDE = 416
"""Pixels of a square picture, as wide as a page shows one."""
INK, REAL, MADE = "#20222a", "#c2681a", "#4353b8"

Array = np.ndarray[Any, Any]


def scatter(points: Array, colour: str = MADE) -> Array:
    """Points ``[N, 2]`` (or of that size) as uint8 ``[SIDE, SIDE, 3]``."""
    return _drawn([lambda axes: _dots(axes, points, colour)])


def beside(real: Array, made: Array) -> Array:
    """Real points on the left and generated ones on the right."""

    def panel(points: Array, colour: str, name: str) -> Callable[[Any], None]:
        def draw(axes: Any) -> None:
            _dots(axes, points, colour)
            axes.text(0.03, 0.97, name, transform=axes.transAxes, va="top", fontsize=9, color=INK)

        return draw

    return _drawn([panel(real, REAL, "held-out points"), panel(made, MADE, "generated")])


def field(noisy: Array, at: Array, arrows: Array) -> Array:
    """A vector field: ``arrows`` ``[M, 2]`` at places ``[M, 2]`` over points as they are at this noise level. Their colour is their length;
    they are drawn as long as they are up to the distance to the next, and so long where they are longer."""

    def draw(axes: Any) -> None:
        _dots(axes, noisy, REAL, size=6)
        length = np.linalg.norm(arrows, axis=1, keepdims=True)
        longest = 0.9 * 2 * FRAME / (len(at) ** 0.5 - 1)
        shown = arrows * np.minimum(1, longest / np.maximum(length, 1e-9))
        axes.quiver(
            *at.T,
            *shown.T,
            np.log10(length[:, 0] + 1e-3),
            cmap="viridis_r",
            clim=(-2, 0.3),
            angles="xy",
            scale_units="xy",
            scale=1,
            width=0.004,
        )

    return _drawn([draw])


def paths(tracks: Array, density: Array) -> Array:
    """Tracks ``[T, N, 2]`` from noise (dots) to data (rings) over a density ``[K, K]`` of the frame, rows upwards."""

    def draw(axes: Any) -> None:
        colours = importlib.import_module("matplotlib.colors").LinearSegmentedColormap.from_list("density", ["#ffffff", "#f0c9a2", REAL])
        axes.imshow(density, origin="lower", extent=(-FRAME, FRAME, -FRAME, FRAME), cmap=colours, interpolation="bilinear")
        for track in tracks.transpose(1, 0, 2):
            axes.plot(*track.T, color=MADE, linewidth=0.8, alpha=0.75)
        axes.scatter(*tracks[0].T, s=7, color=INK, linewidths=0, zorder=3)
        axes.scatter(*tracks[-1].T, s=16, facecolors="white", edgecolors=MADE, linewidths=1, zorder=3)

    return _drawn([draw])


def raster(points: Array, side: int = 64) -> Array:
    """How many points fall on each of side x side pixels, the brighter the more, uint8 ``[side, side, 1]``; for a terminal."""
    edges = np.linspace(-FRAME, FRAME, side + 1)
    x, y = points.reshape(-1, 2).T
    counts, _, _ = np.histogram2d(x, y, bins=[edges, edges])
    bright = 255 * np.sqrt(counts / max(counts.max(), 1))
    return bright.T[::-1, :, None].astype(np.uint8)


def require() -> None:
    """Raises UserError where matplotlib is not installed."""
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        raise UserError("matplotlib", "is not installed, and it draws points", "pip install 'unveil[images]'") from None


def _dots(axes: Any, points: Array, colour: str, size: float = 3) -> None:
    axes.scatter(*points.reshape(-1, 2)[:POINTS_SHOWN].T, s=size, color=colour, alpha=0.5, linewidths=0)


def _drawn(panels: Sequence[Callable[[Any], None]]) -> Array:
    """Square panels side by side, uint8 ``[SIDE, N SIDE, 3]``."""
    require()
    figures, agg = (importlib.import_module(f"matplotlib.{name}") for name in ("figure", "backends.backend_agg"))
    figure = figures.Figure(figsize=(len(panels) * SIDE / 100, SIDE / 100), dpi=100, layout="constrained")
    canvas = agg.FigureCanvasAgg(figure)
    for axes, draw in zip(np.ravel(figure.subplots(1, len(panels))), panels, strict=True):
        draw(axes)
        axes.set(xlim=(-FRAME, FRAME), ylim=(-FRAME, FRAME), aspect="equal", xticks=(-1, 0, 1), yticks=(-1, 0, 1))
        axes.tick_params(labelsize=7, length=2, colors="#646876")
        for spine in axes.spines.values():
            spine.set_color("#e3e1da")
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]
