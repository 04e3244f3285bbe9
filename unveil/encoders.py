"""What stands between a network and a person: an autoencoder for what is seen, a text encoder for what is written. Both may be absent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unveil.config import ImageDataConfig
from unveil.data.pixels import PreparedImages, Progress, Shape
from unveil.environment import device
from unveil.errors import UserError
from unveil.interop.autoencoder import Autoencoder
from unveil.interop.text_encoder import TextEncoder

AUTOENCODER, TEXT = "autoencoder", "text_encoder"
"""Their folders in ``final/``."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Encoders:
    autoencoder: Autoencoder | None = None
    text: TextEncoder | None = None

    @staticmethod
    def of(data: ImageDataConfig, folder: Path | None = None) -> Encoders:
        """Those of a recipe, from where it says or from a ``final/`` that holds them. Raises UserError where they do not load."""
        seen, said = (folder / AUTOENCODER, folder / TEXT) if folder else (data.autoencoder, data.text_encoder)
        return Encoders(
            Autoencoder(seen, device()) if data.autoencoder else None,
            TextEncoder(said, device()) if data.text_encoder else None,
        )

    def save(self, folder: Path) -> None:
        """Into a ``final/``."""
        if self.autoencoder is not None:
            self.autoencoder.save(folder / AUTOENCODER)
        if self.text is not None:
            self.text.save(folder / TEXT)

    @property
    def factor(self) -> int:
        """Pixels of a side for each value of a side that the network sees."""
        return 1 if self.autoencoder is None else self.autoencoder.factor

    @property
    def embedding(self) -> int:
        """Width of a text's embedding; 0 without an encoder."""
        return 0 if self.text is None else self.text.width

    def shape(self, pixels: Shape) -> Shape:
        """Of what the network sees of images ``[C, H, W]``. Raises UserError for images that the autoencoder does not take."""
        return pixels if self.autoencoder is None else self.autoencoder.latents(*pixels)

    def pixels(self, shape: Shape) -> Shape:
        """Of the images that a person sees, where the network sees ``shape``."""
        channels, height, width = shape
        return channels if self.autoencoder is None else self.autoencoder.image_channels, self.factor * height, self.factor * width

    def prepared(self, images: PreparedImages, progress: Progress | None = None) -> PreparedImages:
        """Prepared images with their latents and embeddings, computed now or found in the cache. Raises UserError as ``shape``."""
        shape = self.shape(images.shape)
        if self.autoencoder is not None:
            images = images.with_latents(_Latents(self.autoencoder), shape, progress)
        if self.text is not None:
            images = images.with_embeddings(_Embeddings(self.text), self.text.width, progress)
        return images

    def encode(self, image: Array) -> Array:
        """An image float32 ``[C, H, W]`` in [-1, 1] as the network sees it."""
        return image if self.autoencoder is None else self.autoencoder.encode(torch.from_numpy(image)[None])[0].cpu().numpy()

    def decode(self, x: Tensor) -> Tensor:
        """Images ``[N, C, H, W]`` of what the network sees."""
        return x if self.autoencoder is None else self.autoencoder.decode(x)

    def embed(self, prompt: str | None) -> Array | None:
        """The embedding ``[E]`` of a text, if there is one. Raises UserError without a text encoder."""
        if prompt is None:
            return None
        if self.text is None:
            problem = "is for text, this is a run of images that knows none"
            raise UserError("--prompt", problem, "leave it out, or train with data.captions and data.text_encoder")
        return self.text.encode([prompt])[0].numpy()


class _Latents:
    """Images to the mean and the standard deviation of their latents, for the cache."""

    columns = ("mean", "std")

    def __init__(self, autoencoder: Autoencoder) -> None:
        self._autoencoder, self.digest = autoencoder, autoencoder.digest

    def encode(self, items: Sequence[Array]) -> list[Array]:
        return [values.cpu().numpy() for values in self._autoencoder.distribution(torch.from_numpy(np.stack(items)))]


class _Embeddings:
    """Captions to embeddings, for the cache."""

    columns = ("embedding",)

    def __init__(self, text: TextEncoder) -> None:
        self._text, self.digest = text, text.digest

    def encode(self, items: Sequence[str]) -> list[Array]:
        return [self._text.encode(items).numpy()]
