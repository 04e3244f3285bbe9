"""What this machine can do, and whether a run is whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from unveil.environment import device, environment
from unveil.errors import UserError
from unveil.image_run import ImageRun
from unveil.nn.quantised import dense
from unveil.plan import parameters
from unveil.run import load
from unveil.stream_run import StreamRun
from unveil.text_run import TextRun, trained_here
from unveil.training import precision

SAMPLE_TOKENS = 4096
SAMPLE_IMAGES = 16
SAMPLE_DRAWS = 2
SAMPLE = (
    "The river rises in the hills to the north of the town, and for the first ten miles it is so narrow that a child can step across it.",
    "When the last of the guests had gone, she closed the door, put out the lamps one by one, and sat down by the window to think.",
    "A prime number is a whole number greater than one that has no divisors other than one and itself; there are infinitely many of them.",
    "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n    return total / len(values)\n",
)
"""For a model whose own data nobody here has."""
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
        finite = bool(torch.isfinite(dense(weight, torch.float32)).all())
        broken += not finite
        held = _name(weight.dtype) if type(weight) in (torch.Tensor, nn.Parameter) else run.recipe.adapter.weights
        yield name, f"{list(weight.shape)} {held}" + ("" if finite else "  NOT FINITE")
    yield "family", run.recipe.family
    yield "parameters", parameters(run.model)
    if isinstance(run, TextRun):
        v = run.tokenizer.vocabulary
        yield "vocabulary", f"{v.size:,}"
        for name in ("start", "end", "mask"):
            if (index := getattr(v, name)) >= 0:
                yield name, f"{index} {run.tokenizer.name(index)}".rstrip()
        yield "turns end at", " ".join(run.recipe.sampler.stop) or "the end token"
        yield "context", f"{run.recipe.data.context:,}"
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
        elif isinstance(run, TextRun):
            ours = bool(run.recipe.data.validation) and trained_here(run.recipe)
            bits = run.evaluate(tokens=SAMPLE_TOKENS) if ours else run.score(SAMPLE, SAMPLE_DRAWS)
            yield name, f"{bits.content:.3f} ± {bits.stderr:.3f} on {bits.tokens:,} {'held-out tokens' if ours else 'tokens of a sample'}"
    except UserError as error:
        yield name, f"not measured ({error})"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
