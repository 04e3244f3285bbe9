"""A run that begins with another's weights, from the command line."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import unveil
from unveil import recipe as recipes
from unveil.data.loader import Loader
from unveil.data.shards import prepare
from unveil.errors import UserError
from unveil.families import family
from unveil.nn.layout import Bidirectional
from unveil.nn.packed import Packed
from unveil.training.loop import Trainer

TINY = {
    "model.width": "16", "model.depth": "2", "model.heads": "2", "model.qk_norm": "true",
    "data.context": "32", "data.packing_length": "64", "data.tokenizer.kind": "bytes",
    "training.steps": "2", "training.minutes": "0", "training.compile": "off", "training.dtype": "float32",
    "training.evaluate_every": "0", "training.sample_every": "0", "evaluation.tokens": "64", "sampler.length": "8",
}  # fmt: skip


def tiny(name: str, home: Path, **more: str) -> Any:
    recipe = recipes.with_data(recipes.load(name), str(home / "text"))
    return recipes.with_overrides(recipe, {**TINY, "data.cache": str(home / "cache"), **more}.items())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("initial")
    (home / "text").mkdir()
    rng = random.Random(0)
    for i in range(40):
        (home / "text" / f"{i}.txt").write_text("".join(rng.choices("abcdefgh \n", k=200)))
    unveil.train(tiny("ar-python", home), home / "ar", console=False)
    return home


def begun(recipe: Any, directory: Path, patch: pytest.MonkeyPatch) -> torch.nn.Module:
    """The network as the trainer gets it, at a run's first step."""
    seen: list[torch.nn.Module] = []
    whole = Trainer.fit

    def watched(self: Trainer, resume: bool = False) -> dict[str, float]:
        seen.append(copy.deepcopy(self.model))
        return whole(self, resume)

    patch.setattr(Trainer, "fit", watched)
    unveil.train(recipe, directory, resume=True, console=False)
    return seen[0]


def test_a_masked_model_begins_with_what_the_autoregressive_one_computed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = unveil.load(home / "ar")
    # the network of the new recipe is another one: what it begins with decides
    recipe = tiny("llada-adapted", home, **{"training.initial": str(home / "ar"), "model.width": "32", "training.steps": "3"})
    model = begun(recipe, home / "adapted", monkeypatch)
    run = unveil.load(home / "adapted")
    assert run.recipe.model.width == 16 and run.recipe.model.shift
    assert run.tokenizer.digest() == source.tokenizer.digest()
    # one token alone: who sees whom has no say, and it keeps its own state
    alone = Packed.of([torch.tensor([7])])
    with torch.no_grad():
        assert torch.equal(model.head(model(alone)), source.model.float().head(source.model(alone)))
    trained = dict(run.model.named_parameters())
    assert any(not torch.equal(p, trained[name]) for name, p in model.named_parameters())


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_there_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny("ar-python", home, **{"training.initial": str(home / "ar")})

    def killed(self: Trainer, resume: bool = False) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            unveil.train(recipe, home / "killed", console=False)
    model = begun(recipe, home / "killed", monkeypatch)
    source = dict(unveil.load(home / "ar").model.named_parameters())
    assert all(torch.equal(p, source[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("name", "source", "word"),
    [("ar-python", "nowhere", "no finished run"), ("ddpm-digits", "ar", "cannot begin"), ("ar-python", "text", "no finished run")],
)
def test_what_nothing_can_begin_with(name: str, source: str, word: str, home: Path, tmp_path: Path) -> None:
    if name == "ddpm-digits":
        recipe = recipes.with_overrides(recipes.load(name), [("training.initial", str(home / source))])
    else:
        recipe = tiny(name, home, **{"training.initial": str(home / source)})
    with pytest.raises(UserError, match=word):
        unveil.train(recipe, tmp_path / "run", console=False)
    assert not (tmp_path / "run").exists()


def test_blocks_grow_from_autoregression_and_a_killed_run_goes_on_in_the_right_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first row is what the autoregressive run said of the same pack; what is scored and exported has the last block."""
    more = {"training.initial": str(home / "ar"), "objective.growth": "[1, 2]", "objective.block": "4", "training.steps": "4"}
    more |= {"objective.growth_share": "0.5"}
    more |= {"training.log_every": "1", "training.save_every": "1", "training.evaluate_every": "2", "model.kv_heads": "0"}
    recipe = tiny("bd3-adapted", home, **more)
    step = Trainer._after_step

    def dying(self: Trainer, *parts: Any) -> None:
        step(self, *parts)
        if self.step == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_after_step", dying)
        unveil.train(recipe, home / "cut", console=False)
    unveil.train(recipe, home / "cut", resume=True, console=False)
    unveil.train(recipe, home / "grown", console=False)
    texts = [(home / name / "metrics.jsonl").read_text() for name in ("cut", "grown")]
    assert texts[0] == texts[1]
    rows = [json.loads(line) for line in texts[1].splitlines()]
    assert [row["train/block"] for row in rows if "train/block" in row] == [1.0, 2.0, 4.0, 4.0]
    assert [row["eval/block"] for row in rows if "eval/block" in row] == [4.0, 4.0]
    run, source = unveil.load(home / "grown"), unveil.load(home / "ar")
    assert run.recipe.objective.block == run.model.layout.block == 4

    pack, _ = next(Loader(prepare(run.recipe.data), run.recipe.data, run.recipe.seed, family(run.recipe, run.tokenizer.vocabulary)))
    log_p, _ = family(source.recipe, source.tokenizer.vocabulary).log_likelihood(source.model.float(), pack, 1, 0)
    expected = -float(log_p.sum()) / (len(pack.tokens_T) - len(pack.sample_ids_N))
    assert rows[0]["train/loss"] == pytest.approx(expected, rel=1e-5) and rows[0]["train/bound"] == pytest.approx(expected, rel=1e-5)


def test_attention_opens_while_a_run_adapts(home: Path, tmp_path: Path) -> None:
    more = {"training.initial": str(home / "ar"), "objective.anneal": "0.5", "training.steps": "4", "training.log_every": "1"}
    run = unveil.train(tiny("llada-adapted", home, **more), tmp_path / "run", console=False)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["train/open edges"] for row in rows if "train/open edges" in row] == [0.5, 1.0, 1.0, 1.0]
    assert run.model.layout == Bidirectional()


def test_what_a_network_is_told_is_decided_by_what_it_begins_with(home: Path, tmp_path: Path) -> None:
    recipe = tiny("sedd-absorb-shakespeare", home, **{"training.initial": str(home / "ar")})
    run = unveil.train(recipe, tmp_path / "run", console=False)
    assert not run.model.config.time_conditioning, "the network is the other run's"
