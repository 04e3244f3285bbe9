from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unveil.data.overlap import NEAR, HeldOut, shingles
from unveil.errors import UserError

RNG = np.random.default_rng(0)
TEXT = RNG.bytes(6000)
OTHER = RNG.bytes(6000)


def test_sampled_hashes_estimate_the_share_of_common_shingles() -> None:
    assert 0.8 < len(shingles(TEXT)) * 8 / len(TEXT) < 1.2
    shared = len(np.intersect1d(shingles(TEXT), shingles(TEXT[:3000] + OTHER[:3000])))
    assert shared / len(shingles(TEXT)) == pytest.approx(0.5, abs=0.08)
    assert not len(np.intersect1d(shingles(TEXT), shingles(OTHER)))


def test_a_hash_depends_on_the_order_of_all_32_bytes() -> None:
    seen = set()
    for i in range(200):
        base = bytearray(RNG.bytes(32))
        while not len(shingles(bytes(base))):
            base = bytearray(RNG.bytes(32))
        swapped = base[:]
        swapped[i % 31], swapped[i % 31 + 1] = base[i % 31 + 1], base[i % 31]
        seen.add(int(shingles(bytes(base))[0]))
        assert swapped == base or shingles(bytes(swapped)).tolist() != shingles(bytes(base)).tolist()
    assert len(seen) == 200


def test_near_copies_are_found_and_others_are_not() -> None:
    held = HeldOut.of([TEXT, b"a short document that is held out"])
    edited = bytearray(TEXT)
    for at in range(0, 6000, 600):  # ten edits spoil 320 of 6000 shingles
        edited[at] ^= 1
    assert held.holds(TEXT)
    assert held.holds(bytes(edited))
    assert held.holds(TEXT[1000:5000] + OTHER[:400])
    assert not held.holds(TEXT[:3000] + OTHER[:3000])
    assert not held.holds(OTHER)
    assert held.holds(OTHER + TEXT + OTHER), "a held-out document inside a training one"
    assert held.holds(b"a short document that is held out")
    assert not held.holds(b"a short document that is held in!")
    assert not HeldOut.of([b"return"]).holds(b"return"), "shorter than a shingle"
    assert not HeldOut.of([]).holds(TEXT)
    assert 0.5 < NEAR < 0.94


def test_saved_hashes_are_the_same_and_a_damaged_file_is_refused(tmp_path: Path) -> None:
    held = HeldOut.of([TEXT])
    held.save(tmp_path / "h.npz")
    again = HeldOut.load(tmp_path / "h.npz")
    assert np.array_equal(again.hashes, held.hashes) and np.array_equal(again.whole, held.whole)
    (tmp_path / "h.npz").write_bytes((tmp_path / "h.npz").read_bytes()[:100])
    with pytest.raises(UserError, match="is damaged"):
        HeldOut.load(tmp_path / "h.npz")
