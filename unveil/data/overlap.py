"""Near-duplicates across the split: training documents that a model would be tested on.

A document is compared by its shingles, all runs of 32 bytes (Broder 1997). One hash in eight is kept, the same eighth everywhere
(``hash % 8 == 0``), so that the share of common hashes estimates the share of common shingles.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unveil.errors import UserError

SHINGLE = 32
SAMPLED = 8
SHORT = 256
"""Below this many bytes too few hashes are left to judge by: only equal documents count."""
NEAR = 0.8
"""Share of the shingles in common from which on a training document is a near-duplicate of held-out text."""

Hashes = np.ndarray[Any, np.dtype[np.uint64]]
_BYTES: Hashes = np.random.Generator(np.random.Philox(key=0)).integers(0, 2**64, 256, dtype=np.uint64)


def shingles(data: bytes) -> Hashes:
    """Sorted distinct sampled hashes of all runs of ``SHINGLE`` bytes."""
    rolling = _BYTES[np.frombuffer(data, dtype=np.uint8)]
    width, factor = 1, 0x9E3779B97F4A7C15
    while width < SHINGLE:  # the hash of 2w bytes from those of two neighbouring w
        rolling = rolling[:-width] * np.uint64(factor) + rolling[width:]
        width, factor = 2 * width, (factor * factor + 2) % 2**64
    mixed = rolling ^ (rolling >> np.uint64(29))
    return np.unique(mixed[mixed % np.uint64(SAMPLED) == 0])


def _whole(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _found(wanted: Hashes, among: Hashes) -> float:
    """Share of ``wanted`` that are in the sorted ``among``."""
    if not len(wanted) or not len(among):
        return 0.0
    return float(np.mean(among[np.minimum(np.searchsorted(among, wanted), len(among) - 1)] == wanted))


@dataclass(frozen=True)
class HeldOut:
    """All that is held out: the hashes of its shingles, sorted, each with the document it is of, and hashes of whole documents."""

    hashes: Hashes
    owners: np.ndarray[Any, np.dtype[np.int64]]
    whole: Hashes

    @staticmethod
    def of(documents: Iterable[bytes]) -> HeldOut:
        """A document shorter than one shingle is a common phrase, not a copy, and does not count."""
        whole: set[int] = set()
        parts = [np.zeros(0, dtype=np.uint64)]
        for document in documents:
            if len(document) >= SHINGLE:
                whole.add(_whole(document))
            if len(document) >= SHORT:
                parts.append(shingles(document))
        hashes = np.concatenate(parts)
        order = np.argsort(hashes, kind="stable")
        owners = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        return HeldOut(hashes[order], owners[order], np.array(sorted(whole), dtype=np.uint64))

    def holds(self, document: bytes) -> bool:
        """Whether a training document equals a held-out one, is found among them, or has one of them in it (``NEAR`` of the shingles)."""
        if len(document) < SHINGLE:
            return False
        if _found(np.array([_whole(document)], dtype=np.uint64), self.whole):
            return True
        if len(document) < SHORT:
            return False
        mine = shingles(document)
        if _found(mine, self.hashes) >= NEAR:
            return True
        sizes = np.bincount(self.owners)
        shared = np.bincount(self.owners[np.isin(self.hashes, mine)], minlength=len(sizes))
        return bool((shared >= NEAR * np.maximum(sizes, 1)).any())

    def save(self, path: Path) -> None:
        """Write aside and rename."""
        aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        with aside.open("wb") as stream:
            np.savez(stream, hashes=self.hashes, owners=self.owners, whole=self.whole)
        aside.replace(path)

    @staticmethod
    def load(path: Path) -> HeldOut:
        """Raises UserError where the file is damaged."""
        try:
            with np.load(path) as arrays:
                return HeldOut(arrays["hashes"], arrays["owners"], arrays["whole"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(str(path), "is damaged", "delete it and run `unveil data prepare` again") from error
