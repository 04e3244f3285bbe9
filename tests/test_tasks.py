"""Tasks over local files: scores against the family's own numbers, one by one and together; files that are wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")

import unveil
from tests.test_run import small
from unveil import cli, tasks
from unveil.evaluation.harness import Harness
from unveil.families import EXACT, family
from unveil.nn.packed import Packed
from unveil.text.chat import PlainTemplate
from unveil.text_run import TextRun

CHOICE = """task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: " "
metric_list: [{metric: acc}]
"""
WRITE = """task: lines
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["."], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match}]
"""
ROWS = [{"question": "Line" + " x" * (i % 4), "choices": [f"{i}", f"is {2 * i}.", "tells"], "answer": i % 3} for i in range(10)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "text.txt").write_text("".join(f"Line {i} tells that {i} and {i} are {2 * i}.\n\n" for i in range(60)))
    for name in ("autoregressive", "discrete"):
        unveil.train(small(name, folder, steps=2), folder / name, console=False)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "choice.yaml").write_text(CHOICE)
    (folder / "write.yaml").write_text(WRITE)
    return folder


@pytest.fixture(scope="module", params=["autoregressive", "discrete"])
def run(request: pytest.FixtureRequest, folder: Path) -> Any:
    return unveil.load(folder / request.param)


def harness(run: TextRun, rows: int = 16) -> Harness:
    return Harness(run, tasks.scorer(run, 3, 5), PlainTemplate(), rows, seed=7)


def asked(*arguments: Any) -> list[Any]:
    return [SimpleNamespace(args=each) for each in arguments]


PAIRS = [(row["question"], f" {choice}") for row in ROWS for choice in row["choices"]]  # type: ignore[attr-defined]


def test_many_together_are_each_alone(run: Any) -> None:
    judge = harness(run)
    together = [value for value, _ in judge.loglikelihood(asked(*PAIRS))]
    assert together == pytest.approx([judge.loglikelihood(asked(pair))[0][0] for pair in PAIRS], rel=1e-12)
    assert len({round(value, 9) for value in together}) > 20


def test_a_continuation_of_one_token_is_scored_exactly(run: Any) -> None:
    """Both families then read the network once: log-softmax over what is no special token but the end."""
    v = run.tokenizer.vocabulary
    prompt, answer = "Line 3 tell", "s"
    tokens = torch.from_numpy(run.tokenizer.opened(prompt + answer))
    with torch.no_grad():
        seen = tokens[:-1] if run.recipe.family in EXACT else torch.cat([tokens[:-1], torch.tensor([v.mask])])
        logits = run.model.head(run.model(Packed.of([seen])))[-1].double()
    logits[[i for i in v.specials if i != v.end]] = -math.inf
    [(value, _)] = harness(run).loglikelihood(asked((prompt, answer)))
    assert value == pytest.approx(float(logits.log_softmax(0)[tokens[-1]]), rel=1e-10)


def test_autoregressive_windows_add_up_to_the_text(folder: Path) -> None:
    run: Any = unveil.load(folder / "autoregressive")
    text = "Line 1 tells that 1 and 1 are 2. " * 5
    tokens = torch.from_numpy(run.tokenizer.opened(text))
    room, total = run.recipe.data.context - 1, 0.0
    kind = family(run.recipe, run.tokenizer.vocabulary)
    for at in range(0, len(tokens) - 1, room):
        total += float(kind.log_likelihood(run.model, Packed.of([tokens[at : at + room + 1]]), 1, 0)[0])
    assert len(tokens) > 2 * room
    assert harness(run).loglikelihood_rolling(asked((text,))) == pytest.approx([total], rel=1e-12)


def test_a_prompt_too_long_loses_its_beginning(run: Any) -> None:
    judge, context = harness(run), run.recipe.data.context
    prompt = "y" * 90
    [(cut, _)] = judge.loglikelihood(asked((prompt, "ab")))
    assert judge.truncated == 1
    assert cut == harness(run).loglikelihood(asked((prompt[: context - 3], "ab")))[0][0]


def test_texts_are_those_of_the_run_s_own_sampler(run: Any) -> None:
    prompts = ["Line 1 tells", "Li", "Line 22 tells that"]
    settings = {"until": ["2", "."], "max_gen_toks": 8, "temperature": 0.8}
    together = harness(run).generate_until(asked(*((prompt, settings) for prompt in prompts)))
    assert together == harness(run, rows=1).generate_until(asked(*((prompt, settings) for prompt in prompts)))
    alone = [next(reversed([*run.sample(p, seed=7 + i, length=8, temperature=0.8, stop=("2", "."))])) for i, p in enumerate(prompts)]
    assert together == [last.completion for last in alone] and not any("2" in text for text in together)


def test_the_verb_scores_and_records(run: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = f"{folder / 'choice.yaml'},{folder / 'write.yaml'}"
    cli.main(["evaluate", str(run.path), "--tasks", files, "--limit", "8", "--draws", "3", "--seed", "5"])
    assert "sums acc" in capsys.readouterr().out
    found = json.loads((run.path / tasks.RESULTS).read_text())
    values = [value for value, _ in harness(run).loglikelihood(asked(*PAIRS[:24]))]
    best = [max(range(3), key=lambda j: values[3 * i + j]) for i in range(8)]
    assert found["results"]["sums"]["acc,none"] == pytest.approx(sum(b == row["answer"] for b, row in zip(best, ROWS, strict=False)) / 8)
    assert "exact_match,none" in found["results"]["lines"] and found["samples"]["sums"]["effective"] == 8
    made = found["made_with"]
    assert (made["seed"], made["limit"], made["dtype"], made["template"]) == (5, 8, "float64", None)
    assert made["draws"] == (None if run.recipe.family in EXACT else 3) and made["weights"] == tasks.weights_hash(run.model)


MISTAKES = {
    "no local data": (CHOICE.replace("dataset_kwargs: {data_files: {test: rows.jsonl}}\n", ""), ("data_files", "no local data")),
    "a data file that is not there": (CHOICE.replace("rows.jsonl", "gone.jsonl"), ("gone.jsonl",)),
    "data of the hub": (CHOICE.replace("dataset_path: json", "dataset_path: allenai/arc"), ("dataset_path", "allenai/arc")),
    "an unknown key": (CHOICE.replace("doc_to_text", "doc_to_txt"), ("doc_to_txt", "doc_to_text")),
    "an unknown output": (CHOICE.replace("multiple_choice", "loglikelihood"), ("output_type", "loglikelihood")),
    "an unknown metric": (CHOICE.replace("metric: acc", "metric: accu"), ("metric_list", "accu")),
    "greedy answers of choices": (CHOICE.replace("metric: acc", "metric: exact_match"), ("exact_match", "acc")),
    "a function": (CHOICE.replace('"{{question}}"', "!function utils.f"), ("YAML",)),
    "no name": (CHOICE.replace("task: sums\n", ""), ("names no task",)),
    "a setting the sampler lacks": (WRITE.replace("max_gen_toks", "max_gen_tokens"), ("max_gen_tokens", "max_gen_toks")),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_task_file_gets_one_line(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, words = MISTAKES[name]
    (folder / "wrong.yaml").write_text(text)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", str(folder / "autoregressive"), "--tasks", str(folder / "wrong.yaml")])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2 and all(word in said for word in words), said
