"""The card of an exported language model: front matter that parses, its own code run, figures as recorded and no path of this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytest.importorskip("transformers")

from unveil import tasks
from unveil.config import AutoregressiveRecipe, DiscreteRecipe, SourceConfig, TextDataConfig, TokenizerConfig, TransformerConfig
from unveil.convert import convert
from unveil.data.tokenizer import Tokenizer
from unveil.evaluation.likelihood import BitsPerByte
from unveil.nn.layout import Bidirectional, Causal
from unveil.nn.transformer import Transformer
from unveil.report.evidence import Evidence
from unveil.text_run import TextRun

MODEL = TransformerConfig(width=16, depth=1, heads=2)


def run(folder: Path, spoken: bool) -> TextRun:
    folder.mkdir()
    tokenizer = Tokenizer.train(TokenizerConfig(kind="bytes"), [])
    sources = (SourceConfig(kind="text", path=str(folder / "deep" / "poems.txt")), SourceConfig(kind="hub", path="owner/set", weight=2.0))
    kind: Any = AutoregressiveRecipe if spoken else DiscreteRecipe
    recipe = kind(data=TextDataConfig(context=32, packing_length=32, sources=sources, tokenizer=TokenizerConfig(kind="bytes")), model=MODEL)
    torch.manual_seed(0)
    model = Transformer(MODEL, tokenizer.vocabulary.size, Causal() if spoken else Bidirectional())
    return TextRun(folder, folder, recipe, tokenizer, model)


def card(run: TextRun, place: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("unveil.convert.load", lambda source: run)
    return (convert(run.path, place) / "README.md").read_text()


@pytest.mark.parametrize("spoken", [True, False])
def test_front_matter_training_and_limits(spoken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = card(run(tmp_path / "run", spoken), tmp_path / "model", monkeypatch)
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == ("transformers" if spoken else "unveil") and front["license"] is None
    assert ("diffusion" in front["tags"]) != spoken
    assert "`poems.txt` (text, weight 1), `owner/set` (hub, weight 2)" in text and str(tmp_path) not in text
    assert 'path = "owner/set"' in text and f"{run(tmp_path / 'other', spoken).parameters():,} parameters" in text
    assert text.index("## Use") < text.index("## Training") < text.index("## Evaluation") < text.index("## Limits")
    assert "Not evaluated." in text and "hold 32 tokens" in text


def test_figures_are_those_that_were_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run(tmp_path / "run", False)
    Evidence(bits=BitsPerByte(1.23456, 0.02, 0.01, 5.0, 0.9, 4096, 5000, 30), bound=True).save(made.path)
    scores = {"results": {"sums": {"acc,none": 0.25, "acc_stderr,none": 0.1, "alias": "sums"}}}
    (made.path / tasks.RESULTS).write_text(json.dumps(scores))
    text = card(made, tmp_path / "model", monkeypatch)
    assert "- held-out text: at most 1.2346 ± 0.0200 bits per byte, on 4,096 tokens\n- sums acc: 0.2500\n" in text
    assert "Not evaluated" not in text and "stderr" not in text


def test_the_code_of_the_card_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = card(run(tmp_path / "run", True), tmp_path / "model", monkeypatch)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("max_new_tokens=100", "max_new_tokens=3"), "card", "exec"), {})
    assert "<|start|>..." in capsys.readouterr().out
