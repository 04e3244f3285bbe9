"""The benchmarks' arithmetic, form and fairness, at toy sizes and without a look at the clock."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from benchmarks import __main__ as command
from benchmarks import (
    block_diffusion_training,
    decoding,
    experts_training,
    latent_decoding,
    measure,
    packing,
    peer,
    setting,
    speculative_decoding,
    training_throughput,
)
from unveil.autoregressive.objective import next_token_loss
from unveil.config import ExpertsConfig, LatentConfig, MTPConfig, NextTokenSamplerConfig, TransformerConfig
from unveil.nn.packed import Packed
from unveil.training import precision

MODEL = TransformerConfig(width=32, depth=2, heads=2, hidden=64)
SIZE = 64
FORM = {"name", "ours", "peer", "peer_name", "ratio", "unit", "spread", "floor"}


PEAK = 1e12


@pytest.fixture(autouse=True)
def _no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose every product runs at ``PEAK``, so that the floors are known and cost no second."""
    monkeypatch.setattr(precision, "matmul_rate", cache(lambda *shape: PEAK))


def pieces(*lengths: int) -> list[torch.Tensor]:
    return [torch.arange(n) % (SIZE - 6) for n in lengths]


def check_form(row: measure.Row) -> None:
    result = json.loads(json.dumps(command.report(lambda: [row])))
    assert set(result) == {"machine", "rows"}
    assert set(result["rows"][0]) == FORM
    assert row.ours > 0 and row.peer > 0 and row.ratio > 0 and row.spread >= 0
    assert row.floor is not None and row.floor > 0


def test_a_row_holds_medians_and_the_spread_of_paired_ratios() -> None:
    rates = [(10.0, 5.0), (30.0, 10.0), (8.0, 8.0), (20.0, 5.0), (100.0, 20.0)]  # ratios 2 3 1 4 5
    row = measure.summarise("x", rates, peer_name="p", unit="u", floor=None)
    assert (row.ours, row.peer, row.ratio, row.spread) == (20.0, 8.0, 3.0, 2.0)


def test_a_disturbance_of_a_whole_pair_leaves_the_ratio() -> None:
    rates = [(20.0 * s, 10.0 * s) for s in (1.0, 0.1, 0.3, 1.0, 0.7)]
    row = measure.summarise("x", rates, peer_name="p", unit="u", floor=None)
    assert row.ratio == pytest.approx(2.0) and row.spread == pytest.approx(0.0)


def test_the_two_alternate_and_neither_always_goes_first() -> None:
    calls: list[str] = []

    def block(name: str, answer: float) -> measure.Block:
        return lambda: calls.append(name) or answer  # type: ignore[func-returns-value]

    row = measure.compare("x", block("a", 3.0), block("b", 2.0), peer_name="p", unit="u", floor=None, warmup=1, pairs=6)
    assert "".join(calls) == "ab" + "abba" * 3
    assert (row.ours, row.peer, row.ratio) == (3.0, 2.0, 1.5)


def test_fewer_than_five_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="five"):
        measure.compare("x", lambda: 1.0, lambda: 1.0, peer_name="p", unit="u", floor=None, pairs=4)


def test_the_fastest_is_chosen_by_its_least_disturbed_round() -> None:
    calls: list[str] = []

    def candidate(name: str, *rates: float) -> Callable[[], measure.Block]:
        left = list(rates)
        return lambda: lambda: calls.append(name) or left.pop(0)  # type: ignore[func-returns-value]

    # the first two of each are warm-up
    assert measure.fastest({"a": candidate("a", 9, 9, 5, 5, 5), "b": candidate("b", 0, 0, 1, 6, 1)}, rounds=3) == "b"
    assert "".join(calls) == "aabb" + "ab" * 3


@pytest.mark.parametrize("name", command.NAMES)
def test_every_name_has_rows(name: str) -> None:
    assert callable(importlib.import_module(f"benchmarks.{name}").rows)


def test_an_unknown_name_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        command.main(["speed"])
    assert exit.value.code == 2 and "training_throughput" in capsys.readouterr().err


def test_missing_data_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setenv("UNVEIL_DATA", str(tmp_path))
    assert command.main(["packing"]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("load ")]
    assert len(told) == 1 and "UNVEIL_DATA" in told[0]


def test_the_command_prints_json_alone_and_writes_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    row = measure.Row("r", 2.0, 1.0, "p", 2.0, "u", 0.1, 4.0)
    monkeypatch.setattr(decoding, "rows", lambda: [row])
    file = tmp_path / "result.json"
    assert command.main(["decoding", "--json", "--output", str(file)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(file.read_text()) and printed["rows"][0]["ratio"] == 2.0
    assert command.main(["decoding"]) == 0
    assert "50%" in capsys.readouterr().out.replace(" ", "")


def test_the_peer_with_our_weights_is_the_same_network() -> None:
    ours, theirs = decoding.weights(MODEL, SIZE), peer.llama(MODEL, SIZE)
    ours.compute_dtype = torch.float32
    batch = Packed.of(pieces(5, 9))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    peer.copy_weights(ours, theirs)
    tokens_BL, mask_BL = peer.padded(pieces(5, 9))
    with torch.no_grad():
        expected = ours.head(ours(batch))
        logits = theirs(tokens_BL, attention_mask=mask_BL).logits
    torch.testing.assert_close(logits[mask_BL.bool()], expected, rtol=1e-4, atol=1e-5)


def test_both_train_on_the_same_loss() -> None:
    ours, theirs = setting.build(MODEL, SIZE), peer.llama(MODEL, SIZE)
    ours.compute_dtype = torch.float32
    peer.copy_weights(ours, theirs)
    tokens_BL, mask_BL = peer.padded(pieces(5, 9))
    loss = theirs(tokens_BL, attention_mask=mask_BL, labels=tokens_BL.masked_fill(mask_BL == 0, -100)).loss
    total, _ = next_token_loss(ours, Packed.of(pieces(5, 9)))
    assert loss.item() == pytest.approx(total.item() / (4 + 8), rel=1e-5)


@pytest.mark.parametrize("precision", peer.PRECISIONS)
def test_the_peer_learns_in_every_precision(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = peer.llama(MODEL, SIZE)
    monkeypatch.setattr(peer, "llama", lambda model, size: network)
    before = [p.detach().clone() for p in network.parameters()]
    tokens_BL, _ = peer.padded(pieces(8, 8))
    peer.trainer(MODEL, SIZE, precision, compiled=False)(tokens_BL, tokens_BL)
    assert all((a.to(b.dtype) != b).any() for a, b in zip(before, network.parameters(), strict=True) if b.dim() == 2)
    assert next(network.parameters()).dtype == (torch.bfloat16 if precision == "bfloat16" else torch.float32)


def test_training_row() -> None:
    row = training_throughput.row("eager", False, MODEL, SIZE, batch=2, length=8)
    check_form(row)
    assert row.name == "eager" and row.peer_name.endswith("eager")
    # 2 blocks of qkv, out, gate_up, down, and the head: 6 FLOPs a weight; scores: a token sees 4 keys on average
    matrices = 2 * (3 * 32 * 32 + 32 * 32 + 2 * 32 * 64 + 64 * 32) + 64 * 32
    assert row.floor == pytest.approx(PEAK / (6 * matrices + 12 * 2 * 32 * 4))


def test_equal_lengths_keep_the_sum_of_squares() -> None:
    ragged = packing.packs([pieces(4, 12, 4, 4), pieces(12, 4, 4, 4)], 16)  # 48 tokens, squares 384: length 8
    even = packing.equal(ragged)
    assert [p.lengths for p in even] == [[8, 8]] * 3
    assert sum(n * n for p in even for n in p.lengths) == sum(n * n for p in ragged for n in p.lengths)


def test_packs_hold_every_piece_once_and_nothing_else() -> None:
    batches = [pieces(4, 12, 3), pieces(16, 5)]
    lengths = sorted(n for p in packing.packs(batches, 16) for n in p.lengths)
    assert lengths == [3, 4, 5, 12, 16] and packing.useful(batches) == 40


def test_paragraphs_are_cut_and_nothing_is_lost(tmp_path: Path) -> None:
    file = tmp_path / "valid.txt"
    file.write_text("one two\n\n" + "abcdefghij" * 5 + "\n \nlast\n")
    found = packing.paragraphs(file, 262, 16)  # no merges: a token is a byte
    starts, ends = (sum(int((p == special).sum()) for p in found) for special in (256, 257))
    assert max(map(len, found)) <= 16 and starts == len(found) and ends == 3
    assert sum(len(p) for p in found) - starts - ends == len("one two") + 50 + len("last")
    assert all(p.dtype == torch.int64 for p in found)


def test_packing_rows() -> None:
    batches = [pieces(4, 12, 3), pieces(16, 5, 2)]
    row = packing.padded(batches, MODEL, SIZE, capacity=16, modes=(False,))
    check_form(row)
    assert row.name == "padded" and row.peer_name.endswith("eager")
    check_form(packing.ideal(batches, MODEL, SIZE, capacity=16, compiled=False))


def test_decoding_row() -> None:
    row = decoding.row("generate batch 3 ragged", [3, 5, 9], MODEL, SIZE, new=6, modes=(False,))
    check_form(row)
    assert "generate" in row.peer_name and "cache" in row.peer_name
    matrices = 2 * (3 * 32 * 32 + 32 * 32 + 2 * 32 * 64 + 64 * 32) + 64 * 32
    assert row.floor == pytest.approx(PEAK / (2 * matrices))


def test_the_peer_decodes_what_we_decode() -> None:
    network, texts = decoding.weights(MODEL, SIZE), decoding.prompts([3, 5, 9], SIZE)
    network.compute_dtype = torch.float32
    theirs = peer.llama(MODEL, SIZE)
    peer.copy_weights(network, theirs)
    ours = decoding.decoder(network, MODEL, SIZE, texts, 6)()
    assert ours.shape == (3, 6)
    assert decoding.agreement(ours, peer.generator(theirs, texts, 6, compiled=False)()) == 1.0
    with torch.no_grad():
        theirs.model.embed_tokens.weight.normal_()
    assert decoding.agreement(ours, peer.generator(theirs, texts, 6, compiled=False)()) < 0.9


@pytest.mark.parametrize("block", [1, 4])
def test_block_diffusion_is_measured_on_the_same_text_as_masked_diffusion(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, torch.Tensor]] = []
    block_of = setting.block

    def spied(step, batches, amount, repeats=1):  # type: ignore[no-untyped-def]
        seen.append((step.__qualname__, batches[0].tokens_T))
        return block_of(step, batches, amount, repeats)

    monkeypatch.setattr(setting, "block", spied)
    row = block_diffusion_training.row(block, False, MODEL, SIZE, batch=2, length=16, steps=1)
    assert row.ours > 0 and row.peer > 0 and row.floor is None
    assert len(seen) == 2 and torch.equal(seen[0][1], seen[1][1])


def test_the_noise_of_blocks_has_a_time_for_each_of_them() -> None:
    kind = block_diffusion_training.family(MODEL, SIZE, block_diffusion_training.BlockConfig(block=4))
    t_T = block_diffusion_training.drawn(kind, Packed.of(pieces(16, 16)))["t"]
    assert t_T.shape == (32,) and len(t_T.unique()) == 8


def test_speculative_decoding_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = TransformerConfig(width=32, depth=2, heads=2, hidden=64, mtp=MTPConfig(depths=2))
    network = setting.build(model, SIZE).eval()
    prompts = [torch.arange(n).numpy() for n in (3, 5, 4)]
    subject = speculative_decoding.Subject(network, setting.vocabulary(SIZE), prompts)
    config = NextTokenSamplerConfig(temperature=0.0, length=6)
    row = speculative_decoding.row("toy", subject, config, batch=2, modes=(False,), rounds=1)
    assert row.ours > 0 and row.peer > 0 and row.floor is None and "plain cached decoding" in row.peer_name
    told = capsys.readouterr().err
    assert "tokens for one pass" in told and "word for word" in told
    monkeypatch.setenv("UNVEIL_RUNS", "masked=nothing")
    assert command.main(["speculative_decoding"]) == 2
    assert "mtp=DIR" in capsys.readouterr().err.splitlines()[-1]


def test_latent_decoding_row() -> None:
    latent = dataclasses.replace(latent_decoding.LATENT, width=32)
    model = dataclasses.replace(latent_decoding.MODEL, width=64, depth=2, heads=4, hidden=96, latent=latent)
    row = latent_decoding.row("toy", 2, model, context=24, new=4, compiled=False)
    assert row.ours > 0 and row.peer > 0 and row.floor is not None and row.unit == "new tokens/s"


def test_the_peer_with_experts_has_our_parameters_and_its_row_has_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    experts = ExpertsConfig(routed=8, top_k=2, shared=1, hidden=16, dense=1, groups=2, kept_groups=1)
    model = replace(MODEL, latent=LatentConfig(width=16, query=16, plain=8, rotary=8, value=16), experts=experts)
    ours, theirs = setting.build(model, SIZE), experts_training.deepseek(model, SIZE)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    monkeypatch.setattr(experts_training, "fastest", lambda candidates: next(iter(candidates)))
    monkeypatch.setattr(experts_training, "LENGTH", 8)
    row = experts_training.row("eager", False, model, SIZE, batch=2)
    check_form(row)
    assert "DeepseekV3, float32, grouped_mm, eager" in row.peer_name
