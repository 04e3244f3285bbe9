from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unveil import demo as module
from unveil import demo_digits
from unveil import recipe as recipes
from unveil.config import (
    AutoregressiveRecipe,
    EvaluationConfig,
    GaussianRecipe,
    NextTokenSamplerConfig,
    TextDataConfig,
    TokenizerConfig,
    TrainingConfig,
)
from unveil.config import TransformerConfig as Network
from unveil.demo import AUTOREGRESSIVE, MASKED, NETWORKS, RECIPE, demo, network, scaled, twin
from unveil.demo_digits import DIGITS
from unveil.errors import UserError
from unveil.family import Curve, ImageGrid, Table, TokenTimeline
from unveil.report.evidence import Evidence


def tiny(cache: Path) -> AutoregressiveRecipe:
    data = TextDataConfig(limit=900_000, context=128, packing_length=512, cache=str(cache), tokenizer=TokenizerConfig(kind="bytes"))
    return AutoregressiveRecipe(
        data=data,
        model=Network(width=16, depth=1, heads=2),
        training=TrainingConfig(steps=4, log_every=1, compile="off", dtype="float32"),
        evaluation=EvaluationConfig(tokens=2000),
        sampler=NextTokenSamplerConfig(length=12),
    )


def tiny_digits(cache: Path) -> GaussianRecipe:
    asked = demo_digits.recipe(1.0)
    return replace(
        asked,
        data=replace(asked.data, limit=300, batch=16, cache=str(cache)),
        model=replace(asked.model, channels=(8, 8), head_width=8),
        training=replace(asked.training, steps=4, minutes=0.0, log_every=1, evaluate_every=0),
        sampler=replace(asked.sampler, steps=3),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AutoregressiveRecipe, list[str]]:
    folder, said = tmp_path_factory.mktemp("demo"), []
    recipe = tiny(folder / "cache")
    quick = pytest.MonkeyPatch()
    quick.setattr(demo_digits, "COMPARED", 20)
    page = demo(folder / "demo", 0, recipe, tiny_digits(folder / "cache"), said.append)
    quick.undo()
    assert page == folder / "demo" / "report.html"
    return folder / "demo", recipe, said


def test_the_page_shows_both_on_the_same_bytes(made: tuple[Path, Any, list[str]]) -> None:
    folder, _, said = made
    first, second = (Evidence.load(folder / name) for name in (AUTOREGRESSIVE, MASKED))
    assert first.bits is not None and second.bits is not None
    assert (first.bound, second.bound) == (False, True)
    assert first.bits.bytes == second.bits.bytes
    assert first.baselines == second.baselines and {s.name for s in first.baselines} == {"unigram", "gzip", "order-3", "xz"}
    assert [f.gap for f in first.fillings] == [f.gap for f in second.fillings] and first.fillings
    for evidence in (first, second):
        titles = [view.title for view in evidence.views if isinstance(view, TokenTimeline)]
        assert titles == ["A sample as it was uncovered", "A hole in a function, filled"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "masked diffusion" in page and len(page) < 3_000_000
    assert said[0].startswith("[1/7]") and (folder / "report.html").resolve().as_uri() in said[-2]
    assert len(said[-1].splitlines()) == 3


def test_the_digits_are_shown_class_by_class(made: tuple[Path, Any, list[str]]) -> None:
    folder, _, _ = made
    evidence = Evidence.load(folder / DIGITS)
    grids = {view.title: view for view in evidence.views if isinstance(view, ImageGrid)}
    assert set(grids) == {"Every digit out of noise", "From one digit to another", "Half a digit made anew"}
    shown = grids["Every digit out of noise"]
    assert len(shown.sheets) == 3 and shown.labels[0].startswith("step 1 of 3, noise 80")
    assert shown.width == 10 * 9 - 1 and shown.height == 8 * 9 - 2 + 3
    assert evidence.headline is not None and "right on" in evidence.headline.note
    assert any(isinstance(view, Curve) and view.section == "Quality" for view in evidence.views)
    table = next(view for view in evidence.views if isinstance(view, Table))
    assert [row[:2] for row in table.rows] == [[s, n] for s in demo_digits.SOLVERS for n in demo_digits.COUNTS] or len(table.rows) == 9


def test_the_baselines_see_exactly_the_scored_bytes(made: tuple[Path, AutoregressiveRecipe, list[str]]) -> None:
    folder, recipe, _ = made
    prepared = module.corpora.prepared(recipe.data, shown=False)
    bits = Evidence.load(folder / AUTOREGRESSIVE).bits
    assert bits is not None and len(module._held_out_text(recipe, prepared)) == bits.bytes
    store = prepared.splits["validation"][0]
    whole = b"".join(prepared.tokenizer.decode_bytes(store.tokens(i)) for i in range(len(store)))
    assert whole.startswith(module._held_out_text(recipe, prepared))


def test_what_is_there_is_not_done_again(made: tuple[Path, AutoregressiveRecipe, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, recipe, _ = made
    page = folder / "report.html"
    before = page.read_bytes()
    page.unlink()
    for name in ("train", "load"):
        monkeypatch.setattr(demo_digits, name, lambda *_, **__: pytest.fail("done again"))
    for name in ("train", "baselines", "load"):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("done again"))
    demo(folder, 0, recipe, announce=lambda _: None)
    assert page.read_bytes() == before


def test_an_interrupted_demo_goes_on(tmp_path: Path, made: tuple[Path, AutoregressiveRecipe, list[str]], monkeypatch: Any) -> None:
    folder, recipe, _ = made
    trained: list[str] = []
    real = module.train

    def train(asked: Any, directory: Path, resume: bool) -> Any:
        trained.append(directory.name)
        if trained == [AUTOREGRESSIVE, MASKED]:
            raise KeyboardInterrupt
        return real(asked, directory, resume, console=False)

    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module, "missing", lambda: "scikit-learn")
    with pytest.raises(KeyboardInterrupt):
        demo(tmp_path, 0, recipe, announce=lambda _: None)
    said: list[str] = []
    demo(tmp_path, 0, recipe, announce=said.append)
    assert any("it needs scikit-learn (pip install scikit-learn)" in line for line in said) and not (tmp_path / DIGITS).exists()
    assert trained == [AUTOREGRESSIVE, MASKED, MASKED]
    for name in (AUTOREGRESSIVE, MASKED):
        assert Evidence.load(tmp_path / name).bits == Evidence.load(folder / name).bits


def test_twins_differ_in_the_family_alone() -> None:
    other = twin(RECIPE, 123)
    assert other.training.steps == 123 and other.training.minutes == 0
    for section in ("seed", "data", "model", "optimizer", "schedule", "evaluation"):
        assert getattr(other, section) == getattr(RECIPE, section)


def test_the_network_grows_with_the_compute() -> None:
    sizes = [network(10.0**e) for e in range(10, 20)]
    assert sizes == sorted(sizes) and sizes[0] == NETWORKS[-1] and sizes[-1] == NETWORKS[0]
    width, depth, _ = NETWORKS[1]
    enough = 6 * 5 * (12 * width**2 * depth) ** 2
    assert network(enough * 1.001) == NETWORKS[1] and network(enough * 0.999) == NETWORKS[2]


def test_scaling_shares_the_minutes_and_keeps_a_network_once_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.precision, "peak_flops", lambda *_: 1e15)
    chosen = scaled(RECIPE, 8, tmp_path)
    assert chosen.model.width == NETWORKS[0][0]
    assert 120 * chosen.training.minutes + 25 + 100 + 40 + 30 == pytest.approx(480)
    (tmp_path / "recipe.toml").write_text(recipes.dumps(replace(chosen, model=replace(chosen.model, width=128, heads=2))))
    assert scaled(RECIPE, 8, tmp_path).model.width == 128
    with pytest.raises(UserError, match="--minutes: got 2"):
        scaled(RECIPE, 2, tmp_path)


def test_holes_fit_the_context(made: tuple[Path, AutoregressiveRecipe, list[str]]) -> None:
    _, recipe, _ = made
    prepared = module.corpora.prepared(recipe.data, shown=False)
    holes = module._holes(prepared, 200)
    assert holes
    assert max(len((gap.before + gap.truth + gap.after).encode()) + 4 for gap in holes) <= 200


@pytest.mark.slow
def test_the_demo_keeps_its_promise(tmp_path: Path) -> None:
    """The figures of the README, on a quiet machine: some eight minutes."""
    demo(tmp_path)
    first, second = (Evidence.load(tmp_path / name) for name in (AUTOREGRESSIVE, MASKED))
    primed = {score.name: score.primed for score in first.baselines}
    assert first.bits is not None and second.bits is not None
    assert first.bits.content < min(primed["xz"], primed["order-3"])
    assert second.bits.content < primed["unigram"]
    assert max(first.costs["memory_bytes"], second.costs["memory_bytes"]) < 3 * 2**30
