"""What this machine can do, and whether a run is whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from unveil.environment import device, environment
from unveil.errors import UserError
from unveil.image_run import ImageRun
from unveil.plan import parameters
from unveil.run import load
from unveil.stream_run import StreamRun
from unveil.text_run import TextRun
from unveil.training import precision

SAMPLE_TOKENS = 4096
SAMPLE_IMAGES = 16
DTYPES = (torch.float32, torch.bfloat16)


def machine() -> Iterator[tuple[str, str]]:
    """Name and finding: versions, processor, threads, measured peaks, the dtype that follows, compiler."""
    for name, value in environment().items():
        yield name, ", ".join(value) if isinstance(value, list) else str(value)
    for dtype in DTYPES:
        yield f"peak {_name(dtype)}", f"{precision.peak_flops(dtype, device()) / 1e9:,.0f} GFLOP/s"
    yield "compute dtype", _name(precision.compute_dtype("auto", device()))


def checkpoint(path: str | Path) -> Iterator[tuple[str, str]]:
    """Name and finding: every weight with its shape, whether all are finite, bits per byte or dimension on a sample.

    Raises UserError as ``load``.
    """
    run = load(path)
    broken = 0
    for name, weight in run.model.state_dict().items():
        finite = bool(torch.isfinite(weight).all())
        broken += not finite
        yield name, f"{list(weight.shape)} {_name(weight.dtype)}" + ("" if finite else "  NOT FINITE")
    yield "family", run.recipe.family
    yield "parameters", parameters(run.model)
    if isinstance(run, TextRun):
        yield "vocabulary", f"{run.tokenizer.vocabulary.size:,}"
    elif isinstance(run, ImageRun):
        channels, height, width = run.encoders.pixels(run.shape)
        size = "points in the plane" if run.points else f"{width} x {height} pixels, {channels} channel{'s' * (channels > 1)}"
        yield "images", f"{size}, {len(run.classes)} classes"
        if run.encoders.autoencoder is not None:
            yield "latents", f"{run.shape[2]} x {run.shape[1]}, {run.shape[0]} channels"
    elif isinstance(run, StreamRun):
        yield (
            "streams",
            f"{len(run.about.classes)} classes, {run.width} features of {run.about.extractor}, {run.about.rate:g} chunks a second",
        )
    yield "weights", "all finite" if not broken else f"{broken} not finite"
    name = "bits per byte" if isinstance(run, TextRun) else "bits per dimension" if isinstance(run, ImageRun) else "mAP"
    try:
        if isinstance(run, StreamRun):
            yield name, next(run.evaluate().lines())[1]
        elif isinstance(run, ImageRun):
            scored = run.evaluate(limit=SAMPLE_IMAGES, draws=1)
            yield name, f"{scored.bits:.3f} ± {scored.stderr:.3f} on {scored.images:,} held-out images"
        else:
            bits = run.evaluate(tokens=SAMPLE_TOKENS)
            yield name, f"{bits.content:.3f} ± {bits.stderr:.3f} on {bits.tokens:,} held-out tokens"
    except UserError as error:
        yield name, f"not measured ({error})"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
