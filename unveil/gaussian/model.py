"""A recipe's sections as the parts of this family: path, density, weighting, and the module that is trained."""

from __future__ import annotations

import math
from dataclasses import replace
from inspect import signature

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unveil.config import DiTConfig, GaussianConfig, MLPConfig, PathConfig, UNetConfig
from unveil.errors import UserError
from unveil.gaussian.coupling import COUPLINGS
from unveil.gaussian.ddpm import DDPM, zero_terminal_snr
from unveil.gaussian.denoiser import Denoiser
from unveil.gaussian.density import DENSITIES, Density, LogitNormal, LogNormal, UShaped
from unveil.gaussian.importance import Importance
from unveil.gaussian.level import Level, Path
from unveil.gaussian.objective import BoundObjective, GaussianObjective
from unveil.gaussian.path import PATHS, Shifted
from unveil.gaussian.rectified import distillation
from unveil.gaussian.weighting import WEIGHTINGS, Uncertainty
from unveil.nn.dit import DiT
from unveil.nn.mlp import MLP
from unveil.nn.unet import UNet

Shape = tuple[int, int, int]
COMPILE_SECONDS = 1.0
"""For each layer of a network: the UNet of ``edm-digits``, 69 of them, took 80 s on one core that did other work too."""
OPTIONS = ("beta_min", "beta_max", "table", "t_min", "t_max")
"""Settings of some paths."""


def path_of(config: PathConfig) -> Path:
    """Raises UserError where a setting belongs to another path."""
    given = {name: value for name in OPTIONS if (value := getattr(config, name)) not in (None, ())}
    known = signature(PATHS[config.kind]).parameters
    if strange := [name for name in given if name not in known]:
        raise UserError(f"objective.path.{strange[0]}", f"the path '{config.kind}' has no such setting", "leave it out")
    if config.kind == "ddpm":
        table = DDPM(schedule=config.schedule, steps=config.steps, **given)
        path: Path = zero_terminal_snr(table) if config.zero_terminal_snr else table
    elif config.zero_terminal_snr:
        raise UserError("objective.path.zero_terminal_snr", f"'{config.kind}' has no table to scale", "set it to false, or take kind ddpm")
    else:
        path = PATHS[config.kind](**given)
    return path if config.shift == 1.0 else Shifted(path, config.shift)


def density_of(config: GaussianConfig, path: Path) -> Density:
    match config.density:
        case "log-normal":
            return LogNormal(config.mean, config.std)
        case "logit-normal":
            return LogitNormal(path, config.mean, config.std)
        case "u-shaped":
            return UShaped(path, config.steepness)
        case _:
            return DENSITIES[config.density](path)


def objective_of(config: GaussianConfig, path: Path) -> GaussianObjective | BoundObjective:
    """Raises UserError for a bound of a path that is no table."""
    if config.distill:
        return distillation(config.distill)
    coupling = COUPLINGS[config.coupling]
    if config.weighting == "hybrid":
        if not isinstance(path, DDPM):
            raise UserError("objective.weighting", "'hybrid' needs the table as it is", "take objective.path.kind ddpm and shift 1")
        return BoundObjective(path, coupling=coupling)
    return GaussianObjective(WEIGHTINGS[config.weighting](path, config.sigma_data), density_of(config, path), coupling)


class GaussianModel(nn.Module):
    """A denoiser with what is trained beside it: a learned uncertainty, a table of losses for importance sampling."""

    def __init__(
        self, network: nn.Module, config: GaussianConfig, path: Path, shape: Shape, uncertainty: bool = False, importance: bool = False
    ) -> None:
        super().__init__()
        self.shape = shape
        preconditioning = None if config.preconditioning == "none" else config.preconditioning
        learned = config.weighting == "hybrid"
        self.denoiser = Denoiser(network, config.predicts, path, preconditioning, config.sigma_data, config.time_scale, learned)
        self.uncertainty = Uncertainty() if uncertainty else None
        self.importance = Importance() if importance else None

    def forward(self, x: Tensor, level: Level, **condition: Tensor) -> Tensor:
        """D, see ``Denoiser.forward``."""
        return self.denoiser(x, level, **condition)

    @property
    def network(self) -> nn.Module:
        network = self.denoiser.network
        assert isinstance(network, nn.Module)
        return network

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """Of the network's activations."""
        return self.network.compute_dtype  # type: ignore[return-value]

    @compute_dtype.setter
    def compute_dtype(self, dtype: torch.dtype) -> None:
        self.network.compute_dtype = dtype  # type: ignore[assignment]

    def compile_blocks(self) -> None:
        """Compile the network; the linear map around it stays as it is."""
        self.network.compile()

    def compile_seconds(self) -> float:
        """About what compiling takes: the network is one graph, and each layer of it some kernels forward and backward."""
        return COMPILE_SECONDS * sum(not list(module.children()) for module in self.network.modules())

    @torch.no_grad()
    def flops_per_sample(self) -> float:
        """Of a forward and backward pass for one image, counted on a forward pass: the backward takes twice as many."""
        device = next(self.network.parameters()).device
        with FlopCounterMode(display=False) as counter:
            self.network(torch.zeros(1, *self.shape, device=device), torch.zeros(1, device=device))
        return 3.0 * counter.get_total_flops()


def build(
    model: UNetConfig | DiTConfig | MLPConfig,
    config: GaussianConfig,
    path: Path,
    shape: Shape,
    classes: int,
    augmentation: int,
    embedding: int = 0,
) -> GaussianModel:
    """The network for images of this shape, told so many classes and augmentation parameters and an embedding of this width (0: none),
    and what belongs to it.

    Raises UserError for a network that does not take these images.
    """
    channels, height, width = shape
    if isinstance(model, MLPConfig):
        channels, height, width = math.prod(shape), 1, 1
    out = channels * (2 if config.weighting == "hybrid" else 1)
    whole = replace(model, in_channels=channels, out_channels=out, classes=classes, augmentation=augmentation, embedding=embedding)
    if isinstance(whole, DiTConfig):
        if height % whole.patch or width % whole.patch:
            raise UserError("model.patch", f"{whole.patch} does not cut images of {width} x {height} pixels", "choose a divisor of both")
        network: nn.Module = DiT(replace(whole, size=max(height, width)))
    else:
        network = UNet(whole) if isinstance(whole, UNetConfig) else MLP(whole)
    return GaussianModel(network, config, path, shape, config.uncertainty, config.importance)
