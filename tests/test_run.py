"""A run directory from beginning to end: trained, moved, loaded, sampled, scored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import unveil
from unveil import corpora, doctor
from unveil import recipe as recipes
from unveil.chat import reply, talk
from unveil.config import TextRecipe
from unveil.data.shards import prepare
from unveil.errors import UserError
from unveil.family import Row
from unveil.report.timeline import COVERED
from unveil.run import Run
from unveil.snapshots import Piece, TextSnapshot
from unveil.text.chat import Message, PlainTemplate
from unveil.text.stop import StopStrings

PROMPT = "Line 3 "


def small(family: str, folder: Path, **training: Any) -> TextRecipe:
    tree: dict[str, Any] = {"family": family, "model": {"width": 16, "depth": 1, "heads": 2}, "evaluation": {"tokens": 512, "draws": 2}}
    tree["sampler"] = {"length": 12}
    tree["training"] = {"steps": 4, "log_every": 2, "dtype": "float64", "compile": "off", "save_every": 2, "ema": 0.5, **training}
    tree["data"] = {
        "sources": [{"kind": "text", "path": str(folder / "text.txt"), "documents": "paragraph"}],
        "tokenizer": {"kind": "bytes"},
        "context": 64,
        "packing_length": 256,
        "validation": 0.1,
        "cache": str(folder / "cache"),
    }
    return recipes.parse(tree)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text("".join(f"Line {i} tells that {i} and {i} are {2 * i}.\n\n" for i in range(400)))
    for family in ("autoregressive", "discrete"):
        unveil.train(small(family, folder), folder / family, console=False)
    return folder


@pytest.fixture(scope="module", params=["autoregressive", "discrete"])
def run(request: pytest.FixtureRequest, folder: Path) -> Run:
    return unveil.load(folder / request.param)


@pytest.fixture(scope="module")
def ar(folder: Path) -> Run:
    return unveil.load(folder / "autoregressive")


@pytest.fixture(scope="module")
def diffusion(folder: Path) -> Run:
    return unveil.load(folder / "discrete")


# The directory ---------------------------------------------------------------------------------------------------------------


def test_a_run_directory_has_its_parts(run: Run) -> None:
    for name in ("recipe.toml", "environment.json", "metrics.jsonl", "checkpoints", "evidence.json", "samples/step-00000004.txt"):
        assert (run.path / name).exists(), name
    assert {p.name for p in (run.path / "final").iterdir()} == {"model.safetensors", "config.json", "tokenizer.json"}
    assert json.loads((run.path / "environment.json").read_text())["torch"] == torch.__version__
    assert recipes.load(str(run.path)) == run.recipe
    assert [row["step"] for row in run.metrics if "train/nll" in row or "train/loss" in row] == [2, 4]


def test_final_alone_is_enough_and_gives_the_same_text(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path / "final", tmp_path / "elsewhere")
    moved = unveil.load(tmp_path / "elsewhere")
    assert moved.generate(PROMPT, seed=5) == run.generate(PROMPT, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(moved.model.state_dict().values(), run.model.state_dict().values(), strict=True))


def test_a_finished_run_resumed_is_the_same_run(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "discrete", tmp_path / "run")
    before = (tmp_path / "run" / "final" / "model.safetensors").read_bytes(), (tmp_path / "run" / "metrics.jsonl").read_bytes()
    unveil.train(small("discrete", folder), tmp_path / "run", resume=True, console=False)
    assert before == ((tmp_path / "run" / "final" / "model.safetensors").read_bytes(), (tmp_path / "run" / "metrics.jsonl").read_bytes())


def test_a_resumed_run_may_log_more_but_not_learn_otherwise(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "discrete", tmp_path / "run")
    unveil.train(small("discrete", folder, keep=5), tmp_path / "run", resume=True, console=False)
    with pytest.raises(UserError) as error:
        unveil.train(small("discrete", folder, steps=9), tmp_path / "run", resume=True, console=False)
    assert error.value.field == "training.steps"


def test_the_score_during_training_is_the_score_of_the_result(run: Run) -> None:
    logged = [row["eval/bits_per_byte"] for row in run.metrics if "eval/bits_per_byte" in row]
    bits = run.evaluate()
    assert logged[-1] == pytest.approx(bits.content, rel=1e-9) and bits.tokens <= 512
    assert run.evaluate(tokens=200).tokens < bits.tokens


def test_a_corpus_that_changed_is_noticed(folder: Path, tmp_path: Path) -> None:
    characters = recipes.with_overrides(small("discrete", folder, steps=1), [("data.tokenizer.kind", "characters")])
    text = tmp_path / "text.txt"
    shutil.copy(folder / "text.txt", text)
    run = unveil.train(recipes.with_data(characters, str(text)), tmp_path / "run", console=False)
    text.write_text(text.read_text() + "ξ" * 50)
    with pytest.raises(UserError, match="changed"):
        run.evaluate()


# Sampling --------------------------------------------------------------------------------------------------------------------


def test_a_batch_is_its_singles(run: Run) -> None:
    prompts = [PROMPT, "", "Line 17 tells that"]
    together = run.generate(prompts, num=2, seed=3)
    alone = [run.generate(prompt, seed=3 + 2 * i + j) for i, prompt in enumerate(prompts) for j in range(2)]
    assert together == alone and len(set(together)) == 6


def test_rows_that_end_early_stand_as_they_ended(run: Run) -> None:
    stop = list("abcdefghijklmnopqrstuvwxyz0123456789")
    steps, *_, last = run.sample(num=6, stop=stop)
    assert len(steps.rows) == len(last.rows) == 6
    alone = [run.generate(seed=i, stop=stop) for i in range(6)]
    assert last.text == alone and len({len(row.tokens) - int((row.committed_at < 0).sum()) for row in last.rows}) > 1


def test_snapshots_do_not_change_and_end_final(run: Run) -> None:
    kept, texts = [], []
    for snapshot in run.sample(PROMPT, num=2):
        kept.append((snapshot, [tokens.copy() for tokens in snapshot.tokens]))
        texts.append(snapshot.text)
    for (snapshot, tokens), text in zip(kept, texts, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(snapshot.tokens, tokens, strict=True))
        assert TextSnapshot(*(getattr(snapshot, name) for name in snapshot.__dataclass_fields__)).text == text
    assert [snapshot.final for snapshot, _ in kept] == [False] * (len(kept) - 1) + [True]
    assert [snapshot.step for snapshot, _ in kept] == list(range(1, len(kept) + 1))


def test_text_is_the_prompt_and_the_completion(run: Run) -> None:
    *_, last = run.sample(PROMPT, seed=1)
    assert last.text == PROMPT + last.completion
    assert "".join(piece.text for piece in last.pieces(0)) == last.text


def test_covered_tokens_are_shown_until_they_are_known(diffusion: Run) -> None:
    first, *_, last = diffusion.sample(PROMPT, steps=4, end="forbid")
    assert first.text.count(COVERED) == 9 and COVERED not in last.text
    assert sum(piece.committed_at < 0 for piece in first.pieces(0)) == 9


def test_an_infill_keeps_what_was_given_and_fills_exactly_the_gaps(diffusion: Run) -> None:
    *_, last = diffusion.sample(infill="ab<mask:3>cd<mask:2>ef", end="forbid")
    covered, *_ = diffusion.sample(infill="ab<mask:3>cd<mask:2>ef", steps=5)
    assert last.tokens[[1, 2, 6, 7, 10, 11]].tolist() == diffusion.tokenizer.encode("abcdef").tolist()
    assert len(last.tokens) == 12 and covered.text.count(COVERED) == 4


def test_fill_in_the_middle_reads_in_the_order_of_the_text(ar: Run) -> None:
    snapshots = list(ar.sample(infill="before <mask:5> after"))
    for snapshot in snapshots:
        assert snapshot.text.startswith("before ") and snapshot.text.endswith(" after")
    completion = snapshots[-1].completion.rstrip("\ufffd")  # half a character is completed, or not, by what follows
    assert snapshots[-1].text.startswith("before " + completion) and 1 <= len(snapshots) <= 5


def test_settings_of_the_sampler_hold_for_the_call(diffusion: Run, ar: Run) -> None:
    assert len(list(diffusion.sample(steps=3))) == 3
    assert len(list(diffusion.sample())) == 12
    assert ar.generate(temperature=0.0, seed=1) == ar.generate(temperature=0.0, seed=2)
    with pytest.raises(UserError, match="did you mean 'steps'"):
        diffusion.sample(stepz=3)


def row(run: Run, text: str, prompt: str) -> TextSnapshot:
    """A finished row with the given text, as if it had been sampled."""
    from unveil.canvas import prompted

    v = run.tokenizer.vocabulary
    canvas = prompted(prompt, run.recipe, run.tokenizer, 0)
    parts = [[v.end] if part == "<end>" else run.tokenizer.encode(part) for part in text.partition("<end>") if part]
    tokens = np.concatenate([canvas.request.tokens, *parts]).astype(np.int64)
    committed = np.maximum(np.arange(len(tokens)) + 1 - canvas.given, 0)
    done = Row(0, tokens, committed, np.ones(len(tokens), np.float32), True)
    return TextSnapshot(1, [done], [canvas], run.tokenizer, StopStrings(["are"], run.tokenizer.decode_bytes), True)


def test_a_text_ends_at_its_end_token_and_at_a_stop_string(ar: Run) -> None:
    assert row(ar, "one<end>two", "zero ").text == "zero one"
    assert row(ar, "what are they", "these are ").text == "these are what "
    assert row(ar, "é<end>", "ü").pieces(0)[-1].text == "é"
    pieces = [Piece("these are ", 0), Piece("what a", 1), Piece("re they and", 2), Piece("more than that", 3)]
    assert "".join(piece.text for piece in row(ar, "x", "y")._cut(pieces)) == "these are what "


# Chat ------------------------------------------------------------------------------------------------------------------------


def test_a_conversation_goes_on_until_an_empty_line(run: Run) -> None:
    asked, said = iter(["Hi", "And", ""]), []
    talk(run.with_sampler(length=4), 0, ask=lambda _: next(asked), say=said.append)
    assert len(said) == 2
    again, said_again = iter(["Hi", "And"]), list[str]()

    def ask(_: str) -> str:
        try:
            return next(again)
        except StopIteration:
            raise EOFError from None

    talk(run.with_sampler(length=4), 0, ask=ask, say=said_again.append)
    assert said == said_again


def test_the_oldest_turns_are_forgotten_first(run: Run) -> None:
    messages: list[Message] = [{"role": "system", "content": "s"}]
    for i in range(4):
        messages += [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]
    messages.append({"role": "user", "content": "q"})
    reply(run.with_sampler(length=4), PlainTemplate(), messages, 0)
    assert [m["content"] for m in messages] == ["s", "q3", "a3", "q"]
    with pytest.raises(UserError, match="shorten"):
        reply(run, PlainTemplate(), [{"role": "user", "content": "x" * 80}], 0)


# Doctor and corpus -----------------------------------------------------------------------------------------------------------


def test_the_doctor_finds_what_is_broken(run: Run, tmp_path: Path) -> None:
    found = dict(doctor.checkpoint(run.path))
    assert found["weights"] == "all finite" and found["head.weight"] == "[262, 16] float64"
    assert found["parameters"] == f"{run.parameters():,}" and "held-out tokens" in found["bits per byte"]
    shutil.copytree(run.path / "final", tmp_path / "final")
    weights = load_file(tmp_path / "final" / "model.safetensors")
    weights["norm.weight"][3] = float("nan")
    save_file(weights, tmp_path / "final" / "model.safetensors")
    broken = dict(doctor.checkpoint(tmp_path / "final"))
    assert broken["weights"] == "1 not finite" and "NOT FINITE" in broken["norm.weight"]


def test_inspection_counts_the_corpus(diffusion: Run, folder: Path) -> None:
    data = prepare(diffusion.recipe.data)
    found = dict(corpora.described(data, diffusion.recipe.data))
    texts = [f"Line {i} tells that {i} and {i} are {2 * i}." for i in range(400)]
    counted = [int(found[split].split()[0]) for split in ("train", "validation")]
    assert sum(counted) == 400 and found["vocabulary"] == "262 (bytes)"
    assert sum(int(found[split].split()[2].replace(",", "")) for split in ("train", "validation")) == sum(map(len, texts))
    assert found["cut documents"].startswith("0.0%")
    name, _, text = found["example"].partition(": ")
    assert name == data.splits["train"][0].name(0) and text in texts
    filled = [float(found[f"packing, {kind}"].split("%")[0]) for kind in ("best-fit", "next-fit")]
    assert 90 < filled[1] <= filled[0] <= 100
