"""The README's own code: Python blocks run, command lines parse, and those that read a run are carried out."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

import unveil
from unveil import cli, verbs
from unveil import recipe as recipes
from unveil.image_run import ImageRun

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def blocks(language: str) -> list[str]:
    return [code for kind, code in FENCE.findall(README) if kind == language]


def commands() -> list[list[str]]:
    lines = [shlex.split(line, comments=True) for code in blocks("sh") for line in code.splitlines()]
    return [line[1:] for line in lines if line[0] == "unveil"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``notes`` and the runs that the README speaks of, small ones."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "notes").mkdir()
    for i in range(60):
        (folder / "notes" / f"{i}.py").write_text(f"def add_{i}(x):\n    return x + {i}\n\n\nimport os\nclass A{i}: pass\n" * 4)
    for name in ("llada-python", "ar-python"):
        small = {"data.context": "128", "data.packing-length": "256", "data.tokenizer.kind": "bytes", "data.cache": str(folder / "cache")}
        small |= {"model.width": "16", "model.depth": "1", "model.heads": "2", "sampler.length": "16"}
        small |= {"training.steps": "3", "training.compile": "off", "training.dtype": "float32", "evaluation.tokens": "512"}
        recipe = recipes.with_overrides(recipes.with_data(recipes.load(name), str(folder / "notes")), small.items())
        unveil.train(recipe, folder / "runs" / name, console=False)
    tiny = {"model.channels": "[8]", "model.attention": '["none"]', "model.groups": "4", "model.head-width": "8", "data.batch": "8"}
    tiny |= {"training.steps": "2", "training.compile": "off", "training.dtype": "float32", "training.evaluate-every": "0"}
    tiny |= {"data.limit": "60", "data.cache": str(folder / "cache"), "evaluation.tokens": "2", "evaluation.draws": "1"}
    tiny |= {"evaluation.samples": "8", "sampler.steps": "4"}
    unveil.train(recipes.with_overrides(recipes.load("edm-digits"), tiny.items()), folder / "runs" / "edm-digits", console=False)
    cli.main(["convert", str(folder / "runs" / "edm-digits"), str(folder / "ddpm-cat-256")])
    shutil.copytree(folder / "runs" / "edm-digits", folder / "runs" / "rf-digits-reflow")
    toy = {"training.steps": "2", "training.compile": "off", "training.dtype": "float32", "data.limit": "200", "model.width": "8"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unveil.plane_views.CELLS", 8)
        recipe = recipes.with_overrides(recipes.load("rf-toy"), [*toy.items(), ("data.cache", str(folder / "cache"))])
        unveil.train(recipe, folder / "runs" / "rf-toy", console=False)
    seen = {"model.width": "16", "model.heads": "2", "model.decoder-heads": "2", "model.depth": "1", "model.decoder-depth": "1"}
    seen |= {"model.steps": "8", "training.steps": "2", "training.compile": "off", "training.dtype": "float32", "evaluation.tokens": "8"}
    with pytest.MonkeyPatch.context() as patch:
        few(patch)
        unveil.train(recipes.with_overrides(recipes.load("oadtr-synth"), seen.items()), folder / "runs" / "oadtr-synth", console=False)
    return folder


def few(patch: pytest.MonkeyPatch) -> None:
    """A few short streams in the place of those that ship."""
    patch.setattr("unveil.data.synth_stream.STREAMS", {"train": 2, "validation": 2, "test": 1})
    patch.setattr("unveil.data.synth_stream.LENGTH", 60)


@pytest.mark.parametrize("index", range(len(blocks("python"))))
def test_a_python_block_runs(index: int, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    exec(compile(blocks("python")[index], f"README.md, Python block {index + 1}", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("args", commands(), ids=" ".join)
def test_a_command_line_is_one_that_the_program_knows(args: list[str]) -> None:
    rest, overrides = cli._split(args)
    verb = cli._parse(rest)
    if isinstance(verb, verbs.Sample) and Path(verb.path).name in recipes.names():
        recipes.with_overrides(recipes.load(Path(verb.path).name), overrides)


@pytest.mark.parametrize("args", [a for a in commands() if a[0] in ("sample", "evaluate", "report", "convert", "stream")], ids=" ".join)
def test_a_command_on_a_run_does_its_work(
    args: list[str], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("unveil.evaluation.features.STEPS", 20)
    monkeypatch.setattr(ImageRun.straightness, "__defaults__", (8, 4, 0))
    few(monkeypatch)
    cli.main(args)
    assert capsys.readouterr().out.strip() or args[0] == "stream"  # which may have noticed nothing


def test_the_recipe_in_the_readme_is_valid(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "my.toml").write_text(blocks("toml")[0])
    assert len(recipes.load(str(place / "my.toml")).data.sources) == 2


def test_every_packaged_recipe_is_listed() -> None:
    assert all(f"`{name}`" in README for name in recipes.names())


def test_the_make_targets_exist() -> None:
    makefile = Path(__file__).resolve().parents[1] / "Makefile"
    for target in re.findall(r"make (?:\S+=\S+ )?(demo|test|bench|lint)", README):
        assert subprocess.run(["make", "-n", "-f", str(makefile), target], capture_output=True, cwd=makefile.parent).returncode == 0
