from __future__ import annotations

from dataclasses import replace

from unveil.config import TextDataConfig
from unveil.data.inspection import SplitSummary, inspect
from unveil.data.shards import Prepared, prepare


def test_a_summary_agrees_with_the_stores(prepared: Prepared, config: TextDataConfig) -> None:
    found = inspect(prepared, config)
    train = prepared.splits["train"][0]
    summary = found.splits["train"]
    assert (summary.documents, summary.tokens, summary.bytes) == (len(train), train.lengths.sum(), train.source_bytes.sum())
    assert summary.bytes_per_token == 1
    assert (summary.lengths[0], summary.lengths[-1]) == (train.lengths.min(), train.lengths.max())
    assert summary.cut == sum(n + 2 > config.context for n in train.lengths)
    one = int(train.lengths[0])
    fits, cut = (inspect(prepared, replace(config, context=c, packing_length=4096)).splits["train"].cut for c in (one + 2, one + 1))
    assert cut - fits == (train.lengths == one).sum() > 0
    assert sum(s.documents for s in found.splits.values()) == 60
    assert found.packing["next-fit"] < found.packing["best-fit"] <= 1
    assert found.packing["best-fit"] > 0.97
    assert found.vocabulary == 262 and found.near_duplicates == 0 and found.skipped == ()
    assert found.example[0] == train.name(0) and found.example[1].startswith("w")


def test_a_split_without_documents_is_all_zeros(config: TextDataConfig) -> None:
    none = replace(config, test=0.0)
    assert inspect(prepare(none), none).splits["test"] == SplitSummary(0, 0, 0, (0, 0, 0, 0, 0), 0)
