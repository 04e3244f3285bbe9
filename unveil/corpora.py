"""A recipe's corpus in the terminal: prepared with a bar, inspected in a few lines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from unveil.config import TextDataConfig
from unveil.data.corpus import skipped_files
from unveil.data.packing import OPEN, count_pieces, efficiency, pack, piece
from unveil.data.shards import Prepared, prepare
from unveil.data.split import SPLITS
from unveil.data.store import TokenStore

PACKED_TOKENS = 10_000_000
"""Tokens whose packing is tried out, at most: enough for three digits."""


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
    """Name and finding: documents, bytes and tokens by split, lengths, how well they pack."""
    yield "folder", str(data.folder)
    yield "vocabulary", f"{data.tokenizer.vocabulary.size:,} ({config.tokenizer.kind})"
    for split in SPLITS:
        stores = data.splits[split]
        documents, size, tokens = (sum(int(x) for x in column) for column in zip(*map(_counts, stores), strict=True))
        if documents:
            yield split, f"{documents:,} documents, {size:,} bytes, {tokens:,} tokens, {size / max(tokens, 1):.2f} bytes per token"
    if data.near_duplicates:
        yield "near-duplicates", f"{data.near_duplicates:,} documents nearly equal to held-out text, left out of training"
    if skipped := [name for source in config.sources for name in skipped_files(source)]:
        yield "binary files", f"{len(skipped):,} left out, {skipped[0]} among them"
    lengths = np.concatenate([store.lengths for store in data.splits["train"]])
    if len(lengths):
        quantiles = np.quantile(lengths, [0, 0.1, 0.5, 0.9, 1]).astype(int)
        yield "document lengths", " / ".join(f"{n:,}" for n in quantiles) + " tokens (least, 10 %, median, 90 %, most)"
        cut = float(np.mean(lengths + 2 > config.context))
        yield "cut documents", f"{cut:.1%} are longer than the context of {config.context:,} tokens"
        pieces = _pieces(data.splits["train"], config.context)
        for kind in OPEN:
            share = efficiency(pack(pieces, config.packing_length, kind), pieces, config.packing_length)
            yield f"packing, {kind}", f"{share:.2%} of {config.packing_length:,} tokens filled"


def _counts(store: TokenStore) -> tuple[int, int, int]:
    return len(store), int(store.source_bytes.sum()), int(store.lengths.sum())


def _pieces(stores: list[TokenStore], context: int) -> list[int]:
    """Lengths of the pieces that training would lay into packs, start and end tokens included, in an order as mixed as training's."""
    lengths = []
    for store in stores:
        for n, ends, count in zip(store.lengths, store.ends, count_pieces(store.lengths, store.ends, 0, context), strict=True):
            for index in range(int(count)):
                begin, stop = piece(int(n), bool(ends), 0, context, index)
                lengths.append(1 + stop - begin + int(bool(ends) and stop == n))
    order = np.random.default_rng(0).permutation(len(lengths))
    kept = order[: np.searchsorted(np.cumsum(np.array(lengths)[order]), PACKED_TOKENS) + 1]
    return [lengths[i] for i in kept]
