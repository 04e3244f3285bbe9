"""Recipes: TOML in and out, every mistake named."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from unveil import recipe as recipes
from unveil.config import AutoregressiveRecipe, DiscreteRecipe, TrainingConfig, TransformerConfig
from unveil.errors import UserError


@pytest.mark.parametrize("name", recipes.names())
def test_a_packaged_recipe_survives_its_own_toml(name: str) -> None:
    recipe = recipes.load(name)
    assert recipes.parse(tomllib.loads(recipes.dumps(recipe))) == recipe


@pytest.mark.parametrize(("ours", "twin"), [("ar-python", "llada-python"), ("shakespeare-ar", "shakespeare-llada")])
def test_twins_share_network_data_and_budget(ours: str, twin: str) -> None:
    a, b = recipes.load(ours), recipes.load(twin)
    assert isinstance(a, AutoregressiveRecipe) and isinstance(b, DiscreteRecipe)
    assert (a.data, a.model, a.training.steps, a.training.minutes, a.seed) == (
        b.data,
        b.model,
        b.training.steps,
        b.training.minutes,
        b.seed,
    )


def test_a_file_stands_on_a_base_and_its_paths_on_its_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'base = "llada-python"\n[data]\nsources = [{ kind = "text", path = "notes" }]\n[training]\nsteps = 7\n'
    )
    mine, base = recipes.load(str(tmp_path / "mine.toml")), recipes.load("llada-python")
    assert mine.data.sources[0].path == str(tmp_path / "notes")
    assert mine.training.steps == 7
    assert (mine.model, mine.data.tokenizer, mine.family) == (base.model, base.data.tokenizer, "discrete")
    changed = {key for key, _, _ in recipes.differences(mine, base)}
    assert changed == {"training.steps", "data.sources.0.kind", "data.sources.0.path"}


def test_another_family_does_not_inherit_objective_and_sampler(tmp_path: Path) -> None:
    (tmp_path / "under.toml").write_text(
        'family = "autoregressive"\n[objective]\nfim_rate = 0.5\n[sampler]\ntop_k = 3\n[model]\nwidth = 64\n'
    )
    (tmp_path / "over.toml").write_text('base = "under.toml"\nfamily = "discrete"\n')
    over = recipes.load(str(tmp_path / "over.toml"))
    assert isinstance(over, DiscreteRecipe) and over.model.width == 64


def test_a_base_that_leads_back_is_refused(tmp_path: Path) -> None:
    for a, b in (("one", "two"), ("two", "one")):
        (tmp_path / f"{a}.toml").write_text(f'base = "{b}.toml"\n')
    with pytest.raises(UserError, match="base"):
        recipes.load(str(tmp_path / "one.toml"))


def test_overrides_read_text_by_the_type_that_is_wanted() -> None:
    given = [
        ("training.steps", "7"),
        ("optimizer.lr", "1"),
        ("model.qk-norm", "true"),
        ("sampler.stop", "two words"),
        ("data.sources.0.weight", "2.5"),
    ]
    recipe = recipes.with_overrides(recipes.load("tiny"), given)
    assert recipe.training.steps == 7
    assert recipe.optimizer.lr == 1.0 and isinstance(recipe.optimizer.lr, float)
    assert recipe.model.qk_norm is True
    assert recipe.sampler.stop == ("two words",)
    assert recipe.data.sources[0].weight == 2.5
    assert recipes.with_overrides(recipe, [("sampler.stop", '["a", "b"]')]).sampler.stop == ("a", "b")


WRONG = {
    "unknown setting": ("training.stepz", "3", "training.stepz", "did you mean 'steps'"),
    "unknown section": ("trainin.steps", "3", "trainin", "did you mean 'training'"),
    "section of a value": ("training.steps.x", "3", "steps", "value, not a section"),
    "value for a section": ("training", "3", "training", "table"),
    "text for a number": ("training.steps", "many", "got 'many'", "a whole number"),
    "fraction for a whole number": ("training.steps", "2.5", "got 2.5", "a whole number"),
    "number for a switch": ("model.tie", "1", "got 1", "true or false"),
    "list of numbers for texts": ("sampler.stop", "[1]", "sampler.stop.0", "a text"),
    "below the range": ("training.steps", "-3", "got -3", "at least 1"),
    "above the range": ("data.validation", "1.5", "got 1.5", "at most 1"),
    "at an open bound": ("optimizer.lr", "0", "got 0.0", "above 0"),
    "not a number": ("optimizer.lr", "nan", "got nan", "above 0"),
    "unknown choice": ("optimizer.kind", "adam", "got 'adam'", "did you mean 'adamw'"),
    "unknown family": ("family", "discreet", "'discreet'", "did you mean 'discrete'"),
    "item that is not there": ("data.sources.4.path", "x", "no item '4'", "below 1"),
    "list without an item": ("data.sources.path", "x", "is a list", "data.sources.0.path"),
    "empty list": ("data.sources", "[]", "is empty", "at least one"),
    "pack below context": ("data.packing_length", "16", "less than data.context", "raise"),
    "nothing to train on": ("data.validation", "1.0", "nothing to train on", "lower"),
    "heads that do not divide": ("model.heads", "3", "model.width = 32", "divisor"),
    "groups that do not divide": ("model.kv_heads", "4", "model.heads = 2", "divisor"),
    "times the wrong way round": ("objective.t_max", "0.0001", "objective.t_max", "lower"),
    "tokenizer without its file": ("data.tokenizer.kind", "file", "data.tokenizer.path", "tokenizer.json"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_override_names_field_value_and_remedy(case: str) -> None:
    key, value, what, remedy = WRONG[case]
    with pytest.raises(UserError) as error:
        recipes.with_overrides(recipes.load("tiny"), [(key, value)])
    line = str(error.value)
    assert what in line and remedy in line and "\n" not in line


def test_recipes_made_in_python_are_checked_too() -> None:
    for recipe, field in (
        (DiscreteRecipe(training=TrainingConfig(steps=-1)), "training.steps"),
        (AutoregressiveRecipe(model=TransformerConfig(width=30, heads=4)), "model.heads"),
    ):
        with pytest.raises(UserError) as error:
            recipes.checked(recipe)
        assert error.value.field == field


def test_a_newer_format_is_refused_with_the_reason() -> None:
    with pytest.raises(UserError, match="format"):
        recipes.parse({"format": 99, "family": "discrete"})


def test_own_data_replace_the_source_and_keep_its_other_settings(tmp_path: Path) -> None:
    recipe = recipes.with_overrides(recipes.load("tiny"), [("data.sources.0.documents", "paragraph")])
    for name, kind in (("a.txt", "text"), ("b.jsonl", "jsonl"), ("c.parquet", "parquet")):
        (tmp_path / name).write_text("x")
        source = recipes.with_data(recipe, str(tmp_path / name)).data.sources[0]
        assert (source.kind, source.path, source.documents) == (kind, str(tmp_path / name), "paragraph")
    assert recipes.with_data(recipe, "hub:someone/corpus").data.sources[0].path == "someone/corpus"
    with pytest.raises(UserError, match="no file or folder"):
        recipes.with_data(recipe, str(tmp_path / "missing"))
