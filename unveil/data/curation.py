"""Which documents are worth training on: rules of quality, and duplicates, exact or near.

Near-duplicates are found as in DeepSeek LLM's and other large corpora: signatures of minima (MinHash; Broder 1997) over the same shingles
by which training text is compared with what is held out (``overlap``), looked up by bands (locality-sensitive hashing, ``datasketch``).
Of documents that are alike, the first one stays. Nothing here depends on how many processes there are.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from unveil.config import CurationConfig
from unveil.data.overlap import SHORT, shingles
from unveil.errors import UserError

PERMUTATIONS = 128
"""Minima in a signature: the estimate of a share s in common has a standard error of sqrt(s (1 - s) / 128)."""
KEPT = ""
"""The reason of what is not left out."""

_LETTERS = re.compile(r"[^\W\d_]", re.UNICODE)


class Judgement(NamedTuple):
    """Of a document: why it is left out (``KEPT`` if it is not), what it is, and the signature of what it holds (None: too short)."""

    reason: str
    digest: bytes
    signature: np.ndarray[Any, np.dtype[np.uint64]] | None


def judged(data: bytes, config: CurationConfig) -> Judgement:
    """By itself; whether another one is like it is for ``left_out`` to say."""
    if reason := _poor(data, config):
        return Judgement(reason, b"", None)
    digest = hashlib.blake2b(data, digest_size=16).digest()
    near = config.duplicates == "near" and len(data) >= SHORT
    return Judgement(KEPT, digest, _signature(data) if near else None)


def left_out(judgements: Iterable[Judgement], config: CurationConfig) -> list[str]:
    """The reason for each document, in their order; ``KEPT`` for those that stay.

    Raises UserError where near-duplicates are to be found and ``datasketch`` is missing.
    """
    reasons, seen, index = [], set[bytes](), None
    for n, (reason, digest, signature) in enumerate(judgements):
        if not reason and config.duplicates != "keep":
            reason = "duplicate" if digest in seen else KEPT
            seen.add(digest)
        if not reason and signature is not None:
            index = index or _Index(config.alike)
            reason = "near-duplicate" if index.holds(signature) else KEPT
            if not reason:
                index.add(n, signature)
        reasons.append(reason)
    return reasons


def counted(reasons: Iterable[Sequence[str]]) -> dict[str, int]:
    """How many documents were left out, by reason."""
    return dict(sorted(Counter(reason for each in reasons for reason in each if reason).items()))


def _poor(data: bytes, config: CurationConfig) -> str:
    """The first rule that the document breaks (Gopher's kind; Rae et al. 2021, appendix A.1)."""
    if len(data) < config.shortest:
        return "too short"
    if config.longest and len(data) > config.longest:
        return "too long"
    if config.letters:
        text = data.decode("utf-8", "replace")
        signs = sum(1 for c in text if not c.isspace())
        if sum(1 for _ in _LETTERS.finditer(text)) < config.letters * signs:
            return "few letters"
    if config.repeated < 1:
        lines = [line.strip() for line in data.splitlines()]
        counts = Counter(line for line in lines if line)
        again = sum(len(line) * (n - 1) for line, n in counts.items())
        if again > config.repeated * sum(len(line) * n for line, n in counts.items()):
            return "repeats itself"
    return KEPT


def _signature(data: bytes) -> np.ndarray[Any, np.dtype[np.uint64]]:
    minima = _minima()
    minima.update_batch((shingles(data) % np.uint64(2**32)).tolist())
    return np.asarray(minima.hashvalues, dtype=np.uint64)


class _Index:
    def __init__(self, alike: float) -> None:
        from datasketch import MinHashLSH

        self._alike, self._lsh = alike, MinHashLSH(threshold=alike, num_perm=PERMUTATIONS)
        self._signatures: dict[int, Any] = {}

    def holds(self, signature: Any) -> bool:
        """Whether one that was added shares enough of its minima."""
        found = self._lsh.query(_minima(hashvalues=signature))
        return any(float(np.mean(self._signatures[key] == signature)) >= self._alike for key in found)

    def add(self, key: int, signature: Any) -> None:
        self._signatures[key] = signature
        self._lsh.insert(key, _minima(hashvalues=signature))


def _minima(**values: Any) -> Any:
    try:
        from datasketch import MinHash
    except ImportError as error:
        raise UserError(
            "data.curation.duplicates", "'near' needs the library `datasketch`", "pip install 'unveil[dedup]', or take 'exact'"
        ) from error
    return MinHash(num_perm=PERMUTATIONS, hashfunc=int, scheme="affine32", **values)
