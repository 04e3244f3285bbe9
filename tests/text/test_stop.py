from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from unveil.errors import UserError
from unveil.text.stop import StopStrings


def cut_into_tokens(data: bytes, rng: np.random.Generator) -> list[bytes]:
    """Random pieces of 1 to 4 bytes: boundaries fall inside characters and inside stop strings; some tokens have no bytes at all."""
    pieces, at = [], 0
    while at < len(data):
        size = int(rng.integers(0, 5))
        pieces.append(data[at : at + size])
        at += size
    return pieces


def decoder(pieces: list[bytes]) -> object:
    return lambda ids: b"".join(pieces[i] for i in ids)


@pytest.mark.parametrize("stops", [("\nUser:",), ("ß→", "END"), ("a",), ("→→→",)])
def test_stops_at_the_token_that_completes_the_string_wherever_tokens_are_cut(stops: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    letters = np.array(list("ab\nUser:ß→END"))
    fired = 0
    for _ in range(200):
        text = "".join(rng.choice(letters, size=12))
        if rng.random() < 0.7:
            at = int(rng.integers(0, 13))
            text = text[:at] + str(rng.choice(stops)) + text[at:]
        pieces = cut_into_tokens(text.encode(), rng)
        stop = StopStrings(stops, decoder(pieces))  # type: ignore[arg-type]
        first = next((n for n in range(1, len(pieces) + 1) if stop(np.arange(n))), None)
        # The plain twin looks at all bytes so far.
        twin = next((n for n in range(1, len(pieces) + 1) if any(s.encode() in b"".join(pieces[:n]) for s in stops)), None)
        assert first == twin
        fired += first is not None
    assert fired > 100


def test_a_tokenizer_that_drops_the_leading_space_hides_no_stop_string() -> None:
    pieces = [b" so", b" it", b" ends"]

    def decode(ids: Sequence[int]) -> bytes:
        return b"".join(pieces[i] for i in ids).removeprefix(b" ")

    stop = StopStrings((" it ends",), decode)
    assert [stop(range(n)) for n in (1, 2, 3)] == [False, False, True]


def test_cut_takes_the_earliest_of_several() -> None:
    stop = StopStrings(("def ", "class "), lambda ids: b"")
    assert stop.cut("x = 1\nclass A\ndef f") == "x = 1\n"
    assert stop.cut("x = 1") == "x = 1"


def test_visible_text_is_never_taken_back() -> None:
    stop = StopStrings(("\nUser:", "\n\n"), lambda ids: b"")
    full = "Hi.\nUs all, ß\nUser: again"
    shown = ""
    for n in range(len(full.encode()) + 1):
        now = stop.visible(full.encode()[:n].decode(errors="replace"))
        assert now.startswith(shown)
        shown = now
    assert shown == stop.cut(full) == "Hi.\nUs all, ß"
    assert stop.visible("Hi.\nUse") == "Hi."
    assert stop.visible("Hi.\nUsa") == "Hi.\nUsa"
    assert StopStrings(("aab",), lambda ids: b"").visible("caa") == "c"  # both of its beginnings fit: the longer is held back


def test_no_strings_never_stop_and_an_empty_one_is_refused() -> None:
    assert not StopStrings((), lambda ids: b"a")([1])
    with pytest.raises(UserError, match=r"^sampler\.stop: got an empty string"):
        StopStrings(("",), lambda ids: b"")
