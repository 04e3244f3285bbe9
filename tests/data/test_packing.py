from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unveil.config import SourceConfig
from unveil.data.corpus import documents
from unveil.data.packing import OPEN, PATIENCE, Packer, count_pieces, efficiency, pack, piece


def plain_best_fit(lengths: list[int], capacity: int, open_bins: int) -> list[list[int]]:
    """Best-fit as one says it: look at every open pack, oldest first, take the tightest that fits."""
    packs: list[list[int]] = []
    bins: list[list[int]] = []
    opened: list[int] = []  # the first piece of every pack, in the order in which they were opened

    def room(b: list[int]) -> int:
        return capacity - sum(lengths[i] for i in b)

    for index, length in enumerate(lengths):
        fitting = [b for b in bins if room(b) >= length]
        if fitting:
            chosen = min(fitting, key=room)
        else:
            if bins and len(opened) - opened.index(bins[0][0]) >= PATIENCE * open_bins:
                packs.append(bins.pop(0))
            elif len(bins) == open_bins:
                fullest = min(bins, key=room)
                bins.remove(fullest)
                packs.append(fullest)
            bins.append(chosen := [])
            opened.append(index)
        chosen.append(index)
        if room(chosen) < 2:
            bins.remove(chosen)
            packs.append(chosen)
    return packs + sorted(bins, key=room)


def plain_next_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    packs: list[list[int]] = [[]]
    for index, length in enumerate(lengths):
        if sum(lengths[i] for i in packs[-1]) + length > capacity:
            packs.append([])
        packs[-1].append(index)
    return packs


@pytest.mark.parametrize("seed", range(4))
def test_both_packings_equal_their_plain_twins(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(2, 100, 500).tolist()
    assert pack(lengths, 256, "best-fit") == plain_best_fit(lengths, 256, OPEN["best-fit"])
    assert pack(lengths, 256, "next-fit") == plain_next_fit(lengths, 256)


def test_every_piece_lies_whole_in_one_pack_that_holds_it() -> None:
    lengths = np.random.default_rng(0).integers(2, 257, 3000).tolist()
    packs = pack(lengths, 256)
    assert sorted(i for p in packs for i in p) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in p) <= 256 for p in packs)


def test_open_packs_are_bounded_and_the_fullest_leaves_first() -> None:
    packer: Packer[int] = Packer(100, 3)
    assert [packer.add(n, n) for n in (60, 70, 80)] == [[], [], []]
    assert packer.add(50, 50) == [[80]]
    assert [b.items for b in packer.bins] == [[70], [60], [50]]
    assert packer.add(99, 99) == [[70], [99]]


def test_no_piece_waits_for_long_where_all_others_fit_exactly() -> None:
    """Pieces of a quarter pack and now and then an odd one: the packs of the odd ones never fill up."""
    lengths = [64 if n % 50 else 33 for n in range(20_000)]
    packs = pack(lengths, 256)
    finished_at = {i: number for number, p in enumerate(packs) for i in p}
    waits = [finished_at[i] - i / 4 for i in range(len(lengths) - 8000)]
    assert max(waits) < (PATIENCE + 1) * OPEN["best-fit"]
    assert efficiency(packs, lengths, 256) > 0.97
    assert pack(lengths[:6000], 256) == plain_best_fit(lengths[:6000], 256, OPEN["best-fit"])


def test_a_packer_restored_in_the_middle_goes_on_alike() -> None:
    lengths = np.random.default_rng(1).integers(2, 64, 400).tolist()
    straight: Packer[int] = Packer(128, 8)
    first = [done for i in range(200) for done in straight.add(lengths[i], i)]
    again: Packer[int] = Packer(128, 8)
    again.restore([(b.order, [(lengths[i], i) for i in b.items]) for b in straight.bins], straight.opened)
    rest = [[done for i in range(200, 400) for done in p.add(lengths[i], i)] + p.flush() for p in (straight, again)]
    assert first and rest[0] == rest[1]


@pytest.mark.parametrize("length", [0, 1, 257])
def test_a_piece_that_cannot_be_packed_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=r"2\.\.256"):
        Packer(256, 4).add(length, None)


@pytest.mark.parametrize("context", [4, 5, 9, 16])
def test_pieces_tile_the_document_within_the_context(context: int) -> None:
    for length in range(1, 60):
        for ends in (False, True):
            for phase in range(context - 1):
                count = int(count_pieces(length, ends, phase, context))
                cuts = [piece(length, ends, phase, context, k) for k in range(count)]
                assert [c for start, stop in cuts for c in range(start, stop)] == list(range(length))
                sizes = [1 + stop - start + (ends and stop == length) for start, stop in cuts]
                assert max(sizes) <= context
                assert all(stop > start for start, stop in cuts), "a sequence holds a token of the document"
                assert (count == 1) == (length + ends <= context - 1)


@pytest.mark.parametrize(
    "source",
    [
        SourceConfig(kind="text", path="wikitext2/valid.txt", documents="paragraph"),
        SourceConfig(kind="text", path="shakespeare/input.txt"),
        SourceConfig(kind="jsonl", path="poems/tang.jsonl.gz", column="lines"),
    ],
    ids=["paragraphs", "one text", "poems"],
)
def test_best_fit_fills_packs_to_97_percent_where_next_fit_may_not(data_dir: Path, source: SourceConfig) -> None:
    texts = documents(SourceConfig(kind=source.kind, path=str(data_dir / source.path), documents=source.documents, column=source.column))
    sizes = np.array([len(d.data) for d in texts])
    for bytes_per_token in (1, 4):
        lengths, phases = -(-sizes // bytes_per_token), np.random.default_rng(0).integers(0, 255, len(sizes))
        counts = count_pieces(lengths, True, phases, 256)
        cuts = [(piece(int(n), True, int(p), 256, k), n) for n, p, c in zip(lengths, phases, counts, strict=True) for k in range(c)]
        pieces = np.random.default_rng(1).permutation([1 + stop - start + int(stop == n) for (start, stop), n in cuts]).tolist()
        best, following = (efficiency(pack(pieces, 2048, kind), pieces, 2048) for kind in ("best-fit", "next-fit"))
        assert best >= 0.97
        assert best >= following
