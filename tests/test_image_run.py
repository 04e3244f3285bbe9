"""A run of images from beginning to end, in Python and on the command line."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import unveil
from unveil import cli, doctor, plan
from unveil import recipe as recipes
from unveil.errors import UserError
from unveil.family import Curve, ImageGrid, Table
from unveil.image_run import ImageRun
from unveil.report.evidence import Evidence
from unveil.training import checkpoint

SMALL = {
    "model.channels": "[8, 16]",
    "model.attention": '["none", "none"]',
    "model.layers": "1",
    "model.groups": "4",
    "model.head_width": "8",
    "data.batch": "16",
    "data.limit": "120",
    "training.steps": "4",
    "training.log_every": "2",
    "training.save_every": "2",
    "training.evaluate_every": "2",
    "training.sample_every": "0",
    "training.compile": "off",
    "training.dtype": "float32",
    "training.ema": "0.5",
    "evaluation.tokens": "8",
    "evaluation.draws": "1",
    "evaluation.samples": "24",
    "objective.conditional": "true",
    "sampler.steps": "4",
}


def small(name: str, cache: Path, **more: str) -> Any:
    return recipes.with_overrides(recipes.load(name), [*SMALL.items(), ("data.cache", str(cache)), *more.items()])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image-runs")
    unveil.train(small("edm-digits", folder / "cache"), folder / "edm-digits", console=False)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> ImageRun:
    run = unveil.load(folder / "edm-digits")
    assert isinstance(run, ImageRun)
    return run


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features need not be good here."""
    monkeypatch.setattr("unveil.evaluation.features.STEPS", 20)


@pytest.fixture
def copy(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(folder / "edm-digits", tmp_path / "edm-digits")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "edm-digits"


def test_a_run_directory_has_its_parts(run: ImageRun) -> None:
    for name in ("recipe.toml", "environment.json", "metrics.jsonl", "evidence.json", "samples/step-00000004.png"):
        assert (run.path / name).exists(), name
    assert {p.name for p in (run.path / "final").iterdir()} == {"model.safetensors", "config.json"}
    assert recipes.load(str(run.path)) == run.recipe and run.shape == (1, 8, 8) and run.classes == tuple("0123456789")
    assert [row["tokens"] for row in run.metrics if "train/loss" in row] == [32, 64]
    assert [row["step"] for row in run.metrics if "eval/loss" in row] == [2, 4]
    kinds = [type(view) for view in Evidence.load(run.path).views]
    assert kinds == [ImageGrid, ImageGrid, Curve]
    sheet = Image.open(io.BytesIO((run.path / "samples/step-00000004.png").read_bytes()))
    assert sheet.size == (497, 497)


def test_an_interrupted_run_goes_on_to_the_same_weights(folder: Path, copy: Path) -> None:
    shutil.rmtree(copy / "final")
    (copy / "evidence.json").unlink()
    shutil.rmtree(checkpoint.folder(copy / "checkpoints", 4))
    whole = (folder / "edm-digits" / "final" / "model.safetensors").read_bytes()
    unveil.train(small("edm-digits", folder / "cache"), copy, resume=True, console=False)
    assert (copy / "final" / "model.safetensors").read_bytes() == whole
    assert (copy / "metrics.jsonl").read_bytes() == (folder / "edm-digits" / "metrics.jsonl").read_bytes()


def test_final_alone_samples_and_a_batch_is_its_singles(run: ImageRun, tmp_path: Path) -> None:
    shutil.copytree(run.path / "final", tmp_path / "final")
    moved = unveil.load(tmp_path / "final")
    assert isinstance(moved, ImageRun)
    together = run.generate(3, label="7", seed=5)
    assert torch.equal(moved.generate(3, label=7, seed=5), together)
    for i in range(3):
        assert torch.allclose(run.generate(1, label="7", seed=5 + i)[0], together[i], atol=1e-5)
    assert not torch.allclose(run.generate(3, label="8", seed=5), together)


def test_snapshots_do_not_change_and_end_final(run: ImageRun) -> None:
    snapshots = list(run.sample(2, steps=5))
    assert [s.final for s in snapshots] == [False] * 4 + [True] and [s.step for s in snapshots] == [1, 2, 3, 4, 5]
    assert snapshots[0].x.std() > 10 * snapshots[0].denoised.std()
    assert np.array_equal(snapshots[-1].x, snapshots[-1].denoised)
    assert snapshots[-1].images.shape == (2, 8, 8, 1) and snapshots[-1].images.dtype == np.uint8
    assert Image.open(io.BytesIO(snapshots[-1].png())).size == (510, 240)


def test_samples_come_some_at_a_time(run: ImageRun, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run.generate(5)
    monkeypatch.setattr("unveil.image_run.BATCH", 2)
    assert torch.allclose(run.generate(5), whole, atol=1e-5)


def test_an_arc_of_latents_has_its_ends(run: ImageRun) -> None:
    *_, last = run.interpolate(3, 8, num=4)
    ends = torch.cat([run.generate(1, seed=3), run.generate(1, seed=8)])
    assert torch.allclose(torch.from_numpy(last.x[[0, 3]]), ends, atol=1e-4)
    with pytest.raises(UserError, match="num"):
        run.interpolate(3, 8, num=1)


def test_a_hole_is_filled_and_the_rest_stays(run: ImageRun) -> None:
    known = run.image("1")
    *_, last = run.inpaint(known, (4, 0, 8, 8), num=2, kind="ancestral")
    assert (last.x[:, :, :, :4] == known[:, :, :4]).all() and not np.array_equal(last.x[0], last.x[1])
    with pytest.raises(UserError, match="--hole"):
        run.inpaint(known, (4, 0, 9, 8))


def test_an_image_goes_to_its_noise_and_back(run: ImageRun) -> None:
    image = run.image("0")
    *_, last = run.with_sampler(steps=60, n_max=20.0).reconstruct(image)
    assert np.abs(last.x[0] - image).max() < 0.2


def test_images_are_files_of_the_runs_shape_or_held_out_ones(run: ImageRun, tmp_path: Path) -> None:
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (9, 8)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"no image")
    assert run.image(str(tmp_path / "a.png"))[0, 0, 1] == pytest.approx(1 / 127.5 - 1)
    for name, said in (("b.png", "9 x 8 pixels"), ("c.png", "cannot be read")):
        with pytest.raises(UserError, match=said):
            run.image(str(tmp_path / name))
    with pytest.raises(UserError, match="12 are held out"):
        run.image("12")


def test_quality_against_evaluations_reaches_the_page(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["evaluate", str(copy), "--nfe", "3,6", "--solvers", "heun,ddim", "--samples", "16", "--bits", "--tokens", "2", "--draws", "1"]
    cli.main(args)
    said = capsys.readouterr().out
    assert "ddim, 6 NFE" in said and "heun, 5 NFE" in said and "bits per dimension" in said and "held out" in said
    views = {view.title: view for view in Evidence.load(copy).views}
    curve, table = views["Quality against network evaluations"], views["Distance to real images"]
    assert isinstance(curve, Curve) and isinstance(table, Table) and list(curve.x) == [3, 5, 6] and len(table.rows) == 4
    cli.main(["report", str(copy)])
    page = (copy / "report.html").read_text()
    assert "Frechet distance" in page and page.count("data:image/png;base64,") == 5
    cli.main(["evaluate", str(copy), "--samples", "16", "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["bits"] is None and found["points"][0]["fidelity"]["samples"] == 16


def test_the_command_line_writes_a_sheet(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args in (
        ["--sampler.kind", "heun", "--sampler.steps", "18", "--num", "4"],
        ["--between", "1,2", "--num", "3"],
        ["--inpaint", "1", "--hole", "0,0,4,4", "--sampler.kind", "ancestral", "--num", "2"],
        ["--invert", "2"],
        ["--label", "3", "--sampler.guidance", "2", "--num", "1", "--watch"],
    ):
        cli.main(["sample", str(copy), *args, "--out", "sheet.png"])
        assert "sheet.png" in capsys.readouterr().out
        Image.open("sheet.png").verify()
        Path("sheet.png").unlink()


def test_doctor_and_plan_know_images(run: ImageRun) -> None:
    found = dict(doctor.checkpoint(run.path))
    assert found["images"] == "8 x 8 pixels, 1 channel, 10 classes" and "held-out images" in found["bits per dimension"]
    costs = plan.ImagePlan(run.recipe, torch.float32, 1e9)
    assert costs.parameters == run.parameters() and costs.tokens == 64
    assert costs.flops_per_token == run.model.flops_per_sample()  # type: ignore[operator]
    change = plan.advice(costs, costs.total - costs.memory["activations"] // 2)
    assert change.startswith("--data.batch ") and "the same step" in change
    assert "FLOPs per image" in dict(plan.described(costs, 2**30))


def test_data_commands_know_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb, said in (("prepare", "1,618 train, 179 validation images"), ("inspect", "8 x 8 pixels, grey")):
        cli.main(["data", verb, "edm-digits", "--data.cache", str(folder / "cache")])
        assert said in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name in recipes.names() if name.endswith("-digits")])
def test_every_digit_recipe_trains_and_samples(name: str, folder: Path, tmp_path: Path) -> None:
    run = unveil.train(
        small(name, folder / "cache", **{"training.steps": "1", "training.evaluate_every": "0"}), tmp_path / name, console=False
    )
    assert torch.isfinite(run.generate(2)).all()  # type: ignore[attr-defined]


def test_own_images_take_the_place_of_the_digits(tmp_path: Path, data_dir: Path) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "pictures" / "a.png")
    recipe = recipes.with_data(recipes.load("edm-digits"), str(tmp_path / "pictures"))
    assert (recipe.data.kind, recipe.data.path, recipe.data.batch) == ("folder", str(tmp_path / "pictures"), 128)
    mnist = recipes.with_data(recipes.load("edm-mnist"), str(data_dir / "mnist"))
    assert mnist.data.kind == "idx" and mnist.data.labels.endswith("t10k-labels-idx1-ubyte.gz")
    assert recipes.with_data(recipe, "hub:someone/pictures").data.path == "someone/pictures"
