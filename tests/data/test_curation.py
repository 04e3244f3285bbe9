from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unveil.config import CurationConfig, SourceConfig, TextDataConfig, TokenizerConfig
from unveil.data.curation import KEPT, counted, judged, left_out
from unveil.data.overlap import shingles
from unveil.data.shards import prepare
from unveil.errors import UserError


def reasons(documents: list[bytes], **rules: Any) -> list[str]:
    config = CurationConfig(**rules)
    return left_out((judged(document, config) for document in documents), config)


def text(seed: int, length: int = 3000) -> bytes:
    return np.random.default_rng(seed).integers(97, 123, length, dtype=np.uint8).tobytes()


@pytest.mark.parametrize(
    ("rules", "good", "bad", "reason"),
    [
        ({"shortest": 4}, b"four", b"two", "too short"),
        ({"longest": 4}, b"four", b"three", "too long"),
        ({"letters": 0.5}, "ab c 1 2é".encode(), b"ab 1 2 3", "few letters"),
        ({"repeated": 0.3}, b"same\none\ntwo\n\nsame\n", b"same\none\nsame\nsame\n", "repeats itself"),
    ],
)
def test_a_rule_leaves_out_what_breaks_it(rules: dict[str, Any], good: bytes, bad: bytes, reason: str) -> None:
    assert reasons([good, bad, good], **rules) == [KEPT, reason, KEPT]


def test_the_first_of_equal_documents_stays() -> None:
    documents = [b"a", b"b", b"a", b"c", b"b", b"a"]
    assert reasons(documents) == [KEPT] * 6
    found = reasons(documents, duplicates="exact")
    assert found == [KEPT, KEPT, "duplicate", KEPT, "duplicate", "duplicate"]
    assert counted([found, ["too short"]]) == {"duplicate": 3, "too short": 1}


def test_what_is_poor_is_no_original() -> None:
    """A document that is left out by a rule does not make its copies duplicates of nothing."""
    assert reasons([b"x", b"x"], duplicates="exact", shortest=2) == ["too short", "too short"]


@pytest.mark.parametrize("changed", [0.02, 0.05, 0.2, 0.6])
def test_near_duplicates_are_those_that_have_enough_in_common(changed: float) -> None:
    """Documents with a run replaced: the share in common is known, and the estimate is within three of its errors."""
    one, other = text(1, 8000), bytearray(text(1, 8000))
    other[: int(8000 * changed)] = text(2, int(8000 * changed))
    a, b = set(shingles(one).tolist()), set(shingles(bytes(other)).tolist())
    share = len(a & b) / len(a | b)
    error = 3 * (share * (1 - share) / 128) ** 0.5
    assert abs(share - 0.8) > error, "the case tells nothing"
    found = reasons([one, text(3), bytes(other)], duplicates="near", alike=0.8)
    assert found == [KEPT, KEPT, "near-duplicate" if share > 0.8 else KEPT]


def test_short_documents_are_compared_as_a_whole() -> None:
    assert reasons([b"hello world", b"hello worle", b"hello world"], duplicates="near") == [KEPT, KEPT, "duplicate"]


@pytest.fixture
def config(tmp_path: Path) -> TextDataConfig:
    documents = [text(i, 400 + i).decode() for i in range(60)] + [text(7, 407).decode(), "x", text(9, 408).decode() + "!"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    source = SourceConfig(kind="jsonl", path=str(tmp_path / "rows.jsonl"))
    return TextDataConfig(
        sources=(source,),
        tokenizer=TokenizerConfig(kind="bytes"),
        context=64,
        packing_length=128,
        validation=0.2,
        cache=str(tmp_path / "a"),
    )


def test_what_is_left_out_is_in_no_split_and_moves_no_other_document(config: TextDataConfig, tmp_path: Path) -> None:
    whole = prepare(config)
    curation = CurationConfig(duplicates="near", shortest=2)
    curated = prepare(replace(config, curation=curation))
    assert curated.left_out == {"duplicate": 1, "near-duplicate": 1, "too short": 1} and not whole.left_out
    places: list[dict[str, str]] = []
    for prepared in (whole, curated):
        places.append({store.name(i): split for split, stores in prepared.splits.items() for store in stores for i in range(len(store))})
    assert set(places[1]) == {f"rows.jsonl:{n}" for n in range(1, 61)}
    # a training document that equals held-out text is in the whole corpus' way, not in the curated one's
    assert all(places[0].get(name, "train") == split for name, split in places[1].items())
    again = prepare(replace(config, curation=curation, cache=str(tmp_path / "b")), workers=2)
    assert {p.name: p.read_bytes() for p in again.folder.iterdir()} == {p.name: p.read_bytes() for p in curated.folder.iterdir()}


def test_rules_that_leave_nothing_are_said(config: TextDataConfig) -> None:
    with pytest.raises(UserError, match=r"data\.curation"):
        prepare(replace(config, curation=CurationConfig(shortest=10_000)))
