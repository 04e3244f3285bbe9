"""What `unveil evaluate` finds about a run of images, in the terminal and for its page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from unveil.evaluation.points import Sliced
from unveil.family import Curve, Table
from unveil.image_run import BitsPerDim, Distance, ImageRun, Straightness
from unveil.report.evidence import Evidence, Headline

QUALITY = "Quality against network evaluations"
SLICED = "sliced Wasserstein distance"


@dataclass(frozen=True)
class Point:
    solver: str
    evaluations: int
    """Of the network, per image; 0 where the solver chooses."""
    fidelity: Distance


@dataclass(frozen=True)
class Quality:
    points: Sequence[Point]
    bits: BitsPerDim | None
    straightness: Straightness | None = None
    seeds: int = 1
    """Disjoint sets of samples that each point is a mean over, with the standard error over them."""

    def lines(self) -> Iterator[tuple[str, str]]:
        """Name and figures, for a table."""
        for point in self.points:
            yield f"{point.solver}, {point.evaluations} NFE", _words(point.fidelity)
        if self.points:
            f = self.points[0].fidelity
            if isinstance(f, Sliced):
                yield "compared", f"{f.samples:,} generated with {f.real:,} held-out points"
                yield "as many training points", f"sliced Wasserstein {f.floor:.4g}: what a perfect model comes to"
            else:
                yield "compared", f"{f.samples:,} generated with {f.real:,} training images"
                yield "features", f.features
        if self.points and self.seeds > 1:
            yield "seeds", f"means over {self.seeds} disjoint sets of samples, with their standard errors"
        if self.straightness:
            yield (
                "straightness",
                f"{self.straightness.value:.4g} ± {self.straightness.stderr:.2g} over {self.straightness.samples:,} samples",
            )
        if self.bits:
            yield "bits per dimension", f"at most {self.bits.bits:.4f} ± {self.bits.stderr:.4f} on {self.bits.images:,} held-out images"


def _words(f: Distance) -> str:
    if isinstance(f, Sliced):
        return f"sliced Wasserstein {f.distance:.4g} ± {f.stderr:.2g}"
    distances = f"Frechet {f.frechet:.4g} ± {f.frechet_stderr:.2g}, KID {f.kid:.4g} ± {f.kid_stderr:.2g}"
    return f"{distances}, precision {f.precision:.3f}, recall {f.recall:.3f}"


def _cells(f: Distance) -> dict[str, float]:
    """A row of the page's table, the measure to be lowered first."""
    if isinstance(f, Sliced):
        return {SLICED: f.distance, "±": f.stderr, "of as many training points": f.floor}
    return {"Frechet": f.frechet, "±": f.frechet_stderr, "KID": f.kid, "± ": f.kid_stderr, "precision": f.precision, "recall": f.recall}


def _value(f: Distance) -> float:
    return next(iter(_cells(f).values()))


def measured(
    run: ImageRun,
    counts: Sequence[int],
    solvers: Sequence[str],
    samples: int | None,
    inception: str,
    images: int | None,
    draws: int | None,
    seeds: int = 1,
    straight: bool = False,
) -> Quality:
    """The run's own sampler, or each solver at each number of evaluations, over ``seeds`` sets of samples; bits per dimension, unless
    ``draws`` is 0; and straightness.

    Raises UserError as ``ImageRun.against_evaluations`` and ``ImageRun.evaluate``.
    """
    if counts or solvers:
        counts = counts or [run.family.evaluations(run.model)]
        points = [Point(*row) for row in run.against_evaluations(counts, solvers, samples, inception, 0, seeds)]
    else:
        points = [Point(run.recipe.sampler.kind, run.family.evaluations(run.model), run.distances(samples, inception, 0, seeds))]
    bits = None if draws == 0 else run.evaluate(images, draws)
    return Quality(points, bits, run.straightness() if straight else None, seeds)


def record(run: ImageRun, found: Quality) -> None:
    """Put what was found into the run's evidence, where ``unveil report`` takes it from."""
    if not (run.path / "recipe.toml").is_file():  # a folder with an exported model has no page
        return
    solvers = list(dict.fromkeys(point.solver for point in found.points))
    first = found.points[0].fidelity
    flat = isinstance(first, Sliced)
    name, columns = SLICED if flat else "Frechet distance", ["solver", "evaluations", *_cells(first)]
    rows = [[p.solver, p.evaluations, *_cells(p.fidelity).values()] for p in found.points]
    views: list[Curve | Table] = [Table("Distance to held-out points" if flat else "Distance to real images", columns, rows)]
    counts = sorted({p.evaluations for p in found.points})
    if len(counts) > 1:
        at = {(p.solver, p.evaluations): _value(p.fidelity) for p in found.points}
        lines = {solver: [at.get((solver, count), float("nan")) for count in counts] for solver in solvers}
        views.append(Curve(QUALITY, counts, lines, "network evaluations per sample", name, "Quality", counts[-1] > 8 * counts[0]))
    if found.straightness:
        s = found.straightness
        views.append(
            Table("Straightness of the flow (0: one step is exact)", ["straightness", "±", "samples"], [[s.value, s.stderr, s.samples]])
        )
    if found.bits:
        scored = [[found.bits.bits, found.bits.stderr, found.bits.images]]
        views.append(Table("Held-out bits per dimension (at most)", ["bits", "±", "images"], scored))
    best = min(found.points, key=lambda p: _value(p.fidelity))
    f = best.fidelity
    told = f"{best.solver} at {best.evaluations} network evaluations, {f.samples:,} samples;"
    if isinstance(f, Sliced):
        note = f"To {f.real:,} held-out points, {told} as many training points come to {f.floor:.4g}."
    else:
        note = f"To training images, {told} the features are those of {f.features}."
    headline = Headline(_value(f), name, note)
    Evidence.load(run.path).with_views(*views, headline=headline).save(run.path)
