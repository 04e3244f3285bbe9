"""Paradigms at equal compute: the same FLOPs to each, one seed beside another, gone on with and not trained twice."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import unveil
from unveil import cli
from unveil import recipe as recipes
from unveil.comparison import FILE, Score, compared, table
from unveil.config import BlockConfig, DiscreteRecipe
from unveil.errors import UserError
from unveil.families import family
from unveil.nn.block_diffusion import two_stream
from unveil.text.vocabulary import Vocabulary
from unveil.text_run import TextRun, flops_per_token

TINY = [
    ("model.width", "16"), ("model.depth", "2"), ("model.heads", "2"), ("data.context", "16"), ("data.packing_length", "64"),
    ("training.compile", "off"), ("training.dtype", "float32"), ("evaluation.draws", "1"),
]  # fmt: skip
VOCABULARY = Vocabulary(40, 0, 1, 2, 3, 4, 5)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "verse.txt"
    path.write_text("".join(random.Random(0).choices("abcdefgh \n", k=4000)), encoding="utf-8")
    return path


def chosen(name: str, corpus: Path, cache: Path) -> object:
    return recipes.with_overrides(recipes.with_data(recipes.load(name), str(corpus)), [*TINY, ("data.cache", str(cache))])


def test_every_paradigm_spends_the_compute_and_is_scored_once(corpus: Path, tmp_path: Path) -> None:
    both = {name: chosen(name, corpus, tmp_path) for name in ("shakespeare-ar", "bd3-shakespeare")}
    said: list[str] = []
    spend = {"compute": 3e8, "seeds": 2, "texts": 2, "tokens": 200, "say": said.append}
    scores = compared(both, tmp_path / "out", **spend)  # type: ignore[arg-type]
    assert [(s.recipe, s.seed, s.bound) for s in scores[:2]] == [("shakespeare-ar", 0, False), ("bd3-shakespeare", 0, True)]
    for score in scores:
        assert score.flops == pytest.approx(3e8, rel=0.1)
        assert score.perplexity > 1 and score.entropy > 0 and 0 < score.bits_per_byte < 20
    assert scores[0].tokens > 1.3 * scores[1].tokens, "block diffusion reads a text twice"
    assert scores[0].bits_per_byte != scores[2].bits_per_byte, "another seed is another run"
    judge = tmp_path / "out" / "shakespeare-ar-2"
    assert (judge / "final").is_dir(), "the judge is none of those compared"
    page = json.loads((tmp_path / "out" / "shakespeare-ar-0" / "evidence.json").read_text())
    assert any(view["title"] == "Paradigms at equal compute" for view in page["views"])

    told = len(said)
    kept = json.loads((tmp_path / "out" / FILE).read_text())
    (tmp_path / "out" / FILE).write_text(json.dumps(kept | {"scores": kept["scores"][:-1]}))
    assert compared(both, tmp_path / "out", **spend) == scores  # type: ignore[arg-type]
    assert len(said) == told + 1, "only what was missing is scored again"
    for setting, value in (("compute", 4e8), ("texts", 3), ("tokens", 100)):
        with pytest.raises(UserError, match=rf"--{setting}: is .* was made with"):
            compared(both, tmp_path / "out", **spend | {setting: value})  # type: ignore[arg-type]


def test_what_a_run_began_with_is_counted_beside_it(corpus: Path, tmp_path: Path) -> None:
    """Its network decides what a step costs, and its own compute stands in a column."""
    source = chosen("shakespeare-ar", corpus, tmp_path)
    unveil.train(recipes.with_overrides(source, [("training.steps", "3"), ("training.minutes", "0")]), tmp_path / "ar", console=False)
    begun = [("training.initial", str(tmp_path / "ar")), ("model.width", "64"), ("objective.anneal", "0.5")]
    both = {"scratch": chosen("mdlm-shakespeare", corpus, tmp_path)}
    both["adapted"] = recipes.with_overrides(both["scratch"], begun)
    scores = compared(both, tmp_path / "out", compute=1e8, seeds=1, texts=0, tokens=100, say=lambda line: None)  # type: ignore[arg-type]
    assert [s.flops for s in scores] == pytest.approx([1e8, 1e8], rel=0.1)
    first = unveil.load(tmp_path / "ar")
    assert isinstance(first, TextRun)
    assert [s.before for s in scores] == [0.0, first.flops_per_token * 3 * 64]
    shown = table(scores)
    assert shown.columns[-1] == "FLOPs before" and [row[-1] for row in shown.rows] == ["0", f"{scores[1].before:.3g}"]


@pytest.mark.parametrize("shift", ["false", "true"])
def test_two_streams_cost_what_is_counted(shift: str) -> None:
    """Against the matrix products of a forward pass, counted by torch, attention aside."""
    from torch.utils.flop_counter import FlopCounterMode

    from unveil.nn.packed import Packed

    recipe = recipes.with_overrides(recipes.load("bd3-shakespeare"), [*TINY, ("model.shift", shift)])
    assert isinstance(recipe, DiscreteRecipe) and isinstance(recipe.objective, BlockConfig)
    model = family(recipe, VOCABULARY).build()
    batch = Packed.of([torch.randint(6, 40, (16,))])
    with FlopCounterMode(display=False) as counter:
        model.head(two_stream(model, batch, batch.tokens_T, 4))  # type: ignore[operator, arg-type]
    products = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "mm" in str(op)) / 16
    config = replace(recipe, data=replace(recipe.data, context=0), objective=replace(recipe.objective, block=0))
    assert flops_per_token(config, model) == pytest.approx(3 * products, rel=1e-9)


def test_the_table_tells_seeds_from_texts() -> None:
    rows = [Score("a", seed, True, 1e9, 1000, bits, 0.01, 1.0, 5.0, 2.0) for seed, bits in enumerate((2.0, 2.2))]
    (name, _, _, bits, seeds, texts, *_), *others = table([*rows, replace(rows[0], recipe="b", bound=False)]).rows
    assert (name, bits, seeds, texts) == ("a", "≤ 2.1000", f"{0.2 / math.sqrt(2) / math.sqrt(2):.4f}", "0.0100")
    assert others[0][3:5] == ["2.0000", ""]


MISTAKES: dict[str, tuple[str, str]] = {
    "shakespeare-ar --compute 1e9": ("recipes: 1 given", "name at least two"),
    "shakespeare-ar copy/shakespeare-ar.toml --compute 1e9": ("recipes: two are called 'shakespeare-ar'", "rename a file"),
    "shakespeare-ar ddpm-digits --compute 1e9": ("'ddpm-digits' is of the family 'gaussian'", "only recipes of text"),
    "shakespeare-ar llada-python --compute 1e9": ("read different data", "--data"),
    "shakespeare-ar mdlm-shakespeare --compute 1": ("--compute: 1 buys no step of 'shakespeare-ar'", "give at least"),
    "shakespeare-ar mdlm-shakespeare --compute -1": ("--compute: got -1.0", "FLOPs above 0"),
    "shakespeare-ar mdlm-shakespeare --compute 1e9 --seeds 0": ("--seeds: is out of range", "1 or more seeds"),
    "shakespeare-ar mdlm-shakespeare --compute 1e9 --texts -1": ("--texts: is out of range", "0 or more texts"),
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_gets_one_line(
    line: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "shakespeare-ar.toml").write_text(recipes.dumps(recipes.load("shakespeare-ar")))
    data = [] if "python" in line else ["--data", str(corpus), "--data.cache", str(tmp_path)]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["compare", *line.split(), *data])
    said = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and "Traceback" not in said and all(part in said.splitlines()[-1] for part in MISTAKES[line]), said
    assert not list(tmp_path.glob("runs/comparison/*-0")), "nothing is trained before it is refused"


def test_different_data_are_refused(corpus: Path, tmp_path: Path) -> None:
    one = chosen("shakespeare-ar", corpus, tmp_path)
    other = recipes.with_overrides(chosen("mdlm-shakespeare", corpus, tmp_path), [("data.context", "32")])
    with pytest.raises(UserError, match="different data"):
        compared({"one": one, "other": other}, tmp_path, compute=1e9, seeds=1, texts=0, tokens=0, say=print)  # type: ignore[arg-type, dict-item]
