"""Fine-tuned on a few questions, every objective answers them in a conversation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import unveil
from unveil import recipe as recipes
from unveil.chat import talk

ANSWERS = {"red?": "stop", "green?": "go on", "sun?": "it is hot", "moon?": "night", "dog?": "woof woof", "cat?": "meow"}
SMALL = {
    "data.context": "64", "data.packing_length": "512", "data.validation": "0.1",
    "model.width": "48", "model.depth": "2", "model.heads": "2",
    "training.steps": "600", "training.compile": "off", "training.dtype": "float32", "training.evaluate_every": "0", "seed": "1",
    "optimizer.lr": "4e-3", "sampler.length": "20", "evaluation.tokens": "512",
}  # fmt: skip
BLOCKS = {"objective.kind": "block", "objective.block": "4", "objective.random_length": "0.0", "objective.end_padding": "56"}
SCORES = {"objective.kind": "score", "objective.random_length": "0.0", "objective.end_padding": "56"}
KINDS = {
    "autoregressive": ("ar-sft", {}),
    "masked": ("llada-sft", {"objective.end_padding": "56"}),
    "block": ("llada-sft", BLOCKS),
    "score": ("llada-sft", SCORES),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_answers_what_it_was_taught(kind: str, tmp_path: Path) -> None:
    rows = [{"prompt": question, "response": answer} for question, answer in ANSWERS.items()] * 20
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    name, more = KINDS[kind]
    recipe = recipes.with_data(recipes.load(name), str(tmp_path / "chats.jsonl"))
    recipe = recipes.with_overrides(recipe, {**SMALL, **more, "data.cache": str(tmp_path / "cache")}.items())
    run = unveil.train(recipe, tmp_path / "run", console=False)
    single = [talk_once(run, question) for question in ANSWERS]
    assert single == list(ANSWERS.values())


def talk_once(run: unveil.Run, question: str) -> str:  # type: ignore[name-defined]
    asked, said = iter([question, ""]), list[str]()
    talk(run, ask=lambda _: next(asked), say=said.append)  # type: ignore[arg-type]
    return said[0]
