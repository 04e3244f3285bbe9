"""What this machine can do, and whether a run is whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from unveil.environment import device, environment
from unveil.errors import UserError
from unveil.run import load
from unveil.training import precision

SAMPLE_TOKENS = 4096
DTYPES = (torch.float32, torch.bfloat16)


def machine() -> Iterator[tuple[str, str]]:
    """Name and finding: versions, processor, threads, measured peaks, the dtype that follows, compiler."""
    for name, value in environment().items():
        yield name, ", ".join(value) if isinstance(value, list) else str(value)
    for dtype in DTYPES:
        yield f"peak {_name(dtype)}", f"{precision.peak_flops(dtype, device()) / 1e9:,.0f} GFLOP/s"
    yield "compute dtype", _name(precision.compute_dtype("auto", device()))


def checkpoint(path: str | Path) -> Iterator[tuple[str, str]]:
    """Name and finding: every weight with its shape, whether all are finite, bits per byte on a sample. Raises UserError as ``load``."""
    run = load(path)
    broken = 0
    for name, weight in run.model.state_dict().items():
        finite = bool(torch.isfinite(weight).all())
        broken += not finite
        yield name, f"{list(weight.shape)} {_name(weight.dtype)}" + ("" if finite else "  NOT FINITE")
    yield "family", run.recipe.family
    yield "parameters", f"{run.parameters():,}"
    yield "vocabulary", f"{run.tokenizer.vocabulary.size:,}"
    yield "weights", "all finite" if not broken else f"{broken} not finite"
    try:
        bits = run.evaluate(tokens=SAMPLE_TOKENS)
        yield "bits per byte", f"{bits.content:.3f} ± {bits.stderr:.3f} on {bits.tokens:,} held-out tokens"
    except UserError as error:
        yield "bits per byte", f"not measured ({error})"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
