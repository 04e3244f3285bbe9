from __future__ import annotations

import numpy as np

from unveil.family import Row
from unveil.report.timeline import timeline


class Decoder:
    """Ids are bytes; 256 and above are specials."""

    def decode_bytes(self, ids: list[int]) -> bytes:
        return bytes(i for i in ids if i < 256)


def row(data: bytes, *more: int) -> Row:
    tokens = np.array([256, *data, *more], dtype=np.int64)
    n = len(tokens)
    return Row(0, tokens, np.arange(n), np.linspace(1, 0.1, n).astype(np.float32), True)


def test_a_timeline_is_what_the_snapshot_said() -> None:
    source = row(b"print")
    made = timeline("t", source, Decoder())
    assert made.pieces == ["p", "r", "i", "n", "t"]
    assert made.committed_at == source.committed_at[1:].tolist()
    assert made.confidence == source.confidence[1:].tolist()


def test_places_choose_and_order_the_pieces() -> None:
    made = timeline("t", row(b"abcd"), Decoder(), np.array([0, 3, 1]))
    assert (made.pieces, made.committed_at) == (["c", "a"], [3, 1])


def test_a_covered_token_is_a_blank_piece() -> None:
    source = row(b"ab")
    source.committed_at[1] = -1
    assert (timeline("t", source, Decoder()).pieces, timeline("t", source, Decoder()).committed_at) == (["░", "b"], [-1, 2])


def test_characters_over_several_tokens_and_broken_ones() -> None:
    made = timeline("t", row("aäz".encode()), Decoder())
    assert made.pieces == ["a", "", "ä", "z"]
    assert "".join(timeline("t", row(b"a\xc3"), Decoder()).pieces) == "a\ufffd"


def test_nothing_uncovered() -> None:
    made = timeline("t", row(b"", 257), Decoder())
    assert (made.pieces, made.committed_at, made.confidence) == ([], [], [])
