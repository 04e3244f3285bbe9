"""Who is held out: whole documents by a hash of their name, or the tail of every document.

Neither depends on the run's seed, so runs with different seeds are scored on the same text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

from unveil.errors import UserError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Part(NamedTuple):
    """Bytes ``[start, stop)`` of a document; ``ends`` tells whether the document ends with them."""

    split: Split
    start: int
    stop: int
    ends: bool


def place(name: str) -> float:
    """A document's place in [0, 1): uniform, and the same wherever and whenever it is computed."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") / 2**64


def by_document(names: Sequence[str], validation: float, test: float) -> list[Split]:
    """The split of each document: ``test`` below the test share, ``validation`` below the sum, ``train`` above.

    Of few documents none may fall in a share; then the training document with the lowest place goes there. Raises UserError where
    that leaves nothing to train on.
    """
    places = [place(name) for name in names]
    assigned: list[Split] = ["test" if p < test else "validation" if p < test + validation else "train" for p in places]
    wanted: list[tuple[Split, float]] = [("test", test), ("validation", validation)]
    for split, share in wanted:
        if share and split not in assigned:
            training = [i for i, s in enumerate(assigned) if s == "train"]
            if training:
                assigned[min(training, key=places.__getitem__)] = split
    if any(share and split not in assigned for split, share in wanted) or "train" not in assigned:
        problem = f"'document' cannot hold out any of {len(names)} document{'s' * (len(names) > 1)} and leave some to train on"
        raise UserError("data.split", problem, "take 'tail', set data.validation and data.test to 0, or give more documents")
    return assigned


def by_tail(data: bytes, ends: bool, validation: float, test: float) -> list[Part]:
    """Training, validation and test parts of a document, in its order, without empty ones.

    The test part is what follows the first ``int(n x (1 - test))`` of its n characters; the validation part is, by the same rule,
    the share ``validation`` of what is left. Bytes that are no UTF-8 count as a character each.
    """
    text = data.decode("utf-8", "surrogateescape")
    kept = int(len(text) * (1 - test))
    trained = int(kept * (1 - validation))
    bounds = [0, *(len(text[:n].encode("utf-8", "surrogateescape")) for n in (trained, kept)), len(data)]
    parts = [Part(split, a, b, ends and b == len(data)) for split, a, b in zip(SPLITS, bounds, bounds[1:], strict=False)]
    return [part for part in parts if part.stop > part.start]
