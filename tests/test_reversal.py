"""The reversal task from beginning to end: networks that know the training text by heart, in one direction or in both."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unveil
from tests.mistakes import answered
from tests.test_run import small
from unveil import cli, reversal
from unveil.evaluation.told import Told, log_likelihoods
from unveil.nn.head import LogitsModel
from unveil.nn.packed import Packed
from unveil.report.page import render
from unveil.report.run import RunReport
from unveil.tasks import scorer
from unveil.text_run import TextRun

POEMS = [[f"{i:02d} asks", f"then {i * 7:03d}", f"{i * 3:03d} ends"] for i in range(20)]
SURE = 30.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reversal")
    (folder / "poems.jsonl").write_text("".join(json.dumps({"lines": poem}) + "\n" for poem in POEMS))
    for name in ("autoregressive", "discrete"):
        recipe = small(name, folder, steps=2)
        sources = (unveil.config.SourceConfig(kind="jsonl", path=str(folder / "poems.jsonl"), column="lines"),)
        data = dataclasses.replace(recipe.data, sources=sources, validation=0.4)
        unveil.train(dataclasses.replace(recipe, data=data), folder / name, console=False)
    return folder


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (reversal, unveil.evaluation.reversal):
        monkeypatch.setattr(module, "CHOICES", 5)


class ByHeart(nn.Module):
    """Logits ``[T, V]`` of what it read: the token of the first known text that agrees with all that is seen, at a mask or next."""

    def __init__(self, run: TextRun, texts: list[str], forward: bool) -> None:
        super().__init__()
        self.size, self.mask, self.forwards = run.tokenizer.vocabulary.size, run.tokenizer.vocabulary.mask, forward
        self.texts = [torch.from_numpy(run.tokenizer.opened(text)) for text in texts]
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, batch: Packed) -> Tensor:
        return torch.cat([self._next(row) if self.forwards else self._masked(row) for row in batch.split()])

    def _next(self, row: Tensor) -> Tensor:
        logits = torch.zeros(len(row), self.size, dtype=torch.float64)
        for text in self.texts:
            room = min(len(row), len(text) - 1)
            alike = int((text[:room] == row[:room]).int().cumprod(0).sum())
            logits[torch.arange(alike), text[1 : alike + 1]] = SURE
        return logits

    def _masked(self, row: Tensor) -> Tensor:
        logits = torch.zeros(len(row), self.size, dtype=torch.float64)
        hidden = row == self.mask
        for text in self.texts:
            if len(text) == len(row) and torch.equal(text[~hidden], row[~hidden]):
                logits[torch.arange(len(row)), text] = SURE
        return logits


def knowing(run: Any) -> TextRun:
    """The run with a network that knows every pair of lines by heart."""
    texts = [f"{a}\n{b}" for poem in POEMS for a, b in pairwise(poem)]
    network = ByHeart(run, texts, forward=run.recipe.family == "autoregressive")
    return dataclasses.replace(run, model=LogitsModel(network))


def test_what_reads_left_to_right_knows_a_pair_in_one_direction_only(folder: Path) -> None:
    found = reversal.evaluate(knowing(unveil.load(folder / "autoregressive")), str(folder / "poems.jsonl"))
    named = {(each.group, each.way): each for each in found.findings}
    after, before, bayes = (named["in training", way] for way in ("next line", "previous line", "previous line, by Bayes"))
    assert after.exact and before.exact and after.exact.value == 1 and before.exact.value == 0 and bayes.exact is None
    assert after.first.value == after.rank.value == 1
    assert 2.5 < before.rank.value < 3.5, "behind what it never follows a line is as likely as any other"
    assert bayes.first.value == 1, "the text that it knows is likelier than one made up"
    assert named["not in training", "next line"].exact is None
    assert sum(each.pairs for each in found.findings if each.way == "next line") + sum(found.left_out.values()) == 40


def test_what_sees_both_sides_knows_it_in_both(folder: Path) -> None:
    found = reversal.evaluate(knowing(unveil.load(folder / "discrete")), str(folder / "poems.jsonl"), draws=2)
    assert {each.way for each in found.findings} == {"next line", "previous line"}
    for each in found.findings:
        assert each.first.value == each.rank.value == 1
        assert (each.exact is not None and each.exact.value == 1) == (each.group == "in training")


def test_the_groups_are_what_was_trained_on_and_what_was_held_out(folder: Path) -> None:
    run = unveil.load(folder / "discrete")
    assert isinstance(run, TextRun)
    stores = run.corpus().splits
    trained = {run.tokenizer.decode(stores["train"][0].tokens(i)) for i in range(len(stores["train"][0]))}
    rivals, left_out = reversal._grouped(run, reversal.pairs("\n".join(poem) for poem in POEMS), 0)
    for group, wanted in (("in training", True), ("not in training", False)):
        assert rivals[group] and all(("\n".join(POEMS[pair.document]) in trained) == wanted for pair, _ in rivals[group])
        own = {line for pair, _ in rivals[group] for line in pair[1:]}
        assert all(line in own for _, lines in rivals[group] for role in lines for line in role), "told from lines of its own group"
    assert not any(left_out.values())


def test_equal_lines_of_a_question_meet_equal_masks(folder: Path) -> None:
    run = unveil.load(folder / "discrete")
    assert isinstance(run, TextRun)
    text = run.tokenizer.opened("00 asks\nthen 000")
    one, other, again = (Told.after(text, 9, number) for number in (4, 5, 4))
    first, second, third = log_likelihoods([one, other, again], scorer(run, 1, 0), 256)
    assert first == third != second
    alone = [log_likelihoods([each], scorer(run, 1, 0), 256)[0] for each in (one, other)]
    assert alone == pytest.approx([first, second], abs=1e-9)


def test_from_the_command_line_to_the_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["evaluate", str(folder / "discrete"), "--reversal", str(folder / "poems.jsonl"), "--limit", "3", "--draws", "1"]
    cli.main(args)
    printed = capsys.readouterr().out
    assert printed.count("previous line") == 2 and "recorded in" in printed
    cli.main([*args, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [each["pairs"] for each in found["findings"]] == [3] * 4
    saved = json.loads((folder / "discrete" / reversal.RESULTS).read_text())
    assert saved == found and saved["made_with"]["draws"] == 1 and saved["made_with"]["weights"]
    page = render([RunReport.read(folder / "discrete")])
    assert "Lines written exactly" in page and page.count(" line</dt>") == 6


def rows(folder: Path, row: dict[str, Any]) -> list[str]:
    path = folder / "wrong.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return ["--reversal", str(path)]


MISTAKES: dict[str, tuple[Callable[[Path], list[str]], tuple[str, ...]]] = {
    "file that is not there": (lambda f: ["--reversal", "none.jsonl"], ("--reversal", "'none.jsonl'", "give")),
    "rows without the field": (lambda f: rows(f, {"verses": ["a", "b"]}), ("--reversal", "no 'lines'", "verses")),
    "field of another type": (lambda f: rows(f, {"lines": 3}), ("--reversal", "holds int", "name the column")),
    "rows of one line": (lambda f: rows(f, {"lines": ["alone"]}), ("--reversal", "two lines", "give texts")),
    "lines too few to choose from": (
        lambda f: rows(f, {"lines": ["a", "b"]}),
        ("--reversal", "none of 1 pairs", "fewer than 5", "give more"),
    ),
    "no pairs": (lambda f: [*rows(f, {"lines": ["a", "b"]}), "--limit", "0"], ("--limit", "0", "1 or more")),
    "two evaluations": (lambda f: ["--reversal", "a", "--tasks", "b"], ("--reversal", "--tasks", "one of them")),
    "setting of training": (lambda f: ["--reversal", "a", "--model.width", "3"], ("--model.width", "sampler")),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_one_line_names_field_value_and_remedy(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args, said = MISTAKES[case]
    line = answered(["evaluate", str(folder / "discrete"), *args(folder)], capsys)
    for part in said:
        assert part in line, line
