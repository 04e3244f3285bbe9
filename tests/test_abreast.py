"""Runs side by side on one prompt, from the command line to the page; what a step took, as it was counted; mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import unveil
from tests.mistakes import CONTEXT, answered, three_runs
from tests.report.test_page import read
from unveil import cli
from unveil.abreast import title
from unveil.canvas import Canvas
from unveil.config import TokenizerConfig
from unveil.data.tokenizer import Tokenizer
from unveil.family import Request, Row
from unveil.report.evidence import Evidence
from unveil.run import Run
from unveil.snapshots import TextSnapshot, played
from unveil.watch import painted, told

PROMPT = "Line <3> '\""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("abreast")
    three_runs(folder)
    return folder


@pytest.mark.parametrize("name", ["run", "ar"])
def test_what_is_played_is_what_was_sampled(folder: Path, name: str) -> None:
    run: Run = unveil.load(folder / name)
    view, last = played("t", run.sample("Line 3", num=2, seed=5))
    assert "".join(view.pieces) == run.generate("Line 3", seed=5) == last.text[0]
    row = last.rows[0]
    assert view.steps[-1] == [int((row.committed_at > 0).sum()), row.evaluations, row.computed, row.reused] and row.evaluations
    assert len(view.steps) == max(view.committed_at) and all(np.diff(view.steps, axis=0).min(0) >= 0)
    assert view.note.startswith(f"{row.evaluations} evaluations"), "of this row alone"


def test_one_page_plays_all_runs_on_the_prompt(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Evidence.load(folder / "ar")
    page, options = folder / "page.html", ["--sampler.length", "6", "--sampler.cache", "dual", "--sampler.window", "3"]
    cli.main(["report", str(folder / "run"), str(folder / "ar"), "--prompt", PROMPT, "--seed", "7", *options, "--out", str(page)])
    assert capsys.readouterr().out.strip() == page.resolve().as_uri()
    reader = read(page.read_text(encoding="utf-8"))
    shown = "".join(reader.text)
    assert shown.index(title(PROMPT)) < shown.index("A sample as it was uncovered")
    masked = unveil.load(folder / "run").generate(PROMPT, seed=7, length=6, cache="dual", window=3)
    assert masked in shown and unveil.load(folder / "ar").generate(PROMPT, seed=7, length=6) in shown
    counted = [json.loads(attributes["data-steps"] or "") for tag, attributes in reader.tags if tag == "p" and "data-steps" in attributes]
    assert len(counted) == 4, "two runs, on the prompt and on nothing"
    assert counted[0][-1][3] > 0 and counted[1][-1][3] > 0, "out of their caches"
    assert Evidence.load(folder / "ar") == before


def test_the_terminal_shows_the_step_how_sure_it_was_and_what_it_took() -> None:
    tokenizer = Tokenizer.train(TokenizerConfig(kind="bytes"), [])
    tokens = tokenizer.opened("abcd")
    arrays = np.array([0, 0, 1, 2, 2]), np.array([1, 1, 0.9, 0.4, 0.8], dtype=np.float32)
    rows, canvases = [Row(0, tokens, *arrays, True, 2, 10, 30)], [Canvas(Request(tokens[:2], 3))]
    snapshot = TextSnapshot(2, rows, canvases, tokenizer, None, True)
    wanted = "step 2: 2 new, probability 60% on average, 40% at least; 2 evaluations, 1.50 tokens each, 75% of what they saw from the cache"
    assert told(snapshot) == wanted
    text = painted(snapshot, 2)
    assert text.plain == f"abcd\n{wanted}"
    assert [text.plain[span.start : span.end] for span in text.spans if "underline" in str(span.style)] == ["c"]


MISTAKES: dict[str, tuple[Callable[[Path], list[str]], tuple[str, ...]]] = {
    "run of images": (
        lambda f: [str(f / "run"), str(f / "images"), "--prompt", "a"],
        ("--prompt", "images", "no run of text", "leave out"),
    ),
    "prompt longer than a context": (
        lambda f: [str(f / "run"), str(f / "ar"), "--prompt", "x" * CONTEXT],
        ("prompt", f"context is {CONTEXT}", "(run)", "shorten"),
    ),
    "setting that no run has": (lambda f: [str(f / "ar"), "--prompt", "a", "--sampler.stepz", "3"], ("sampler.stepz", "(ar)")),
    "cache that a run cannot have": (
        lambda f: [str(f / "ar"), str(f / "run"), "--prompt", "a", "--sampler.cache", "block"],
        ("sampler.cache", "'block'", "(run)", "prefix or dual"),
    ),
    "setting without a prompt": (lambda f: [str(f / "ar"), "--sampler.length", "3"], ("--sampler.length", "no settings", "leave it out")),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_one_line_names_field_value_and_remedy(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args, said = MISTAKES[case]
    line = answered(["report", *args(folder)], capsys)
    for part in said:
        assert part in line, line
