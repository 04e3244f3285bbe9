"""Images to latents and back by an ``AutoencoderKL`` of diffusers (Rombach et al. 2022), the one thing for which that library is asked.

Latents are scaled to about unit variance, as the networks trained on them expect.
"""

from __future__ import annotations

import importlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unveil.errors import UserError
from unveil.interop.folder import CONFIG, WEIGHTS, digest, read_json


class Autoencoder:
    """An encoder and decoder, with their scale.

    Args:
        folder: of the autoencoder (a pipeline's ``vae``): config.json beside safetensors.
        device: where it runs.

    Raises:
        UserError: diffusers is not installed; the folder holds no AutoencoderKL, or weights that are missing, pickled or another's.
    """

    def __init__(self, folder: Path | str, device: torch.device | str = "cpu") -> None:
        self._model = _load(Path(folder)).to(device).eval().requires_grad_(False)
        config = self._model.config
        self.channels: int = config.latent_channels
        self.image_channels: int = config.in_channels
        self.factor: int = 2 ** (len(config.block_out_channels) - 1)
        """Pixels of a side for each latent."""
        self.scale = float(config.scaling_factor)
        self.shift = float(config.shift_factor or 0.0)

    def latents(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        """The shape of the latents of images of this shape. Raises UserError for images that it does not take."""
        if channels != self.image_channels:
            problem = f"the images have {channels} channel{'s' * (channels > 1)}, the autoencoder takes {self.image_channels}"
            raise UserError("data.mode", problem, f'set it to "{"grey" if self.image_channels == 1 else "rgb"}"')
        if height % self.factor or width % self.factor:
            problem = f"{width} x {height} pixels are no multiple of the autoencoder's {self.factor}"
            raise UserError("data.size", problem, f"choose a multiple of {self.factor}")
        return self.channels, height // self.factor, width // self.factor

    @torch.no_grad()
    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents ``[B, channels, H / factor, W / factor]`` of images ``[B, C, H, W]`` in [-1, 1], in the dtype of the images.

        The encoder says a normal distribution: its mean, or with ``noise`` (standard normal, of the shape of the latents) a draw from it.
        Raises UserError for images that it cannot halve so often.
        """
        mean, std = self.distribution(images)
        return mean if noise is None else mean + std * noise.to(std)

    @torch.no_grad()
    def distribution(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of images, both like the result of ``encode``, in the dtype of the images.

        Raises UserError as ``encode``.
        """
        self.latents(*images.shape[1:])
        says = self._model.encode(self._inside(images)).latent_dist
        return ((says.mean - self.shift) * self.scale).to(images), (says.std * self.scale).to(images)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images ``[B, C, factor H, factor W]`` of latents, about in [-1, 1] and not clipped, in their dtype."""
        return self._model.decode(self._inside(latents) / self.scale + self.shift).sample.to(latents)

    @cached_property
    def digest(self) -> str:
        """Of settings and weights, wherever they came from."""
        return digest(self._model.config, self._model.state_dict())

    def save(self, folder: Path) -> None:
        """Write it as it was read."""
        self._model.save_pretrained(folder, safe_serialization=True)

    def _inside(self, x: Tensor) -> Tensor:
        return x.to(self._model.device, self._model.dtype)


def _load(folder: Path) -> Any:
    try:
        diffusers = importlib.import_module("diffusers")
    except ImportError:
        raise UserError("diffusers", "is not installed, and the autoencoder is its own", "pip install diffusers") from None
    source = folder / CONFIG
    kind = read_json(source, "give the folder of an AutoencoderKL, a pipeline's vae").get("_class_name")
    if kind != "AutoencoderKL":
        raise UserError(
            str(source), f"_class_name is '{kind}', wanted 'AutoencoderKL'", "give the folder of an AutoencoderKL, a pipeline's vae"
        )
    diffusers.utils.logging.set_verbosity_error()
    remedy = f"take {CONFIG} and {WEIGHTS} of the same model, both whole"
    try:
        model, report = diffusers.AutoencoderKL.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except Exception as error:  # whatever it raises for a missing, truncated or misshapen file
        raise UserError(str(folder), f"does not load ({str(error).splitlines()[0]})", remedy) from None
    for name in ("missing_keys", "unexpected_keys"):
        if report[name]:
            raise UserError(str(folder), f"{name.replace('_', ' ')} in its weights, such as '{sorted(report[name])[0]}'", remedy)
    return model
