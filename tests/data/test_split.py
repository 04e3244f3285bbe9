from __future__ import annotations

import numpy as np
import pytest

from unveil.data.split import by_document, by_tail, place
from unveil.errors import UserError


def test_a_documents_split_depends_on_its_name_alone() -> None:
    names = [f"doc-{n}" for n in range(4000)]
    splits = by_document(names, 0.1, 0.2)
    assert by_document(names[::-1], 0.1, 0.2) == splits[::-1]
    shares = {s: splits.count(s) / len(names) for s in set(splits)}
    assert shares == pytest.approx({"train": 0.7, "validation": 0.1, "test": 0.2}, abs=0.03)
    assert np.mean([place(n) for n in names]) == pytest.approx(0.5, abs=0.02)


def test_of_few_documents_each_wanted_share_gets_one() -> None:
    splits = by_document(["a", "b", "c"], 0.001, 0.001)
    assert sorted(splits) == ["test", "train", "validation"]
    assert by_document(["a"], 0, 0) == ["train"]
    with pytest.raises(UserError, match=r"data\.split: 'document' cannot hold out any of 1 document and"):
        by_document(["a"], 0.1, 0)


def test_the_test_part_is_the_end_and_validation_the_end_of_what_is_left() -> None:
    parts = by_tail(b"x" * 1000, True, 0.1, 0.1)
    assert [(p.split, p.start, p.stop, p.ends) for p in parts] == [
        ("train", 0, 810, False),
        ("validation", 810, 900, False),
        ("test", 900, 1000, True),
    ]
    assert not by_tail(b"x" * 1000, False, 0.1, 0.1)[-1].ends
    assert [p.split for p in by_tail(b"xy", True, 0.1, 0.0)] == ["train", "validation"]
    assert [(p.split, p.ends) for p in by_tail(b"x" * 9, True, 0.0, 0.0)] == [("train", True)]


def test_tails_are_counted_in_characters_and_never_cut_one() -> None:
    text = "中文é" * 100 + "\U0001f600"
    data = text.encode() + b"\xff"
    parts = by_tail(data, True, 0.3, 0.25)
    assert b"".join(data[p.start : p.stop] for p in parts) == data
    counts = [len(data[p.start : p.stop].decode("utf-8", "surrogateescape")) for p in parts]
    kept = int(302 * 0.75)
    assert counts == [int(kept * 0.7), kept - int(kept * 0.7), 302 - kept]
    data[: parts[0].stop].decode()
