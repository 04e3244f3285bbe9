"""The last row of a sampler as a timeline: which piece of text was committed at which step, and how sure the network was."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from unveil.family import Row, TokenTimeline

COVERED = "░"
"""Stands for a token that was never uncovered."""


class BytesDecoder(Protocol):
    """What a timeline needs of ``unveil.data.tokenizer.Tokenizer``."""

    def decode_bytes(self, ids: Any, /) -> bytes: ...


def timeline(
    title: str,
    row: Row,
    tokenizer: BytesDecoder,
    places: np.ndarray[Any, np.dtype[np.int64]] | None = None,
    note: str = "",
    steps: Sequence[Sequence[int]] = (),
) -> TokenTimeline:
    """One piece per token that decodes to anything; the pieces joined are the row's text.

    A character whose bytes are spread over several tokens stands in the last of them. Specials decode to nothing and are left out.

    Args:
        places: tokens to show, in reading order, where that is not the order of the row (fill-in-the-middle).
        note: a line below it.
        steps: what each step took, as ``TokenTimeline`` says.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces: list[str] = []
    shown: list[int] = []
    for place in range(len(row.tokens)) if places is None else places.tolist():
        if row.committed_at[place] < 0:
            pieces.append(decoder.decode(b"", final=True) + COVERED)
        elif data := tokenizer.decode_bytes([int(row.tokens[place])]):
            pieces.append(decoder.decode(data))
        else:
            continue
        shown.append(place)
    if pieces:
        pieces[-1] += decoder.decode(b"", final=True)
    index = np.asarray(shown, dtype=np.int64)
    return TokenTimeline(title, pieces, row.committed_at[index].tolist(), row.confidence[index].tolist(), note, list(steps))
