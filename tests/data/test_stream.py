from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unveil.data.packing import count_pieces
from unveil.data.store import Entry, TokenStore, write_shard
from unveil.data.stream import Epoch, Stream


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    lengths = [1, 5, 30, 31, 32, 100, 1000, 7]
    write_shard(tmp_path / "s.arrow", [Entry(str(n), np.arange(n), n, n != 7) for n in lengths], np.uint16, "key")
    return TokenStore([tmp_path / "s.arrow"], "key")


def test_an_epoch_holds_every_token_of_every_document_once(store: TokenStore) -> None:
    for number in range(3):
        epoch = Epoch(store, 16, seed=1, source=0, epoch=number)
        pieces = [epoch[i] for i in range(len(epoch))]
        seen = sorted((d, t) for d, start, stop, _ in pieces for t in range(start, stop))
        assert seen == [(d, t) for d, n in enumerate(store.lengths) for t in range(n)]
        assert sum(ends for *_, ends in pieces) == store.ends.sum()
        assert all(1 + stop - start + ends <= 16 for _, start, stop, ends in pieces)


def test_epochs_and_seeds_differ_in_order_and_in_cuts(store: TokenStore) -> None:
    runs = [Epoch(store, 16, seed, 0, number) for seed in (0, 1) for number in (0, 1)]
    orders = {tuple(e[i] for i in range(10)) for e in runs}
    assert len(orders) == 4
    starts = [sorted(e[i][1] for i in range(len(e)) if e[i][0] == 6)[1] for e in (Epoch(store, 16, s, 0, 0) for s in range(300))]
    assert set(starts) == set(range(1, 16)), "the first cut of a long document falls anywhere in a piece"
    longest = [Epoch(store, 16, 0, 0, 0)[i] for i in range(len(Epoch(store, 16, 0, 0, 0)))]
    inside = [start for d, start, _, _ in longest if d == 6]
    assert inside != sorted(inside), "neighbouring pieces do not follow each other"


def test_sources_get_their_share_of_tokens_at_every_time(store: TokenStore) -> None:
    weights = (0.5, 0.3, 0.2)
    stream = Stream([store] * 3, weights, context=16, seed=0)
    for n in range(1500):
        assert next(stream).sample_id == n
        shares = np.array(weights) * sum(stream.given)
        assert np.abs(shares - stream.given).max() <= 2 * 16
    assert min(stream.epochs) > 2
    epoch_pieces = int(count_pieces(store.lengths, store.ends, 0, 16).sum())
    assert stream.epochs[0] == pytest.approx(2.5 * stream.epochs[2], abs=2) and epoch_pieces > 50


def test_a_stream_restored_in_the_middle_of_an_epoch_goes_on_alike(store: TokenStore) -> None:
    straight, again = (Stream([store, store], (0.7, 0.3), 16, 5) for _ in range(2))
    for _ in range(237):
        next(straight)
    again.restore(straight.state())
    assert [next(again) for _ in range(300)] == [next(straight) for _ in range(300)]


def test_a_source_without_documents_is_refused(store: TokenStore) -> None:
    with pytest.raises(ValueError, match="no documents"):
        Stream([store, TokenStore([], "key")], (0.5, 0.5), 16, 0)
