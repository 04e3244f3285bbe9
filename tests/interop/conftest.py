"""Small diffusers models, made on the spot with every weight drawn anew: their own start at zero hides what is mixed up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

diffusers.utils.logging.set_verbosity_error()

UNET = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
DIT = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 3,
    "num_layers": 2,
    "sample_size": 8,
    "num_embeds_ada_norm": 5,
}


def drawn(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(0, 0.2 if p.dim() > 1 else 0.1, generator=generator)
            if "norm" in name and name.endswith("weight"):
                p.add_(1)
    return model.eval()


@pytest.fixture
def unet() -> Callable[..., Any]:
    """A ``UNet2DModel``; keywords are settings that differ from a small one's."""
    return lambda **given: drawn(diffusers.UNet2DModel(**{**UNET, **given}))


@pytest.fixture
def dit() -> Callable[..., Any]:
    """A ``DiTTransformer2DModel`` likewise."""
    return lambda **given: drawn(diffusers.DiTTransformer2DModel(**{**DIT, **given}))
