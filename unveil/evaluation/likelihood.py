"""Held-out bits per byte of any text family, on the source's bytes, so that paradigms and tokenizers compare.

A sequence is ``[start] + piece (+ [end])``. Start is given, content is scored, and the cost of ending stands apart: a family that
must say where a document ends would otherwise be compared with one that is told.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unveil.data.loader import Scored
from unveil.family import Family
from unveil.metrics.compression import bits_per_byte
from unveil.nn.packed import Packed


@dataclass(frozen=True)
class BitsPerByte:
    """Held-out cost of the content, in bits per byte of the source."""

    content: float
    """Exact for a family that computes log p; an upper bound for one that bounds it."""
    stderr: float
    """Standard error over the sequences (ratio estimator): the choice of texts and the Monte-Carlo draws together."""
    draws_stderr: float
    """The part of it that more draws would remove; 0 where log p is exact, NaN where one draw cannot tell."""
    ending: float
    """Bits for each document's end, outside ``content``; NaN where no scored document ends."""
    nats_per_token: float
    tokens: int
    bytes: int
    sequences: int


def held_out_bits(family: Family, model: nn.Module, batches: Iterable[Scored], draws: int = 1, seed: int = 0) -> BitsPerByte:
    """Score every batch with ``Family.log_likelihood``.

    Args:
        batches: what ``unveil.data.loader.held_out`` yields.
        draws: Monte-Carlo draws per sequence, for families that bound log p; the others ignore it.
        seed: of the draws.

    Raises:
        ValueError: the batches hold no source byte.
    """
    nats: list[Tensor] = []
    errors: list[Tensor] = []
    sizes: list[Tensor] = []
    tokens, endings, ending_nats = 0, 0, 0.0
    kind: Any = family
    was_training = model.training
    model.eval()
    try:
        for scored in batches:
            batch, content_T, bytes_N, given_T = scored
            told = {} if given_T is None else {"given_T": given_T}
            log_p, error = kind.log_likelihood(model, batch, draws, seed, content_T, **told)
            nats.append(-log_p.double().cpu())
            errors.append(error.double().cpu())
            sizes.append(bytes_N.double().cpu())
            tokens += int(content_T.sum())
            ends = _with_end(scored)
            if ends is not None:
                ended, end_T, told = ends
                ending_nats -= float(kind.log_likelihood(model, ended, draws, seed, end_T, **told)[0].sum())
                endings += len(ended.sample_ids_N)
    finally:
        model.train(was_training)
    if not sizes or not (total := float(torch.cat(sizes).sum())):
        raise ValueError("no held-out bytes to score")
    nats_N, sizes_N = torch.cat(nats), torch.cat(sizes)
    cost, n = float(nats_N.sum()), len(nats_N)
    residual = nats_N - cost / total * sizes_N
    spread = math.sqrt(float((residual**2).sum()) * n / (n - 1)) if n > 1 else math.nan
    return BitsPerByte(
        content=bits_per_byte(cost, int(total)),
        stderr=bits_per_byte(spread, int(total)),
        draws_stderr=bits_per_byte(float(torch.cat(errors).square().sum().sqrt()), int(total)),
        ending=ending_nats / math.log(2) / endings if endings else math.nan,
        nats_per_token=cost / tokens,
        tokens=tokens,
        bytes=int(total),
        sequences=n,
    )


def _with_end(scored: Scored) -> tuple[Packed, Tensor, dict[str, Tensor]] | None:
    """The sequences that end with the document or the turn, alone, what ends them, and what is told: neither source, told, nor the start at
    position 0."""
    batch, content_T, _, given_T = scored
    end_T = ~content_T & (batch.positions_T > 0)
    end_T = end_T if given_T is None else end_T & ~given_T
    told = batch.split(end_T if given_T is None else given_T)
    parts = zip(batch.split(), batch.split(end_T), told, batch.sample_ids_N.tolist(), strict=True)
    kept = [part for part in parts if bool(part[1].any())]
    if not kept:
        return None
    ended = Packed.of([tokens for tokens, *_ in kept], [sample for *_, sample in kept])
    given = {} if given_T is None else {"given_T": torch.cat([given for _, _, given, _ in kept])}
    return ended, torch.cat([end for _, end, *_ in kept]), given
