"""What `unveil evaluate` finds about a run of images, in the terminal and for its page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from unveil.evaluation.fidelity import Fidelity
from unveil.family import Curve, Table
from unveil.image_run import BitsPerDim, ImageRun
from unveil.report.evidence import Evidence, Headline

QUALITY = "Quality against network evaluations"


@dataclass(frozen=True)
class Point:
    solver: str
    evaluations: int
    """Of the network, per image; 0 where the solver chooses."""
    fidelity: Fidelity


@dataclass(frozen=True)
class Quality:
    points: Sequence[Point]
    bits: BitsPerDim | None

    def lines(self) -> Iterator[tuple[str, str]]:
        """Name and figures, for a table."""
        for point in self.points:
            f = point.fidelity
            distances = f"Frechet {f.frechet:.4g} ± {f.frechet_stderr:.2g}, KID {f.kid:.4g} ± {f.kid_stderr:.2g}"
            yield f"{point.solver}, {point.evaluations} NFE", f"{distances}, precision {f.precision:.3f}, recall {f.recall:.3f}"
        if self.points:
            f = self.points[0].fidelity
            yield "compared", f"{f.samples:,} generated with {f.real:,} training images"
            yield "features", f.features
        if self.bits:
            yield "bits per dimension", f"at most {self.bits.bits:.4f} ± {self.bits.stderr:.4f} on {self.bits.images:,} held-out images"


def measured(
    run: ImageRun, counts: Sequence[int], solvers: Sequence[str], samples: int | None, inception: str, images: int | None, draws: int | None
) -> Quality:
    """The run's own sampler, or each solver at each number of evaluations; and bits per dimension, unless ``draws`` is 0.

    Raises UserError as ``ImageRun.against_evaluations`` and ``ImageRun.evaluate``.
    """
    if counts or solvers:
        counts = counts or [run.family.evaluations(run.model)]
        points = [Point(*row) for row in run.against_evaluations(counts, solvers, samples, inception)]
    else:
        points = [Point(run.recipe.sampler.kind, run.family.evaluations(run.model), run.fidelity(samples, inception))]
    return Quality(points, None if draws == 0 else run.evaluate(images, draws))


def record(run: ImageRun, found: Quality) -> None:
    """Put what was found into the run's evidence, where ``unveil report`` takes it from."""
    if not (run.path / "recipe.toml").is_file():  # a folder with an exported model has no page
        return
    solvers = list(dict.fromkeys(point.solver for point in found.points))
    columns = ["solver", "evaluations", "Frechet", "±", "KID", "±", "precision", "recall"]
    rows = [
        [p.solver, p.evaluations, f.frechet, f.frechet_stderr, f.kid, f.kid_stderr, f.precision, f.recall]
        for p in found.points
        for f in [p.fidelity]
    ]
    views: list[Curve | Table] = [Table("Distance to real images", columns, rows)]
    counts = sorted({p.evaluations for p in found.points})
    if len(counts) > 1:
        at = {(p.solver, p.evaluations): p.fidelity.frechet for p in found.points}
        lines = {solver: [at.get((solver, count), float("nan")) for count in counts] for solver in solvers}
        views.append(Curve(QUALITY, counts, lines, "network evaluations per image", "Frechet distance", "Quality"))
    if found.bits:
        scored = [[found.bits.bits, found.bits.stderr, found.bits.images]]
        views.append(Table("Held-out bits per dimension (at most)", ["bits", "±", "images"], scored))
    best = min(found.points, key=lambda p: p.fidelity.frechet)
    note = (
        f"To training images, {best.solver} at {best.evaluations} network evaluations, {best.fidelity.samples:,} samples; the features are "
        f"those of {best.fidelity.features}."
    )
    headline = Headline(best.fidelity.frechet, "Frechet distance", note)
    Evidence.load(run.path).with_views(*views, headline=headline).save(run.path)
