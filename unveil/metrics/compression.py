"""Bits per byte of held-out bytes under general-purpose compressors and byte-level context models: what a language model must beat.

Each baseline scores ``test`` alone, or primed: as the continuation of ``primer``. Primed, a compressor pays the difference of two
sizes, ``size(primer + test) - size(primer)``; a context model starts from the counts of the primer. Both go on adapting on the
test bytes, which a trained network does not do.
"""

from __future__ import annotations

import lzma
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Counts = np.ndarray[Any, np.dtype[np.int64]]
Probabilities = np.ndarray[Any, np.dtype[np.float64]]
Baseline = Callable[[bytes, bytes], float]


@dataclass(frozen=True)
class Score:
    """Bits per byte of the held-out bytes under one baseline, alone and after the training bytes."""

    name: str
    alone: float
    primed: float


def bits_per_byte(nats: float, size: int) -> float:
    """Bits per byte of ``size`` bytes that cost ``nats`` in all."""
    return nats / (math.log(2) * size)


def gzip(test: bytes, primer: bytes = b"") -> float:
    """DEFLATE at its highest level, without the container's header. Its window is 32 KiB, so that of a primer only the end counts."""
    return _difference(lambda data: _deflated(data), test, primer[-(1 << 15) :])


def xz(test: bytes, primer: bytes = b"") -> float:
    """LZMA2 at its highest preset, without the container's header, with a window over all of ``primer + test`` (up to 1.5 GiB)."""
    window = min(max(1 << (len(primer) + len(test)).bit_length(), 1 << 16), 3 << 29)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": window}]
    return _difference(lambda data: len(lzma.compress(data, lzma.FORMAT_RAW, filters=filters)), test, primer)


def order3(test: bytes, primer: bytes = b"") -> float:
    """The adaptive context model of three bytes: see ``context_probabilities``."""
    return _coded(test, primer, order=3)


def unigram(test: bytes, primer: bytes = b"") -> float:
    """Adaptive frequencies of single bytes: the context model of order 0."""
    return _coded(test, primer, order=0)


BASELINES: Mapping[str, Baseline] = {"unigram": unigram, "gzip": gzip, "order-3": order3, "xz": xz}


def context_probabilities(data: bytes, order: int, begin: int = 0) -> Probabilities:
    """What an adaptive model of contexts up to ``order`` bytes gave each byte of ``data[begin:]`` before it saw it, float64.

    Orders are interpolated from the shortest up (Witten and Bell 1991, method C; Moffat's escape counts in PPM):

        p_k(x | c) = (n(c, x) + d(c) p_{k-1}(x | c')) / (n(c) + d(c)),   p_{-1} = 1/256,

    where n counts what was seen so far after the context c of k bytes, d(c) is the number of different bytes among it, and c' is c
    without its oldest byte. Where the context was never seen, p_k = p_{k-1}. Every p_k sums to 1 over the 256 bytes.

    All counts of the sequential model come out of two sorts per order, at once. Up to three bytes of context and 2^32 bytes of data.

    Raises:
        ValueError: the order is not one of 0 to 3.
    """
    if not 0 <= order <= 3:
        raise ValueError(f"order {order}: contexts of 0 to 3 bytes fit the sort keys")
    symbols = np.frombuffer(data, dtype=np.uint8)
    p = np.full(len(symbols) - begin, 1 / 256)
    context = np.zeros(len(symbols), dtype=np.uint64)
    for k in range(order + 1):
        if k:  # the byte k places back joins the context; the first k bytes of the stream have none of this order
            context[k:] |= symbols[:-k].astype(np.uint64) << np.uint64(8 * (k - 1))
        pair, total, distinct = (counts[max(begin - k, 0) :] for counts in _past_counts(context[k:], symbols[k:]))
        late = p[len(p) - len(total) :]
        seen = total > 0
        late[seen] = (pair[seen] + distinct[seen] * late[seen]) / (total[seen] + distinct[seen])
    return p


def _past_counts(context: np.ndarray[Any, np.dtype[np.uint64]], symbols: Bytes) -> tuple[Counts, Counts, Counts]:
    """At each place, over the places before it: how often (context, symbol) came, how often the context, how many symbols it had."""
    n = len(symbols)
    pair = (context << np.uint64(8)) | symbols
    at, start = _grouped(pair)
    pair_count = np.empty(n, dtype=np.int64)
    pair_count[at] = np.arange(n) - start
    at, start = _grouped(context)
    context_count = np.arange(n) - start
    new = np.concatenate([[0], np.cumsum(pair_count[at] == 0)])
    total, distinct = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    total[at], distinct[at] = context_count, new[:-1] - new[start]
    return pair_count, total, distinct


def _grouped(keys: np.ndarray[Any, np.dtype[np.uint64]]) -> tuple[Counts, Counts]:
    """Places sorted by key and then by time, and for each the rank at which its group of equal keys starts."""
    n = len(keys)
    ordered = np.sort((keys << np.uint64(32)) | np.arange(n, dtype=np.uint64))
    first = np.ones(n, dtype=bool)
    first[1:] = (ordered[1:] >> np.uint64(32)) != (ordered[:-1] >> np.uint64(32))
    start = np.maximum.accumulate(np.where(first, np.arange(n), 0))
    return (ordered & np.uint64(0xFFFFFFFF)).astype(np.int64), start


def _coded(test: bytes, primer: bytes, order: int) -> float:
    if not test:
        raise ValueError("no held-out bytes to score")
    return float(-np.log2(context_probabilities(primer + test, order, begin=len(primer))).mean())


def _difference(size: Callable[[bytes], int], test: bytes, primer: bytes) -> float:
    if not test:
        raise ValueError("no held-out bytes to score")
    return 8 * (size(primer + test) - (size(primer) if primer else 0)) / len(test)


def _deflated(data: bytes) -> int:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return len(compressor.compress(data)) + len(compressor.flush())
