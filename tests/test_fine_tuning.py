"""A person fine-tunes a published model on conversations, from the command line, and uses what comes out."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import unveil
from tests.interop.test_text import DIT, logits, published, sequences, told_folder, told_state
from tests.test_initial import begun
from unveil import cli
from unveil import recipe as recipes
from unveil.chat import talk
from unveil.data import chats
from unveil.interop import text
from unveil.text.chat import HeaderTemplate, JinjaTemplate, PlainTemplate, chat_template

SMALL = ["--data.context", "64", "--data.packing-length", "256", "--training.steps", "2", "--training.compile", "off"]
SMALL += ["--training.evaluate-every", "0", "--evaluation.tokens", "256", "--sampler.length", "8", "--training.dtype", "float32"]
MASKED = ["--objective.end-padding", "48", "--evaluation.draws", "1"]
BLOCKS = ["--objective.kind", "block", "--objective.block", "4", "--objective.random-length", "0", "--evaluation.draws", "1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("fine-tuning")
    rng = random.Random(0)
    rows = [{"prompt": f"Q{i}?", "response": "".join(rng.choices("abcd", k=rng.randint(1, 5)))} for i in range(80)]
    (home / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for kind in ("llada", "sdar", "Dream", "qwen2"):
        published(kind, home / kind)
    told_folder(home / "bd3lm", {"model_type": "bd3lm", **DIT, "block_size": 4}, told_state("backbone."))
    (home / "Dream" / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "chat_template": "{% for m in messages %}"
        "<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"}))  # fmt: skip
    return home


def settings(home: Path, initial: str | Path, *more: str) -> list[str]:
    return ["--data.cache", str(home / "cache"), "--training.initial", str(home / initial), *SMALL, *more]


def tuned(home: Path, kind: str, initial: str | Path = "") -> Any:
    name, more = CHOSEN[kind]
    args = settings(home, initial or kind, *more)
    recipe = recipes.with_data(recipes.load(name), str(home / "chats.jsonl"))
    return recipes.with_overrides(recipe, [(key.removeprefix("--"), value) for key, value in zip(args[::2], args[1::2], strict=True)])


CHOSEN: dict[str, tuple[str, list[str]]] = {
    "llada": ("llada-sft", MASKED), "Dream": ("llada-sft", MASKED), "sdar": ("llada-sft", BLOCKS), "qwen2": ("ar-sft", []),
    "bd3lm": ("llada-sft", BLOCKS),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHOSEN)
def test_training_begins_with_the_weights_and_the_special_ids_of_the_folder(kind: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first step the network gives the folder's logits, and the run is read with the folder's tokenizer."""
    model: Any = begun(tuned(home, kind), home / f"begun-{kind}", monkeypatch)
    source = text.read(home / kind)
    source.model.float()
    for ours, theirs in zip(logits(model, sequences()), logits(source.model, sequences()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    run = unveil.load(home / f"begun-{kind}")
    assert run.tokenizer.vocabulary == source.tokenizer.vocabulary and run.tokenizer.opens == source.tokenizer.opens
    assert run.recipe.sampler.stop == source.recipe.sampler.stop == ("<|eot_id|>",)
    turn = "<|start_header_id|>user<|eot_id|>"
    assert run.tokenizer.encode(turn).tolist() == source.tokenizer.encode(turn).tolist() and len(run.tokenizer.encode(turn)) == 6


def test_a_published_llada_is_fine_tuned_sampled_scored_talked_with_and_shipped(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = str(home / "run"), str(home / "out")
    data = ["--data", str(home / "chats.jsonl"), "--run-dir", run]
    cli.main(["train", "llada-sft", *data, *settings(home, "llada", *MASKED)])
    template = chat_template(home / "run" / "final")
    messages = [{"role": "user", "content": "Q?"}]
    assert isinstance(template, JinjaTemplate) and template.render(messages) == HeaderTemplate().render(messages)
    cli.main(["convert", run, out, "--to", "hf"])
    assert isinstance(chat_template(home / "out"), HeaderTemplate)
    capsys.readouterr()
    said = []
    for place in (run, out):
        cli.main(["sample", place, "--prompt", template.render(messages), "--sampler.length", "8", "--sampler.temperature", "0"])
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and "Q?" in said[0]
    cli.main(["evaluate", run, "--json"])
    scored = json.loads(capsys.readouterr().out)
    assert scored["bound"] and 0 < scored["bytes"] < 40, "the answers alone"
    asked, answers = iter(["Q1?", "Q2?", ""]), list[str]()
    talk(unveil.load(run), ask=lambda _: next(asked), say=answers.append)  # type: ignore[arg-type]
    assert len(answers) == 2
    assert "stop = [\n" in (home / "run" / "recipe.toml").read_text()


def test_a_template_of_the_folder_is_what_conversations_are_written_in(home: Path) -> None:
    run = unveil.train(tuned(home, "Dream"), home / "begun-Dream", resume=True, console=False)
    template = chats.template_for(run.recipe.data)
    assert template.render([{"role": "user", "content": "a"}]) == "<user>a<|end|><assistant>"
    assert not isinstance(chat_template(run.folder), PlainTemplate) and run.recipe.model.shift


def test_a_run_of_a_published_model_can_be_gone_on_from(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unveil.train(tuned(home, "qwen2"), home / "begun-qwen2", resume=True, console=False)
    model = begun(tuned(home, "qwen2", "begun-qwen2"), home / "again", monkeypatch)
    source = dict(unveil.load(home / "begun-qwen2").model.named_parameters())
    assert all(torch.equal(p, source[name]) for name, p in model.named_parameters())
    tokenizer = unveil.load(home / "again").tokenizer
    assert tokenizer.vocabulary.size == 300 and not tokenizer.opens


# Fine-tuned on a few questions, every objective answers them in a conversation ---------------------------------------------------

ANSWERS = {"red?": "stop", "green?": "go on", "sun?": "it is hot", "moon?": "night", "dog?": "woof woof", "cat?": "meow"}
TAUGHT = {
    "data.context": "64", "data.packing_length": "512", "data.validation": "0.1",
    "model.width": "48", "model.depth": "2", "model.heads": "2",
    "training.steps": "600", "training.compile": "off", "training.dtype": "float32", "training.evaluate_every": "0", "seed": "1",
    "optimizer.lr": "4e-3", "sampler.length": "20", "evaluation.tokens": "512",
}  # fmt: skip
IN_BLOCKS = {"objective.kind": "block", "objective.block": "4", "objective.random_length": "0.0", "objective.end_padding": "56"}
SCORES = {"objective.kind": "score", "objective.random_length": "0.0", "objective.end_padding": "56"}
OBJECTIVES = {
    "autoregressive": ("ar-sft", {}),
    "masked": ("llada-sft", {"objective.end_padding": "56"}),
    "block": ("llada-sft", IN_BLOCKS),
    "score": ("llada-sft", SCORES),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_it_answers_what_it_was_taught(kind: str, tmp_path: Path) -> None:
    rows = [{"prompt": question, "response": answer} for question, answer in ANSWERS.items()] * 20
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    name, more = OBJECTIVES[kind]
    recipe = recipes.with_data(recipes.load(name), str(tmp_path / "chats.jsonl"))
    recipe = recipes.with_overrides(recipe, {**TAUGHT, **more, "data.cache": str(tmp_path / "cache")}.items())
    run = unveil.train(recipe, tmp_path / "run", console=False)
    single = [talk_once(run, question) for question in ANSWERS]
    assert single == list(ANSWERS.values())


def talk_once(run: Any, question: str) -> str:
    asked, said = iter([question, ""]), list[str]()
    talk(run, ask=lambda _: next(asked), say=said.append)
    return said[0]
