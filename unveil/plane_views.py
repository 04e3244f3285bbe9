"""What a page shows of a model of points: where they come from, the field that carries them, and their way over the learned density."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from unveil.data.noise import generator
from unveil.data.pixels import PreparedImages
from unveil.data.png import png
from unveil.family import ImageGrid, ImageRequest, View
from unveil.gaussian.family import Gaussian
from unveil.gaussian.integrator import Fixed
from unveil.gaussian.level import Level
from unveil.gaussian.likelihood import log_density
from unveil.plane import FRAME, PLANE, POINTS_SHOWN, beside, field, paths

STEPS_SHOWN = 16
"""Steps of the sampler on the page, at the most."""
LEVELS = (1.6, 0.8, 0.4, 0.2, 0.1, 0.05)
"""Noise levels n = sigma / alpha at which the field is drawn."""
ARROWS = 23
"""Along a side."""
TRACKS = 36
TRACK_STEPS = 60
"""Of the sampler, so that a path is drawn as it is."""
CELLS = 88
"""Of the density, along a side."""
CELLS_AROUND = 3
"""The density is computed at this distance from any point, and is drawn as 0 beyond."""
DENSITY_STEPS = 20

Array = np.ndarray[Any, Any]


def plane_views(family: Gaussian, model: nn.Module, prepared: PreparedImages) -> list[View]:
    """Three views of a model of points; see the functions below."""
    index = prepared.parts["validation"] if len(prepared.parts["validation"]) else prepared.parts["train"]
    real = np.stack([prepared.values(int(i)) for i in index[:POINTS_SHOWN]]).reshape(-1, 2)
    states = _states(family, model, len(real))
    return [_generation(states, real), _field(family, model, real), _paths(family, model, np.concatenate([real, states[-1]]))]


def _states(family: Gaussian, model: nn.Module, count: int) -> list[Array]:
    """Where ``count`` points are at the start and after every step, ``[N, 2]``; all scaled to fit the frame while noise outweighs them."""
    latents = family.latents(range(count)).float().numpy()
    state = family.begin(model, [ImageRequest(PLANE, seed, latent=latent) for seed, latent in enumerate(latents)])
    found = [latents.reshape(-1, 2)]
    while state.live:
        found.append(np.stack([row.image for row in family.step(model, state).rows]).reshape(-1, 2))
    return [x / max(1.0, float(np.sqrt(np.square(x).mean())) / (0.5 * FRAME)) for x in found]


def _generation(states: Sequence[Array], real: Array) -> ImageGrid:
    last = len(states) - 1
    steps = sorted({round(i * last / (STEPS_SHOWN - 1)) for i in range(STEPS_SHOWN)})
    note = "Held-out points beside as many that are generated, from noise (scaled to the frame) to the end."
    return _grid("Points out of noise", [beside(real, states[step]) for step in steps], [f"step {step}" for step in steps], note)


@torch.no_grad()
def _field(family: Gaussian, model: nn.Module, real: Array) -> ImageGrid:
    """From each place to the point that the network makes out there, E[x0 | x], at one noise level after another."""
    axis = np.linspace(-0.94 * FRAME, 0.94 * FRAME, ARROWS)
    at = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    noise = generator(family.seed, 0, 0, "field").standard_normal(real.shape)
    device = next(model.parameters()).device
    sheets = []
    for n in LEVELS:
        x = torch.from_numpy(at).float().view(-1, *PLANE).to(device)
        seen = model(x, Level(1.0, n), **family.untold(model, len(x)))
        sheets.append(field(real + n * noise, at, seen.view(-1, 2).cpu().numpy() - at))
    note = (
        "From each place towards what the network makes out there, the mean of the points that may have become this one by noise: "
        "n squared times the score. Darker arrows are longer than they are drawn; the dots are held-out points with this noise."
    )
    return _grid("The vector field", sheets, [f"noise n = {n:g}" for n in LEVELS], note)


def _paths(family: Gaussian, model: nn.Module, near: Array) -> ImageGrid:
    """Over the density by the change of variables along the probability flow, where any of the points ``near`` is close."""
    edges = np.linspace(-FRAME, FRAME, CELLS + 1)
    hit = np.histogram2d(near[:, 1], near[:, 0], bins=[edges, edges])[0] > 0
    for axis in (0, 1) * CELLS_AROUND:
        hit = hit | np.roll(hit, 1, axis) | np.roll(hit, -1, axis)
    centres = (edges[1:] + edges[:-1]) / 2
    rows, columns = np.nonzero(hit)
    x = torch.from_numpy(np.stack([centres[columns], centres[rows]], 1)).float().view(-1, *PLANE).to(next(model.parameters()).device)
    told = family.untold(model, len(x))
    flow = log_density(model, family.path, x, None, integrator=Fixed(DENSITY_STEPS), data_std=family.config.sigma_data, condition=told)
    density = np.zeros((CELLS, CELLS))
    density[rows, columns] = flow.log_density_B.exp().cpu().numpy()
    tracks = np.stack(_states(family.with_steps(TRACK_STEPS), model, TRACKS))
    note = "From noise (dots; scaled to the frame) to data (rings), over the density that the probability flow gives."
    return _grid("Paths from noise to data", [paths(tracks, density)], ["paths"], note)


def _grid(title: str, sheets: Sequence[Array], labels: Sequence[str], note: str) -> ImageGrid:
    height, width, _ = sheets[0].shape
    return ImageGrid(title, [base64.b64encode(png(sheet)).decode() for sheet in sheets], labels, width, height, note, drawn=True)
