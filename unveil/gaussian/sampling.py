"""The sampler section of a recipe as a sampler: solver, grid and guidance by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

from unveil.config import GaussianSamplerConfig
from unveil.errors import UserError, nearest
from unveil.gaussian.ddpm import DDPM
from unveil.gaussian.denoiser import Denoiser
from unveil.gaussian.grid import GRIDS, Grid
from unveil.gaussian.guidance import classifier_free
from unveil.gaussian.inpainting import Inpainter
from unveil.gaussian.level import Path
from unveil.gaussian.path import PATHS, RectifiedFlow, Shifted
from unveil.gaussian.solver import Solver
from unveil.gaussian.solvers import SOLVERS

Task = Literal["sample", "inpaint", "invert"]

COMMON = (
    *("kind", "steps", "grid", "rho", "n_min", "n_max", "path", "shift"),
    *("clip", "resamples", "guidance", "guidance_min", "guidance_max"),
)
"""Settings that are no solver's own."""
OPTIONS = tuple(f.name for f in fields(GaussianSamplerConfig) if f.name not in COMMON)


def grid_of(config: GaussianSamplerConfig, trained: Path) -> Grid:
    """Raises UserError for a grid that does not exist, does not fit the path, or does not take a setting."""
    path = trained if config.path == "trained" else PATHS[config.path]()
    path = path if config.shift == 1.0 else Shifted(path, config.shift)
    name = config.grid if config.grid != "auto" else _usual(path)
    low, high = trained.n(trained.t_min), trained.n(trained.t_max)
    ends: dict[str, float] = {}
    if config.grid == "auto" and high < math.inf == path.n(path.t_max):  # it was never asked what is there where no signal is left
        name, ends = "karras", {"n_min": max(low, path.n(path.t_min)), "n_max": high}
    if name not in GRIDS:
        raise UserError("sampler.grid", f"got '{config.grid}'", nearest(config.grid, GRIDS))
    given = ends | {key: value for key in ("rho", "n_min", "n_max") if (value := getattr(config, key)) is not None}
    known = {"karras": ("rho", "n_min", "n_max"), "log-uniform": ("n_min", "n_max"), "iddpm": ("n_max",)}.get(name, ())
    for key in given:
        if key not in known:
            raise UserError(f"sampler.{key}", f"the grid '{name}' has no such setting", "leave it out, or take --sampler.grid karras")
    return GRIDS[name](path, config.steps, **given)


def sampler_of(config: GaussianSamplerConfig, denoiser: Denoiser, trained: Path, null: Mapping[str, float], task: Task = "sample") -> Any:
    """A ``Sampler``, or of an adaptive solver its like; an ``Inpainter``; or a sampler that runs from images to noise.

    ``null`` is what stands for nothing in each condition. Raises UserError for a solver that does not exist or does not take a setting or
    the task, too few steps, and guidance without conditions.
    """
    if config.kind not in SOLVERS:
        raise UserError("sampler.kind", f"got '{config.kind}'", nearest(config.kind, SOLVERS))
    options = {name: v for name in OPTIONS if (v := getattr(config, name)) is not None}
    solver, grid, clip = SOLVERS[config.kind], grid_of(config, trained), config.clip or None
    asked: Any = denoiser
    if config.guidance != 1.0:
        asked = classifier_free(denoiser, config.guidance, null, (config.guidance_min, config.guidance_max))
    if task == "inpaint":
        if not isinstance(solver, Solver):
            raise UserError("sampler.kind", f"'{config.kind}' cannot inpaint", "choose one that draws noise, such as ancestral")
        return Inpainter(asked, grid, solver, resamples=config.resamples, clip=clip, **options)
    return solver.sampler(asked, grid.reversed() if task == "invert" else grid, clip=clip, **options)


def _usual(path: Path) -> str:
    inner = path
    while isinstance(inner, Shifted):
        inner = inner.path
    return "trailing" if isinstance(path, DDPM) else "uniform-to-zero" if isinstance(inner, RectifiedFlow) else "karras"
