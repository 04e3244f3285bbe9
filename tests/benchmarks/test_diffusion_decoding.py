"""Both sides of each row do the same work, at toy size and without a look at the clock."""

from __future__ import annotations

import dataclasses
import json
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import decoding_quality as quality
from benchmarks import decoding_runs, dllm
from benchmarks import diffusion_decoding as bench
from unveil import recipe as recipes
from unveil.config import MaskedSamplerConfig, TransformerConfig
from unveil.discrete.denoiser import Subs
from unveil.errors import UserError
from unveil.run import train

MODEL = TransformerConfig(width=32, depth=2, heads=2, hidden=64, init="normal", init_std=0.2)


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [({"steps": 8}, dllm.quota(4, 2)), ({"commit": "threshold", "threshold": 0.1}, dllm.threshold(0.1))],
    ids=["quota", "threshold"],
)
def test_reading_finished_blocks_again_changes_nothing_but_the_work(settings, chosen) -> None:  # type: ignore[no-untyped-def]
    s = bench.random(MODEL, 64, block=4, prompt=8)
    config = MaskedSamplerConfig(length=16, cache="block", temperature=0.0, end="forbid", **settings)
    ours = bench.Decode(s, config, 3)()
    subs = Subs(s.vocabulary.mask, s.vocabulary.specials)
    again, forwards = dllm.generate(s.network, subs.restrict, torch.stack(list(s.openings[:3])), 16, 4, s.vocabulary.mask, chosen)
    assert torch.equal(ours, again[:, 8:]) and ours.shape == (3, 16) and 4 <= forwards <= 16


def test_rows_on_random_weights() -> None:
    full, block = bench.random(MODEL, 64), bench.random(MODEL, 64, block=4)
    causal = bench.setting.build(MODEL, 64).eval()
    for row in (
        bench.dual_threshold(full, 2, new=16, window=8),
        bench.exact_block_cache(block, 2, new=16),
        bench.against_autoregressive(block, causal, new=16),
    ):
        assert row.ours > 0 and row.peer > 0 and row.unit == "new tokens/s" and "assumed" in row.peer_name


def test_the_loss_is_paired_and_its_interval_holds_it() -> None:
    rng = np.random.default_rng(0)
    plain = rng.normal(1.5, 0.3, 400)
    same, low, high = quality.loss(plain + 0.02 + rng.normal(0, 0.01, 400), plain)
    assert low < np.expm1(0.02) < high and low < same < high and high - low < 0.003  # of the pairs, not of the texts
    assert quality.loss(plain, plain) == (0.0, 0.0, 0.0)


def test_the_fastest_keeps_the_quality_by_its_interval() -> None:
    def point(name: str, rate: float, loss: tuple[float, float, float] | None) -> quality.Point:
        return quality.Point(name, "masked", 9, {"1": 1.0, "8": rate}, 1.0, 1.0, 1.0, 3.0, 2.0, 0.5, loss)

    found = [point("plain", 1, None), point("kept", 3, (0.0, -0.02, 0.009)), point("fast", 9, (0.0, -0.02, 0.011))]
    best = quality.fastest(found, "masked")
    assert best is not None and best.name == "kept" and quality.fastest(found, "block") is None


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four runs of a few steps."""
    monkeypatch.setenv("UNVEIL_CACHE", str(tmp_path / "cache"))
    for name, value in (("CONTEXT", 32), ("OPENING", 8), ("NEW", 8), ("AROUND", 24), ("GAP", 3)):
        monkeypatch.setattr(decoding_runs, name, value)
    for name, value in (("OPENING", 8), ("NEW", 8), ("WINDOW", 4), ("TOGETHER", 2)):
        monkeypatch.setattr(quality, name, value)
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(97 + i * i % 7) for i in range(1500)))
    small = [("model.width", 16), ("model.depth", 1), ("training.steps", 2), ("training.compile", "off"), ("evaluation.tokens", 64)]
    small += [("training.minutes", 0.0), ("data.packing_length", 64), ("data.context", 32), ("sampler.length", 8)]
    for kind, (name, _) in decoding_runs.KINDS.items():
        source = [("data.sources", [{"kind": "text", "path": str(text)}])]
        train(recipes.with_overrides(recipes.load(name), [*source, *small]), tmp_path / "runs" / kind, console=False)
    return tmp_path / "runs"


def test_trained_runs_have_a_frontier(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = ArgumentParser()
    bench.arguments(parser)
    given = parser.parse_args(["--runs", str(runs), "--texts", "3", "--plot", str(tmp_path / "frontier.svg")])
    chosen = [quality.masked("plain", True), quality.masked("dual", cache="dual"), quality.block("block", True), quality.settings()[-1]]
    chosen = [dataclasses.replace(each, config=dataclasses.replace(each.config, length=8)) for each in chosen]
    monkeypatch.setattr(quality, "settings", lambda: chosen)
    found = json.loads(json.dumps(bench.details(given)))
    assert [p["name"] for p in found] == ["plain", "dual", "block", "autoregressive"]
    plain, dual, block, causal = found
    assert plain["evaluations"] == dual["evaluations"] == block["evaluations"] == 8 and plain["tokens_per_forward"] == 1.0
    assert plain["read"] == 16 and dual["read"] == (2 * 16 + 6 * 4) / 8 and block["read"] == (8 * 8 + 8) / 8
    assert len(dual["loss"]) == 3 and plain["loss"] is block["loss"] is causal["loss"] is causal["exact"] is None
    assert all(p["perplexity"] > 1 and 0 <= p["entropy"] < 3 and p["rate"].keys() == {"1", "8"} for p in found)
    assert (tmp_path / "frontier.svg").read_text().count("<svg") == 1
    assert bench.details(parser.parse_args([])) is None


def test_what_is_missing_wants_a_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["diffusion_decoding", "--runs", str(tmp_path)]) == 2
    assert "--runs: " in (line := capsys.readouterr().err.splitlines()[-1]) and "name a corpus with --data" in line
    with pytest.raises(UserError, match="is no finished run"):
        decoding_runs.gathered(tmp_path, "", 1.0, 4)
