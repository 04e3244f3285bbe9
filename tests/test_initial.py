"""A run that begins with another's weights, from the command line."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import unveil
from unveil import recipe as recipes
from unveil.errors import UserError
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


def test_what_a_network_is_told_is_decided_by_what_it_begins_with(home: Path, tmp_path: Path) -> None:
    recipe = tiny("sedd-absorb-shakespeare", home, **{"training.initial": str(home / "ar")})
    run = unveil.train(recipe, tmp_path / "run", console=False)
    assert not run.model.config.time_conditioning, "the network is the other run's"
