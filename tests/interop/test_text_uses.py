"""What the verbs make of other people's folders: block models by their own rules, doctor, and tasks of lm-eval."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import unveil
from tests.interop.test_score_folders import folder as sedd
from tests.interop.test_text import DIT, V, told_folder, told_state
from tests.interop.test_text_tokens import folder as decoder
from tests.test_tasks import CHOICE, ROWS, WRITE
from unveil import cli, tasks
from unveil.families import family
from unveil.nn.packed import Packed
from unveil.text.chat import HeaderTemplate
from unveil.text_run import TextRun

KINDS = ("llada", "Dream", "sdar", "qwen2", "mdlm", "bd3lm", "absorb", "uniform")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small one of each kind."""
    root = tmp_path_factory.mktemp("folders")
    for kind in KINDS:
        if kind in ("absorb", "uniform"):
            sedd(root / kind, kind)
        elif kind in ("mdlm", "bd3lm"):
            config = {"model_type": kind, **DIT, "block_size": 4}
            told_folder(
                root / kind, {key: config[key] for key in config if kind == "bd3lm" or key != "block_size"}, told_state("backbone.")
            )
        else:
            decoder(kind, root / kind)
    return root


def exact(place: Path) -> Any:
    run: Any = unveil.load(place)
    run.model.double().compute_dtype = torch.float64
    return run


@pytest.mark.parametrize("kind", KINDS)
def test_doctor_examines(kind: str, folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["doctor", str(folders / kind)])
    found = dict(re.split(r"\s{2,}|(?<=[a-z]) (?=[0-9\[<])", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    run: Any = unveil.load(folders / kind)
    v = run.tokenizer.vocabulary
    assert found["embedding.weight"].startswith(f"[{V}, 32]") and found["weights"] == "all finite" and found["vocabulary"] == str(V)
    assert found["end"] == f"{v.end} {run.tokenizer.name(v.end)}" and ("mask" in found) == (v.mask >= 0)
    if kind in ("absorb", "uniform"):
        assert "its tokens stand for no bytes" in found["bits per byte"]
    else:
        assert re.fullmatch(r"\d+\.\d{3} ± .* on \d+ tokens of a sample", found["bits per byte"])


TEXTS = ("Once upon", "naïve")


def test_bits_of_an_autoregressive_folder_are_exact(folders: Path) -> None:
    """Without a start token the first is given."""
    run = exact(folders / "qwen2")
    nats = total = 0.0
    for text in TEXTS:
        tokens = torch.tensor(list(text.encode()))
        with torch.no_grad():
            logits = run.model.head(run.model(Packed.of([tokens]))).log_softmax(-1)
        nats -= float(logits[:-1].gather(1, tokens[1:, None]).sum())
        total += len(tokens) - 1
    assert run.score(TEXTS, 1).content == pytest.approx(nats / math.log(2) / total, rel=1e-12)


def test_a_block_folder_is_scored_block_by_block(folders: Path, tmp_path: Path) -> None:
    """Blocks of one token leave nothing to chance: each is masked and seen by the clean ones before it."""
    shutil.copytree(folders / "sdar", tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"block_size": 1}))
    run = exact(tmp_path)
    tokens = run.tokenizer.opened("Once upon").tolist()
    nats = 0.0
    for i in range(1, len(tokens)):
        with torch.no_grad():
            logits = run.model.head(run.model(Packed.of([torch.tensor([*tokens[:i], run.tokenizer.vocabulary.mask])])))[-1]
        logits[run.tokenizer.vocabulary.mask] = -math.inf
        nats -= float(logits.log_softmax(0)[tokens[i]])
    assert run.score(["Once upon"], 1).content == pytest.approx(nats / math.log(2) / (len(tokens) - 1), rel=1e-9)


@pytest.mark.parametrize("kind", ["sdar", "bd3lm"])
def test_finished_blocks_are_kept_and_windows_are_the_network_s_blocks(kind: str, folders: Path) -> None:
    run = exact(folders / kind)
    assert run.recipe.sampler.cache == "block" and run.recipe.objective.block == 4
    settings = {"seed": 3, "length": 9, "temperature": 1.0, "order": "random"}
    *steps, last = run.sample(["abcde", "x"], **settings)
    *_, plain = run.sample(["abcde", "x"], cache="none", **settings)
    assert [row.tokens.tolist() for row in last.rows] == [row.tokens.tolist() for row in plain.rows]
    assert sum(row.reused for row in last.rows) > 0 and last.rows[0].computed < plain.rows[0].computed
    for row in (row for snapshot in steps for row in snapshot.rows):
        hidden = [i // 4 for i, token in enumerate(row.tokens.tolist()) if token == run.tokenizer.vocabulary.mask]
        known = [i // 4 for i, token in enumerate(row.tokens.tolist()) if token != run.tokenizer.vocabulary.mask]
        assert not hidden or max(known) <= min(hidden)  # no block before the last one is open


# Tasks of lm-eval ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> str:
    pytest.importorskip("lm_eval")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "choice.yaml").write_text(CHOICE)
    (tmp_path / "write.yaml").write_text(WRITE)
    return f"{tmp_path / 'choice.yaml'},{tmp_path / 'write.yaml'}"


@pytest.mark.parametrize("chat", [False, True])
def test_tasks_on_a_folder_of_llada(
    chat: bool, files: str, folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scores are those of the family for the very texts that the chat template makes, and it writes after them."""
    asked, sample = list[str](), TextRun.sample

    def recorded(self: TextRun, prompt: Any = None, **settings: Any) -> Any:
        asked.extend(prompt)
        return sample(self, prompt, **settings)

    monkeypatch.setattr(TextRun, "sample", recorded)
    place = folders / "llada"
    cli.main(["evaluate", str(place), "--tasks", files, "--limit", "3", "--draws", "2", "--seed", "5", *["--chat"] * chat])
    assert "sums acc" in capsys.readouterr().out
    found = json.loads((place / tasks.RESULTS).read_text())
    made = found["made_with"]
    assert made["template"] == ("HeaderTemplate" if chat else None) and made["draws"] == 2 and found["likelihood"] == "bound"
    prompts = [str(row["question"]) for row in ROWS[:3]]
    if chat:
        prompts = [HeaderTemplate().render([{"role": "user", "content": prompt}]) for prompt in prompts]
    assert asked == prompts

    run: Any = unveil.load(place)
    kind: Any = family(run.recipe, run.tokenizer.vocabulary)
    right = 0
    for prompt, row in zip(prompts, ROWS[:3], strict=True):
        values = []
        for choice in row["choices"]:  # type: ignore[attr-defined]
            told = len(run.tokenizer.opened(prompt.rstrip()))
            text = torch.from_numpy(run.tokenizer.opened(prompt + ("" if chat else " ") + choice))
            given_T = torch.arange(len(text)) < told
            batch = Packed.of([text], [tasks_id(text[:told])])
            values.append(float(kind.log_likelihood(run.model, batch, 2, 5, ~given_T, given_T=given_T)[0]))
        right += max(range(3), key=values.__getitem__) == row["answer"]
    assert found["results"]["sums"]["acc,none"] == pytest.approx(right / 3)


def tasks_id(prompt: torch.Tensor) -> int:
    from unveil.evaluation.harness import _told

    return _told(prompt.numpy(), len(prompt)).sample_id


def test_results_of_a_folder_that_cannot_be_written_to_lie_here(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run: Any = unveil.load(folders / "qwen2")
    (run.path / tasks.RESULTS).mkdir()
    assert tasks.record(run, {"a": 1}) == Path(f"qwen2-{tasks.RESULTS}")
    assert json.loads((tmp_path / f"qwen2-{tasks.RESULTS}").read_text()) == {"a": 1}
