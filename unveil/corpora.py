"""A recipe's corpus in the terminal: prepared with a bar, inspected in a few lines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from unveil.config import TextDataConfig
from unveil.data.inspection import inspect
from unveil.data.shards import Prepared, prepare


def prepared(config: TextDataConfig, workers: int = 0, shown: bool = True) -> Prepared:
    """``data.shards.prepare`` under a progress bar on a terminal; 0 workers are one per core. Raises UserError as it does."""
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

        return prepare(config, workers or os.cpu_count() or 1, progress)


def described(data: Prepared, config: TextDataConfig) -> Iterator[tuple[str, str]]:
    """Name and finding: documents, bytes and tokens by split, lengths, how well they pack, an example."""
    found = inspect(data, config)
    yield "folder", str(data.folder)
    yield "vocabulary", f"{found.vocabulary:,} ({config.tokenizer.kind})"
    for split, part in found.splits.items():
        if part.documents:
            counts = f"{part.documents:,} documents, {part.bytes:,} bytes, {part.tokens:,} tokens"
            yield split, f"{counts}, {part.bytes_per_token:.2f} bytes per token"
    if found.near_duplicates:
        yield "near-duplicates", f"{found.near_duplicates:,} documents nearly equal to held-out text, left out of training"
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
