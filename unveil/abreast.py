"""Runs of text side by side on one prompt: how each uncovers what follows, as the first thing on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from unveil.errors import UserError
from unveil.report.run import RunReport
from unveil.run import load
from unveil.snapshots import played
from unveil.text_run import TextRun


def written(runs: Sequence[RunReport], paths: Sequence[Path], prompt: str, seed: int, settings: Mapping[str, str]) -> list[RunReport]:
    """The reports, each with a timeline of what its run at ``paths`` makes of the prompt, before all other views.

    Args:
        settings: of the sampler; each goes to all runs whose sampler has it.

    Raises UserError for a run that is not of text, a setting that no run has or that does not go together with a run's others, and a prompt
    that does not fit.
    """
    loaded = []
    for path in paths:
        run = load(path)
        if not isinstance(run, TextRun):
            raise UserError("--prompt", f"{str(path)!r} is no run of text", "leave out the prompt, or the run")
        loaded.append(run)
    known = [{field.name for field in fields(run.recipe.sampler)} for run in loaded]
    everywhere = {name: value for name, value in settings.items() if not any(name in names for names in known)}
    found = []
    for report, run, names in zip(runs, loaded, known, strict=True):
        own: dict[str, Any] = everywhere | {name: value for name, value in settings.items() if name in names}
        try:
            shown, _ = played(title(prompt), run.sample(prompt, seed=seed, **own))
        except UserError as error:
            raise UserError(error.field, f"{error.problem} ({run.path.resolve().name})", error.remedy) from None
        found.append(replace(report, evidence=replace(report.evidence, views=[shown, *report.evidence.views])))
    return found


def title(prompt: str) -> str:
    return f"Going on from {prompt!r}" if prompt else "Beginning a document"
