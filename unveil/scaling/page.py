"""What a fit found: rows for the terminal, and one self-contained page with the figures."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path

from unveil.scaling import figures
from unveil.scaling.figures import BEYOND
from unveil.scaling.isoflop import IsoFlop
from unveil.scaling.laws import DEEPSEEK
from unveil.scaling.rates import Rates

Row = tuple[str, str]

STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:66rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .9rem .25rem 0;text-align:left;border-bottom:1px solid #e6e6e6}
svg{max-width:100%;height:auto}h2{margin-top:2.2rem}p{max-width:46rem}"""


def isoflop_rows(fit: IsoFlop) -> Iterator[Row]:
    """Name and finding; intervals are 90 %."""
    yield "exponent of M_opt", f"{fit.scale_exponent} (DeepSeek LLM {DEEPSEEK.scale.exponent})"
    yield "exponent of D_opt", f"{fit.token_exponent} (DeepSeek LLM {DEEPSEEK.tokens.exponent})"
    for parabola in fit.parabolas:
        low, high = parabola.band
        best = f"M = {parabola.scale:.3g} ({low:.3g} to {high:.3g} within 0.25 %), D = {parabola.compute / parabola.scale:.3g}"
        yield f"C = {parabola.compute:.2g}", f"{best}, loss {parabola.loss:.4f}, {len(parabola.points)} runs"
    floor = f" + {fit.curve.floor[0]:.3g}" if fit.curve.floor[0] else ""
    yield "loss", f"falls as C^-{fit.loss_exponent}{floor}"
    at = BEYOND * max(fit.computes)
    yield f"a run at C = {at:.2g}", f"{fit.predicted(at)} bits per byte"
    yield from (("left out", line) for line in fit.left_out)
    yield from _unfinished(fit.sweep.unfinished)


def rate_rows(fit: Rates) -> Iterator[Row]:
    yield "exponent of lr", f"{fit.lr_exponent} (DeepSeek LLM {DEEPSEEK.lr.exponent})"
    yield "exponent of batch", f"{fit.batch_exponent} (DeepSeek LLM {DEEPSEEK.batch.exponent})"
    for grid in fit.grids:
        best = f"lr {grid.best.lr:.3g}, batch {grid.best.batch:,}, loss {grid.best.loss:.4f}"
        yield f"C = {grid.compute:.2g}", f"{best}; {len(grid.near)} of {len(grid.points)} runs within 0.25 %"
        if grid.edges:
            yield "at the edge", f"C = {grid.compute:.2g}: {grid.edges}"
    yield from _unfinished(fit.sweep.unfinished)


def write(profiles: Sequence[IsoFlop], rates: Sequence[Rates], path: Path) -> None:
    """One HTML file that needs no other."""
    parts = []
    if profiles:
        note = "Dots are runs, stars the minima, thick bars what lies within 0.25 % of them."
        parts += [
            _figure("Loss at equal compute", note, figures.profiles(profiles)),
            _figure("The best model and its data", "Shaded: 90 % intervals.", figures.optima(profiles)),
            _figure("Loss against compute", "At the best M. Dotted: beyond what was measured.", figures.losses(profiles)),
        ]
    for fit in rates:
        title = f"Learning rate and batch: {fit.sweep.name}"
        parts.append(_figure(title, "Rings are within 0.25 % of the least loss.", figures.grids(fit)))
    if rates:
        parts.append(_figure("Learning rate and batch against compute", "All near-optimal runs.", figures.rates(rates)))
    tables = [_table(fit.sweep.name, isoflop_rows(fit)) for fit in profiles] + [_table(fit.sweep.name, rate_rows(fit)) for fit in rates]
    lead = "C = M D: M are the FLOPs per token without the vocabulary's, attention included; D the tokens trained on."
    body = "\n".join(["<h1>Scaling laws</h1>", f"<p>{lead}</p>", *tables, *parts])
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Scaling laws</title><style>{STYLE}</style>'
    path.write_text(f"{head}{body}</html>\n", encoding="utf-8")


def _unfinished(names: Sequence[str]) -> Iterator[Row]:
    if names:
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        yield "not finished", f"{shown}: run the sweep again, it goes on"


def _figure(title: str, note: str, svg: str) -> str:
    return f"<h2>{html.escape(title)}</h2><p>{html.escape(note)}</p>{svg}"


def _table(title: str, rows: Iterator[Row]) -> str:
    cells = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
    return f"<h2>{html.escape(title)}</h2><table>{cells}</table>"
