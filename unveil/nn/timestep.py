"""What a network is told beside the image: the noise level, a class, an embedding, the augmentation, as one vector."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.config import ConditionConfig
from unveil.nn.affine import Affine
from unveil.nn.linear import Linear


def sinusoids(c_noise_B: Tensor, width: int, shift: float = 0.0, cosine_first: bool = True) -> Tensor:
    """``[cos(c f_k), sin(c f_k)]`` with ``f_k = 10000^(-k / (K - shift))``, K = width / 2 (Vaswani et al. 2017, section 3.5).

    Always formed in float32, whatever the dtypes: pretrained networks were trained on these very roundings.

    Returns:
        float32 ``[B, width]``.
    """
    half = width // 2
    exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=c_noise_B.device) / (half - shift)
    angles = c_noise_B.float()[:, None] * torch.exp(exponents)
    parts = (angles.cos(), angles.sin()) if cosine_first else (angles.sin(), angles.cos())
    return torch.cat(parts, dim=-1)


class Fourier(nn.Module):
    """``[cos(2 pi c f_k), sin(2 pi c f_k)]`` with fixed ``f_k ~ N(0, scale^2)`` (Tancik et al. 2020; Song et al. 2021 for noise levels).

    Frequencies of this size resolve c_noise = log(n) / 4, whose whole range is a few units.
    """

    frequencies: Tensor

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(width // 2) * scale)

    def forward(self, c_noise_B: Tensor) -> Tensor:
        angles = c_noise_B.to(self.frequencies.dtype)[:, None] * (2 * math.pi * self.frequencies)
        return torch.cat((angles.cos(), angles.sin()), dim=-1)


class Condition(nn.Module):
    """``mlp(features of c_noise) + class + embedding + augmentation``, before the SiLU that every user of it applies.

    Args:
        config: which conditions there are and how wide.
        features: width of the sinusoids.
        width: W of the result.
        shift, cosine_first: of the sinusoids.
    """

    def __init__(self, config: ConditionConfig, features: int, width: int, shift: float = 0.0, cosine_first: bool = True) -> None:
        super().__init__()
        self.features, self.shift, self.cosine_first = features, shift, cosine_first
        self.num_classes = config.classes
        self.fourier = Fourier(features, config.fourier_scale) if config.level == "fourier" else None
        self.enter, self.leave = Affine(features, width), Affine(width, width)
        self.classes = nn.Embedding(config.classes + config.null_class, width) if config.classes else None
        # without a bias: zeros, the default of both, add nothing
        self.embedding = Linear(config.embedding, width) if config.embedding else None
        self.augmentation = Linear(config.augmentation, width) if config.augmentation else None

    def forward(
        self, c_noise_B: Tensor, dtype: torch.dtype, classes_B: Tensor | None, embedding_BE: Tensor | None, augmentation_BA: Tensor | None
    ) -> Tensor:
        """``[B, W]`` in ``dtype``. Raises ValueError for a condition the network does not know, and for a class left out without a null."""
        if self.fourier is None:
            features_BF = sinusoids(c_noise_B, self.features, self.shift, self.cosine_first)
        else:
            features_BF = self.fourier(c_noise_B)
        result_BW = self.leave(F.silu(self.enter(features_BF.to(dtype))))
        if self.classes is not None:
            if classes_B is None:
                if self.classes.num_embeddings == self.num_classes:
                    raise ValueError("this network is always told a class: it has no null class")
                classes_B = torch.full_like(c_noise_B, self.num_classes, dtype=torch.int64)
            result_BW = result_BW + F.embedding(classes_B, self.classes.weight).to(dtype)
        elif classes_B is not None:
            raise ValueError("this network knows no classes")
        for name, matrix, given in (("embedding", self.embedding, embedding_BE), ("augmentation", self.augmentation, augmentation_BA)):
            if given is None:
                continue
            if matrix is None:
                raise ValueError(f"this network takes no {name}")
            result_BW = result_BW + matrix(given.to(dtype))
        return result_BW
