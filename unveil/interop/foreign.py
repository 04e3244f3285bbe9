"""A folder of diffusers as what a run is made of: a recipe that says what its network was trained on, and the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from unveil import recipe as recipes
from unveil.config import GaussianConfig, GaussianRecipe, ImageDataConfig, PathConfig
from unveil.errors import UserError
from unveil.gaussian.model import GaussianModel, path_of
from unveil.gaussian.path import DDPM, EDM
from unveil.gaussian.path import Path as NoisePath
from unveil.interop import diffusers, sampling, schedulers


class Foreign(NamedTuple):
    """A pipeline in our own terms."""

    recipe: GaussianRecipe
    shape: tuple[int, int, int]
    """Channels, rows, columns of what the network makes: pixels, or latents."""
    classes: tuple[str, ...]
    """Their names, or numbers where the folder has no names."""
    model: GaussianModel


def read(folder: Path) -> Foreign:
    """The pipeline of a folder, its weights in float32.

    What of a recipe only training needs (data, weighting, density of noise levels) is what is usual for such a network.

    Raises:
        UserError: as ``diffusers.load``; a folder that does not say how large its images are.
    """
    found = diffusers.load(folder)
    d, network = found.denoiser, found.network
    if found.shape is None:
        raise UserError(str(folder), "sample_size of the network is null: nobody knows how large its images are", "write it in config.json")
    training = schedulers.Training(d.path, d.predicts, clock=found.path)
    objective = GaussianConfig(
        path=section(d.path),
        predicts=d.predicts,
        preconditioning="none" if d.preconditioning is None else "edm",
        sigma_data=d.sigma_data,
        time_scale=d.time_scale,
        conditional=network.config.classes > 0,
        **_usual(d),
    )
    autoencoder = str(found.autoencoder.resolve()) if found.autoencoder else ""
    data = ImageDataConfig(kind="folder", autoencoder=autoencoder)
    chosen = sampling.sampler(found.scheduler, training)
    recipe = recipes.checked(GaussianRecipe(data=data, model=network.config, objective=objective, sampler=chosen))
    model = GaussianModel(network.float(), objective, path_of(objective.path), found.shape)
    return Foreign(recipe, found.shape, found.labels or tuple(map(str, range(network.config.classes))), model)


def section(path: NoisePath) -> PathConfig:
    """The recipe's section for a path of ``schedulers.read``; ``path_of`` gives the path back."""
    if isinstance(path, DDPM):
        if path.table:
            return PathConfig(kind="ddpm", table=path.table, zero_terminal_snr=path.zero_terminal)
        named: Any = {"schedule": path.schedule, "beta_min": path.beta_min, "beta_max": path.beta_max}
        return PathConfig(kind="ddpm", steps=path.steps, zero_terminal_snr=path.zero_terminal, **named)
    return PathConfig(kind="edm" if isinstance(path, EDM) else "rectified-flow", t_min=path.t_min, t_max=path.t_max)


def _usual(denoiser: Any) -> dict[str, Any]:
    """Weighting and density."""
    if denoiser.learned_variance:
        return {"weighting": "hybrid", "density": "uniform"}
    weighting = {"eps": "simple", "F": "edm"}.get(denoiser.predicts, denoiser.predicts)
    return {"weighting": weighting, "density": "log-normal" if weighting == "edm" else "uniform"}
