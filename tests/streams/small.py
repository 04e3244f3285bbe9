"""Small networks of every kind, and streams to run them on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unveil.config_streams import CausalConfig, OadTRConfig, RecurrentConfig
from unveil.data.clips import NONE, Clips
from unveil.streams.causal import CausalDetector
from unveil.streams.oadtr import OadTR
from unveil.streams.recurrent import RecurrentDetector

SIZES: dict[str, Any] = {"features": 5, "classes": 4, "ignored": (3,), "width": 16, "horizon": 3, "decoder_depth": 2, "decoder_heads": 2}
STEPS = 8
KINDS: dict[str, Callable[..., Any]] = {
    "oadtr": lambda **k: OadTR(OadTRConfig(**{**SIZES, "steps": STEPS, "heads": 4, "depth": 2, **k})),
    "causal": lambda **k: CausalDetector(CausalConfig(**{**SIZES, "steps": STEPS, "heads": 4, "depth": 2, **k})),
    "recurrent": lambda **k: RecurrentDetector(RecurrentConfig(**{**SIZES, "depth": 2, **k})),
}


def make(kind: str, dtype: torch.dtype = torch.float64, **switches: Any) -> Any:
    """In evaluation mode, no parameter at 0 or 1, where it would hide a mistake."""
    torch.manual_seed(0)
    network = KINDS[kind](**switches)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.3 * torch.randn(p.shape)
    return network.to(dtype).eval()


def features(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Chunks ``[..., F]``, another draw for another shape."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, SIZES["features"], generator=generator, dtype=torch.float64).to(dtype)


def clips(*windows: Tensor) -> Clips:
    """Up to five windows, whose targets hold every kind of class: one that counts, one that is ignored, none."""
    n = len(windows)
    present = torch.tensor([0, 2, 3, 1, NONE])[:n]
    future = torch.tensor([[1, 1, NONE], [0, 3, 2], [2, NONE, NONE], [1, 2, 0], [0, 0, 0]])[:n]
    return Clips.of(list(windows), present, future)
