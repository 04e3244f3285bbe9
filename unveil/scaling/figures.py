"""The paper's figures (DeepSeek LLM, figures 2 to 5) of one sweep or of several in one plot, as SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from unveil.errors import UserError
from unveil.scaling.isoflop import INTERVAL, Array, IsoFlop
from unveil.scaling.laws import DEEPSEEK, PowerLaw
from unveil.scaling.rates import Rates

COLOURS = ("#1b6ca8", "#c8553d", "#2a9d6f", "#8a5fbf", "#b8860b", "#5b6770")
BEYOND = 4.0
"""Laws are drawn this many times beyond the largest budget."""
STYLE = {
    "svg.fonttype": "path",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def profiles(fits: Sequence[IsoFlop]) -> str:
    """Loss against M, a parabola per budget with its minimum and its near-optimal band; a panel per sweep."""
    plt = _pyplot()
    figure, panels = plt.subplots(1, len(fits), figsize=(6.2 * len(fits), 4.2), squeeze=False)
    for axes, fit in zip(panels[0], fits, strict=True):
        shades = plt.get_cmap("viridis")(np.linspace(0.0, 0.85, len(fit.parabolas)))
        for parabola, colour in zip(fit.parabolas, shades, strict=True):
            m = np.array([p.scale for p in parabola.points])
            axes.plot(m, [p.loss for p in parabola.points], "o", color=colour, markersize=5)
            across = np.geomspace(m.min(), m.max(), 100)
            curve = parabola.loss + parabola.bend * np.log(across / parabola.scale) ** 2
            axes.plot(across, curve, color=colour, label=_power(parabola.compute))
            axes.hlines(parabola.loss, *np.clip(parabola.band, m.min(), m.max()), color=colour, linewidth=5, alpha=0.3)
            axes.plot(parabola.scale, parabola.loss, "*", color=colour, markersize=13, markeredgecolor="white")
        axes.set(xscale="log", xlabel="M, non-embedding FLOPs per token", ylabel=_loss(fit), title=fit.sweep.name)
        axes.legend(title="C (FLOPs)")
    return _svg(figure)


def optima(fits: Sequence[IsoFlop]) -> str:
    """M_opt and D_opt against C with their laws and 90 % bands, DeepSeek's beside."""
    plt = _pyplot()
    figure, panels = plt.subplots(1, 2, figsize=(12.4, 4.2))
    for panel, (axes, letter, law) in enumerate(zip(panels, "MD", (DEEPSEEK.scale, DEEPSEEK.tokens), strict=True)):
        for fit, colour in zip(fits, _cycle(), strict=False):
            lines = fit.token_lines if panel else fit.scale_lines
            best = np.exp(fit.log_scale[0])
            values = np.array(fit.computes) / best if panel else best
            exponent = fit.token_exponent if panel else fit.scale_exponent
            label = f"{fit.sweep.name}: {letter} ~ C^{exponent.value:.3f} [{exponent.low:.3f}, {exponent.high:.3f}]"
            _law(axes, fit.computes, values, lines, colour, label)
        _paper(axes, [c for fit in fits for c in fit.computes], law)
        unit = "FLOPs per token" if letter == "M" else "tokens"
        axes.set(xscale="log", yscale="log", xlabel="C (FLOPs)", ylabel=f"{letter} that is best ({unit})")
        axes.legend(fontsize=9)
    return _svg(figure)


def losses(fits: Sequence[IsoFlop]) -> str:
    """The loss at the best M against C, with the curve, its 90 % band and where it leads."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(7.4, 4.4))
    for fit, colour in zip(fits, _cycle(), strict=False):
        across = _across(fit.computes)
        drawn = fit.curve(list(across))
        measured = across <= max(fit.computes)
        axes.plot(across[measured], drawn[0][measured], color=colour, label=fit.sweep.name)
        axes.plot(across[~measured], drawn[0][~measured], color=colour, linestyle=":")
        _band(axes, across, drawn, colour)
        axes.plot(fit.computes, [p.loss for p in fit.parabolas], "o", color=colour, markersize=5)
    axes.set(xscale="log", xlabel="C (FLOPs)", ylabel=_loss(*fits))
    axes.legend()
    return _svg(figure)


def grids(rates: Rates) -> str:
    """Loss by learning rate and batch, a panel per budget: darker dots are better; rings are near-optimal."""
    plt = _pyplot()
    count = len(rates.grids)
    figure, panels = plt.subplots(1, count, figsize=(max(4.4 * count, 6.4), 3.8), squeeze=False)
    for axes, grid in zip(panels[0], rates.grids, strict=True):
        loss = np.array([p.loss for p in grid.points])
        beyond = 100 * (loss / loss.min() - 1)
        lr, batch = np.array([p.lr for p in grid.points]), np.array([p.batch for p in grid.points])
        drawn = axes.scatter(lr, batch, c=np.minimum(beyond, 10.0), cmap="viridis", s=170, vmin=0, vmax=10)
        axes.plot([p.lr for p in grid.near], [p.batch for p in grid.near], "o", markersize=17, fillstyle="none", color=COLOURS[1])
        axes.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="batch (tokens)", title=_power(grid.compute))
        axes.minorticks_off()
        axes.set_xticks(sorted(set(lr)), [f"{value:.1e}".replace("e-0", "e-") for value in sorted(set(lr))], fontsize=8)
        axes.set_yticks(sorted(set(batch)), [f"{value:,}" for value in sorted(set(batch))], fontsize=8)
        axes.margins(0.2)
        figure.colorbar(drawn, ax=axes, label="% above the least loss")
    return _svg(figure)


def rates(fits: Sequence[Rates]) -> str:
    """Near-optimal learning rates and batches against C with their laws, DeepSeek's beside."""
    plt = _pyplot()
    figure, panels = plt.subplots(1, 2, figsize=(12.4, 4.2))
    for axes, key, law in zip(panels, ("lr", "batch"), (DEEPSEEK.lr, DEEPSEEK.batch), strict=True):
        for fit, colour in zip(fits, _cycle(), strict=False):
            near = [(grid.compute, getattr(p, key)) for grid in fit.grids for p in grid.near]
            exponent = fit.lr_exponent if key == "lr" else fit.batch_exponent
            label = f"{fit.sweep.name}: C^{exponent.value:.3f} [{exponent.low:.3f}, {exponent.high:.3f}]"
            lines = fit.lr_lines if key == "lr" else fit.batch_lines
            _law(axes, [c for c, _ in near], np.array([v for _, v in near]), lines, colour, label)
        _paper(axes, [grid.compute for fit in fits for grid in fit.grids], law)
        axes.set(xscale="log", yscale="log", xlabel="C (FLOPs)", ylabel="learning rate" if key == "lr" else "batch (tokens)")
        axes.legend(fontsize=9)
    return _svg(figure)


def _law(axes: Any, computes: Sequence[float], values: Array, lines: Array, colour: str, label: str) -> None:
    across = _across(computes)
    drawn = np.exp(lines[:, :1] * np.log(across) + lines[:, 1:])
    axes.plot(across, drawn[0], color=colour, label=label)
    _band(axes, across, drawn, colour)
    axes.plot(computes, values, "o", color=colour, markersize=5)


def _band(axes: Any, across: Array, drawn: Array, colour: str) -> None:
    if len(drawn) > 2:
        axes.fill_between(across, *np.percentile(drawn[1:], INTERVAL, axis=0), color=colour, alpha=0.15, linewidth=0)


def _paper(axes: Any, computes: Sequence[float], law: PowerLaw) -> None:
    across = _across(computes)
    axes.plot(across, [law(c) for c in across], "--", color="#888888", linewidth=1, label=f"DeepSeek LLM: C^{law.exponent:.3f}")


def _across(computes: Sequence[float]) -> Array:
    return np.geomspace(min(computes), BEYOND * max(computes), 120)


def _cycle() -> list[str]:
    return list(COLOURS) * 8


def _power(value: float) -> str:
    return f"{value:.2g}".replace("e+", "e")


def _loss(*fits: IsoFlop) -> str:
    bound = any(fit.sweep.family != "autoregressive" for fit in fits)
    return "held-out bits per byte" + (" (diffusion: at most)" if bound else "")


def _svg(figure: Any) -> str:
    """The drawing without the XML head, to stand in a page."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    _pyplot().close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise UserError("matplotlib", "is not installed, it draws the figures", "pip install 'unveil[images]'") from None
    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(STYLE)
    return plt
