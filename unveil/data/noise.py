"""Randomness as data: every draw is a pure function of (run seed, epoch, sample id, purpose).

So a sample meets the same noise alone, in any pack, in any worker and at any number of ranks, and after a resume.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np

_STEP = 0x9E3779B97F4A7C15
"""2^64 / golden ratio, as in Fibonacci hashing."""


@lru_cache(maxsize=256)
def _key(purpose: str) -> int:
    return int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")


def generator(seed: int, epoch: int, sample_id: int, purpose: str) -> np.random.Generator:
    """A Philox4x64-10 stream (Salmon et al. 2011) that belongs to these four alone.

    Seed and purpose make the 128-bit key; epoch and sample id are the upper half of the 256-bit counter, so that two samples'
    streams cannot meet before 2^128 draws. Integers are taken modulo 2^64.
    """
    key = np.array([seed % 2**64, _key(purpose)], dtype=np.uint64)
    counter = np.array([0, 0, sample_id % 2**64, epoch % 2**64], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def stratified(u: float | np.ndarray[Any, Any], index: int | np.ndarray[Any, Any]) -> Any:
    """``frac(u + index x golden ratio)`` in [0, 1), float64: for consecutive indices the most evenly spread points there are.

    The product is taken modulo 1 in 64-bit integers, so an index of 10^9 loses no precision. ``u`` in [0, 1) is the shift that
    makes each point uniform; ``index`` is the global sample index (an integer or an integer array that broadcasts with ``u``).
    """
    turns = (np.asarray(index).astype(np.uint64) * np.array(_STEP, dtype=np.uint64)).astype(np.float64) * 2.0**-64
    shifted = np.mod(np.asarray(u, dtype=np.float64) + turns, 1.0)
    return shifted if shifted.ndim else float(shifted)
