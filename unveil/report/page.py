"""One self-contained HTML page for a run, or for several side by side.

It asks the network for nothing: style, script, charts and data stand in the file. Everything a model or a person wrote is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from unveil.evaluation.infill import Filling, Gap
from unveil.family import Bars, Curve, HeatMap, ImageGrid, Table, TokenTimeline
from unveil.report import heat
from unveil.report.chart import Bar, Chart, Series, bars, draw, short, smooth
from unveil.report.run import RunReport

FOLDER = Path(__file__).parent
INFILLS_SHOWN = 6
LOAD = "Load of the experts"
LINES_BEFORE, LINES_AFTER = 8, 4
"""Lines of a function shown around its gap."""


@dataclass(frozen=True)
class Uncovering:
    """Timelines of one title over the runs, played on a common axis of steps."""

    title: str
    steps: int
    columns: list[tuple[RunReport, TokenTimeline]]


@dataclass(frozen=True)
class Gallery:
    """Image grids of one title over the runs; those of several sheets share a slider."""

    title: str
    last: int
    """Number of the last sheet."""
    columns: list[tuple[RunReport, ImageGrid]]


@dataclass(frozen=True)
class InfillCard:
    gap: Gap
    before: str
    after: str
    answers: list[tuple[RunReport, Filling]]


def render(runs: Sequence[RunReport], title: str = "", lead: str = "", commands: Sequence[str] = ()) -> str:
    """The page.

    Args:
        title: the headline; the runs' names where empty.
        lead: a sentence or two below it, for a reader who knows nothing of the runs.
        commands: what to try next, shown at the end.

    Raises:
        ValueError: no run is given.
    """
    if not runs:
        raise ValueError("a page needs at least one run")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["short"] = short
    return environment.get_template("page.html.jinja").render(
        title=title or " and ".join(run.name for run in runs),
        lead=lead,
        runs=runs,
        style=_inline("style.css"),
        script=_inline("page.js"),
        bits=list(_bits(runs)),
        shares=_shares(runs),
        sections=_sections(runs),
        galleries=_galleries(runs),
        uncoverings=_uncoverings(runs),
        infills=_infills(runs)[:INFILLS_SHOWN],
        heats=[(run, heat.draw(view)) for run in runs for view in run.evidence.views if isinstance(view, HeatMap)],
        tables=[(run, view) for run in runs for view in run.evidence.views if isinstance(view, Table)],
        costs=_costs(runs),
        commands=commands,
    )


def write(runs: Sequence[RunReport], path: Path, title: str = "", lead: str = "", commands: Sequence[str] = ()) -> Path:
    """Render to a file, made whole before it replaces an older one; returns its path."""
    page = render(runs, title, lead, commands)
    aside = path.with_suffix(".tmp")
    aside.write_text(page, encoding="utf-8")
    return aside.replace(path)


def _inline(name: str) -> Markup:
    return Markup((FOLDER / name).read_text(encoding="utf-8"))


def _bits(runs: Sequence[RunReport]) -> Iterator[tuple[str, list[Bar]]]:
    """A bar chart per held-out text: runs that were scored on other bytes cannot share one."""
    groups: dict[tuple[object, ...], list[RunReport]] = {}
    for run in runs:
        if run.evidence.bits is not None:
            groups.setdefault((run.evidence.bits.bytes, *run.evidence.baselines), []).append(run)
    for members in groups.values():
        rows = []
        for run in members:
            bits = run.evidence.bits
            assert bits is not None
            note = "upper bound" if run.evidence.bound else ""
            rows.append((run.name, bits.content, f"run-{run.index}", note, bits.stderr))
        for score in members[0].evidence.baselines:
            rows.append((score.name, score.primed, "base", "after the training text", 0.0))
            rows.append((score.name, score.alone, "base faint", "alone", 0.0))
        scored = members[0].evidence.bits
        assert scored is not None
        yield f"{scored.bytes:,} bytes of held-out text", bars(rows)


def _shares(runs: Sequence[RunReport]) -> dict[str, list[Bar]]:
    """Bars of one title over the runs, in the order given."""
    found: dict[str, list[tuple[str, float, str, str, float]]] = {}
    for run in runs:
        for view in run.evidence.views:
            if isinstance(view, Bars):
                named = [f"{run.name}: {name}" if len(runs) > 1 else name for name in view.names]
                rows = zip(named, view.values, view.errors, strict=True)
                found.setdefault(view.title, []).extend((name, value, f"run-{run.index}", "", error) for name, value, error in rows)
    return {title: bars(rows, in_order=True) for title, rows in found.items()}


def _sections(runs: Sequence[RunReport]) -> dict[str, list[Chart]]:
    """Charts by heading, "Training" first."""
    found: dict[str, list[Chart]] = {"Training": []}
    for section, chart in _charts(runs):
        if chart is not None:
            found.setdefault(section, []).append(chart)
    return {section: charts for section, charts in found.items() if charts}


def _charts(runs: Sequence[RunReport]) -> Iterator[tuple[str, Chart | None]]:
    for unit, y_label, key, title, score in (
        ("tokens", "nats per token", "eval/bits_per_byte", "Held-out text during training", "bits per byte"),
        ("images", "weighted squared error", "eval/loss", "Held-out images during training", "weighted squared error"),
        ("chunks", "nats per window", "eval/present", "Held-out windows during training", "nats of the present"),
    ):
        counted = [run for run in runs if run.unit == unit]
        losses: list[Series] = [(run.name, run.loss[0], smooth(run.loss[1])) for run in counted]
        yield "Training", draw("Training loss", losses, f"{unit} seen", y_label)
        scores = [(run.name, *run.series(key)) for run in counted]
        yield "Training", draw(title, [s for s in scores if len(s[1]) > 1], f"{unit} seen", score)
    loads = [(run.name, *run.series("load/violation")) for run in runs]
    yield LOAD, draw("Maximal violation, of the worst layer", [s for s in loads if s[1]], "tokens seen", "max load / mean load - 1")
    for run in runs:
        for view in run.evidence.views:
            if isinstance(view, Curve):
                lines = [(name, view.x, y) for name, y in view.y.items()]
                named = f"{run.name}: {view.title}" if len(runs) > 1 else view.title
                yield view.section, draw(named, lines, view.x_label, view.y_label, view.log_x)


def _galleries(runs: Sequence[RunReport]) -> list[Gallery]:
    found: dict[str, list[tuple[RunReport, ImageGrid]]] = {}
    for run in runs:
        for view in run.evidence.views:
            if isinstance(view, ImageGrid):
                found.setdefault(view.title, []).append((run, view))
    return [Gallery(title, max(len(view.sheets) for _, view in columns) - 1, columns) for title, columns in found.items()]


def _uncoverings(runs: Sequence[RunReport]) -> list[Uncovering]:
    found: dict[str, list[tuple[RunReport, TokenTimeline]]] = {}
    for run in runs:
        for view in run.evidence.views:
            if isinstance(view, TokenTimeline):
                found.setdefault(view.title, []).append((run, view))
    return [
        Uncovering(title, max((step for _, view in columns for step in view.committed_at), default=0), columns)
        for title, columns in found.items()
    ]


def _infills(runs: Sequence[RunReport]) -> list[InfillCard]:
    answers: dict[Gap, list[tuple[RunReport, Filling]]] = {}
    for run in runs:
        for filling in run.evidence.fillings:
            answers.setdefault(filling.gap, []).append((run, filling))
    return [InfillCard(gap, *_around(gap), each) for gap, each in answers.items()]


def _around(gap: Gap) -> tuple[str, str]:
    """The lines next to the gap, the rest as an ellipsis."""
    before, after = gap.before.splitlines(keepends=True), gap.after.splitlines(keepends=True)
    head = "…\n" + "".join(before[-LINES_BEFORE:]) if len(before) > LINES_BEFORE else gap.before
    tail = "".join(after[:LINES_AFTER]).rstrip("\n") + "\n…" if len(after) > LINES_AFTER else gap.after
    return head, tail


def _costs(runs: Sequence[RunReport]) -> list[tuple[str, str, list[str]]]:
    """Rows of the table of costs: name, what it means, a value per run; a row that no run knows is left out."""
    named = [run.costs for run in runs]
    keys = {name: meaning for costs in named for name, (meaning, _) in costs.items()}
    return [(name, meaning, [costs[name][1] if name in costs else "" for costs in named]) for name, meaning in keys.items()]
