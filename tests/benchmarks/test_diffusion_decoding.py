"""Both sides of each row do the same work, at toy size and without a look at the clock."""

from __future__ import annotations

import pytest
import torch

from benchmarks import diffusion_decoding as bench
from unveil.config import MaskedSamplerConfig, TransformerConfig
from unveil.errors import UserError

MODEL = TransformerConfig(width=32, depth=2, heads=2, hidden=64, init="normal", init_std=0.2)


def test_reading_finished_blocks_again_changes_nothing_but_the_work() -> None:
    s = bench.subject(MODEL, 64, block=4)
    config = MaskedSamplerConfig(length=16, cache="block", temperature=0.0, end="forbid", steps=8)
    texts = bench.prompts(s.vocabulary, 2, 5)
    ours, again = (bench.Decode(s, config, texts, anew)() for anew in (False, True))
    assert torch.equal(ours, again) and ours.shape == (2, 16)


@pytest.mark.parametrize("judged", [False, True])
def test_rows(judged: bool) -> None:
    judge = None
    if judged:
        network = bench.setting.build(MODEL, 64).eval()
        judge = bench.Subject(network, bench.setting.vocabulary(64), 0, True)
    full, block = bench.subject(MODEL, 64), bench.subject(MODEL, 64, block=4)
    for row in (
        bench.dual_threshold(full, 2, judge, new=16, window=8),
        bench.exact_block_cache(block, 2, judge, new=16),
        bench.against_autoregressive(block, judge, new=16),
    ):
        assert row.ours > 0 and row.peer > 0 and row.unit == "new tokens/s" and "assumed" in row.peer_name
        assert ("nats a token at entropy" in row.peer_name) == judged


def test_a_wrong_list_of_runs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNVEIL_RUNS", "mask=runs/x")
    with pytest.raises(UserError, match="UNVEIL_RUNS: got 'mask=runs/x'; write KIND=DIR"):
        bench.given()
