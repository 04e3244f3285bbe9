"""What a corpus looks like to the trainer: documents, lengths, bytes per token, how well it packs, an example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from unveil.config import TextDataConfig
from unveil.data.corpus import skipped_files
from unveil.data.packing import OPEN, efficiency, pack
from unveil.data.shards import Prepared
from unveil.data.split import SPLITS, Split
from unveil.data.store import TokenStore
from unveil.data.stream import Stream

PIECES = 20_000
EXAMPLE = 200


@dataclass(frozen=True)
class SplitSummary:
    """``lengths``: tokens per document at the quantiles 0, 0.1, 0.5, 0.9 and 1, special tokens not counted."""

    documents: int
    bytes: int
    tokens: int
    lengths: tuple[int, int, int, int, int]
    cut: int
    """Documents longer than ``context``."""

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.tokens if self.tokens else 0.0


@dataclass(frozen=True)
class Inspection:
    vocabulary: int
    splits: dict[Split, SplitSummary]
    packing: Mapping[str, float]
    """Share of the packs that holds tokens, over an epoch's first pieces in training order: by name of the packing."""
    near_duplicates: int
    """Training documents left out because they nearly equal held-out text."""
    skipped: tuple[str, ...]
    """Files of text folders left out as binary."""
    example: tuple[str, str]
    """Name and first characters of a training document, as decoded from its tokens."""


def inspect(prepared: Prepared, config: TextDataConfig) -> Inspection:
    """Summarise prepared data; ``config`` is what it was prepared from."""
    stores = prepared.splits["train"]
    stream = Stream(stores, prepared.weights, config.context, seed=0)
    pieces = min(PIECES, sum(int(np.ceil((s.lengths + 1) / (config.context - 1)).sum()) for s in stores))
    lengths = [next(stream).length for _ in range(pieces)]
    first = stores[0]
    text = prepared.tokenizer.decode(first.tokens(0)[: 2 * EXAMPLE].tolist())[:EXAMPLE]
    return Inspection(
        vocabulary=prepared.tokenizer.vocabulary.size,
        splits={split: _summary(prepared.splits[split], config.context) for split in SPLITS},
        packing={kind: efficiency(pack(lengths, config.packing_length, kind), lengths, config.packing_length) for kind in OPEN},
        near_duplicates=prepared.near_duplicates,
        skipped=tuple(name for source in config.sources for name in skipped_files(source)),
        example=(first.name(0), text),
    )


def _summary(stores: list[TokenStore], context: int) -> SplitSummary:
    lengths = np.concatenate([s.lengths for s in stores])
    ends = np.concatenate([s.ends for s in stores])
    low, tenth, middle, ninth, high = (int(q) for q in np.quantile(lengths, [0, 0.1, 0.5, 0.9, 1])) if len(lengths) else (0,) * 5
    return SplitSummary(
        documents=len(lengths),
        bytes=int(sum(s.source_bytes.sum() for s in stores)),
        tokens=int(lengths.sum()),
        lengths=(low, tenth, middle, ninth, high),
        cut=int((lengths + ends + 1 > context).sum()),
    )
