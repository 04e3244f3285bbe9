"""The average of a run's weights of a width chosen after training, written as a folder that samples and is evaluated as a run does."""

from __future__ import annotations

import shutil
from pathlib import Path

from unveil import bases
from unveil.errors import UserError
from unveil.run import load
from unveil.text_run import TextRun
from unveil.training import final
from unveil.training.ema_profile import Profile, gamma_of, reconstruct
from unveil.training.power import kept
from unveil.training.weights import assign, weights


def average(path: str | Path, width: float, step: int | None = None) -> Path:
    """Write ``average-WIDTH`` (and ``-step-N``) into a run directory: the weights under a power-function average of that relative width.

    Args:
        width: sigma_rel, above 0 and at most 1 / sqrt(12).
        step: at which the average is taken; the last one with a snapshot if not given.

    Returns:
        The folder. What is no parameter (buffers) is as in ``final/``.

    Raises:
        UserError: no run, no snapshots, a width or a step that cannot be, or a folder of that name.
    """
    path = Path(path)
    gamma = gamma_of(width)
    run = load(path)
    snapshots = kept(path / "averages")
    if not snapshots:
        problem = "holds no averages to make another from"
        raise UserError(str(path), problem, "train with --training.ema-widths '[0.05, 0.1]'")
    last = max(snapshot.profile.time for snapshot in snapshots)
    first = min(snapshot.profile.time for snapshot in snapshots)
    if step is not None and not first <= step <= last:
        raise UserError("--step", f"got {step}, averages were kept at steps {first:.0f} to {last:.0f}", "choose one of these or between")
    time = last if step is None else float(step)
    used = [snapshot for snapshot in snapshots if snapshot.profile.time <= time]
    folder = path / (f"average-{width:g}" + ("" if step is None else f"-step-{step}"))
    if folder.exists():
        raise UserError(str(folder), "exists", "sample it, or delete it first")
    found = reconstruct([snapshot.profile for snapshot in used], lambda i: used[i].load(), Profile(gamma, time))
    own = weights(run.model)
    assign(found, {name: own[name] for name in found if name in own}, str(path / "averages"))
    config = {name: value for name, value in final.read_config(run.folder).items() if name != "format_version"}
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(run.folder, aside, ignore=shutil.ignore_patterns(final.WEIGHTS))
    if isinstance(run, TextRun):
        bases.save(aside, run.model, run.recipe, config)
    else:
        final.write(aside, run.model, config)
    aside.rename(folder)
    return folder
