"""A recipe's corpus in the terminal: prepared with a bar, inspected in a few lines."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from unveil.config import ImageDataConfig, TextDataConfig
from unveil.data.inspection import inspect
from unveil.data.pixels import PreparedImages, prepare_images
from unveil.data.shards import Prepared, prepare
from unveil.encoders import Encoders


def prepared(config: TextDataConfig, workers: int = 0, shown: bool = True) -> Prepared:
    """``data.shards.prepare`` under a progress bar on a terminal; 0 workers are one per core. Raises UserError as it does."""
    with _progress(shown) as progress:
        found = prepare(config, workers or os.cpu_count() or 1, progress)
    if shown and (words := misfits(found, config)):
        print(f"conversations: {words}", file=sys.stderr)
    return found


def misfits(data: Prepared, config: TextDataConfig) -> str:
    """How many conversations were too long, in words; nothing where none was."""
    counts = [(data.shortened, "lost their oldest turns"), (data.dropped, "were left out, their last turn alone is too long")]
    found = ", ".join(f"{count:,} {what}" for count, what in counts if count)
    return f"{found} (data.context = {config.context})" if found else ""


def prepared_images(config: ImageDataConfig, shown: bool = True, encoders: Encoders | None = None) -> PreparedImages:
    """``data.pixels.prepare_images`` likewise, and what the recipe's encoders make of them."""
    encoders = encoders or Encoders.of(config)
    with _progress(shown) as progress:
        return encoders.prepared(prepare_images(config, progress), progress)


@contextmanager
def _progress(shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    console = Console(stderr=True, quiet=not shown)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total or None)
            bar.update(tasks[stage], completed=done, total=total or None)

        yield progress


def described_images(data: PreparedImages) -> Iterator[tuple[str, str]]:
    """Name and finding: images by part, their shape, classes and levels, what was skipped."""
    store = data.store
    yield "folder", str(data.folder)
    for part, index in data.parts.items():
        if len(index):
            yield part, f"{len(index):,} images"
    if store.pictures:
        height, width, channels = store.shape
        yield "images", f"{width} x {height} pixels, {'grey' if channels == 1 else 'RGB'}"
    if data.latents is not None:
        channels, height, width = data.shape
        yield "latents", f"{width} x {height}, {channels} channels"
    if data.embeddings is not None:
        yield "captions", f"embedded in {data.embeddings.shape[0]} numbers, such as: {store.caption(0)}"
    if data.classes:
        counts = np.bincount(store.labels[store.labels >= 0], minlength=len(data.classes))
        yield "classes", ", ".join(f"{name}: {count:,}" for name, count in zip(data.classes, counts, strict=True))
    sample = np.stack([data.values(int(i)) for i in data.parts["train"][:2000]])
    yield "values", f"mean {sample.mean():.3f}, standard deviation {sample.std():.3f} (objective.sigma_data)"
    if data.skipped:
        yield "skipped", f"{len(data.skipped):,} that cannot be read, {data.skipped[0]} among them"


def described(data: Prepared, config: TextDataConfig) -> Iterator[tuple[str, str]]:
    """Name and finding: documents, bytes and tokens by split, lengths, how well they pack, an example."""
    found = inspect(data, config)
    yield "folder", str(data.folder)
    yield "vocabulary", f"{found.vocabulary:,} ({config.tokenizer.kind})"
    for split, part in found.splits.items():
        if part.documents:
            counts = f"{part.documents:,} documents, {part.bytes:,} bytes, {part.tokens:,} tokens"
            yield split, f"{counts}, {part.bytes_per_token:.2f} bytes per token"
    if data.left_out:
        yield "left out", ", ".join(f"{reason}: {count:,}" for reason, count in data.left_out.items())
    if found.near_duplicates:
        yield "near-duplicates", f"{found.near_duplicates:,} documents nearly equal to held-out text, left out of training"
    if words := misfits(data, config):
        yield "conversations", words
    if found.skipped:
        yield "binary files", f"{len(found.skipped):,} left out, {found.skipped[0]} among them"
    train = found.splits["train"]
    yield "document lengths", " / ".join(f"{n:,}" for n in train.lengths) + " tokens (least, 10 %, median, 90 %, most)"
    cut = train.cut / max(train.documents, 1)
    yield "cut documents", f"{cut:.1%} are longer than the context of {config.context:,} tokens"
    for kind, share in found.packing.items():
        yield f"packing, {kind}", f"{share:.2%} of {config.packing_length:,} tokens filled"
    name, text = found.example
    yield "example", f"{name}: {' '.join(text.split())}"
