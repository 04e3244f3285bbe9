"""A run of points from beginning to end, and what its page shows."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import unveil
from unveil import cli, doctor, plane, plane_views
from unveil import recipe as recipes
from unveil.data.pixels import prepare_images
from unveil.errors import UserError
from unveil.family import ImageGrid
from unveil.gaussian.exact import Mixture
from unveil.image_run import ImageRun
from unveil.quality import QUALITY
from unveil.report.evidence import Evidence

SMALL = {
    "data.limit": "600",
    "data.batch": "128",
    "training.steps": "150",
    "training.log_every": "50",
    "training.evaluate_every": "0",
    "training.save_every": "0",
    "training.compile": "off",
    "training.dtype": "float32",
    "model.width": "48",
    "model.depth": "2",
    "optimizer.lr": "0.005",
    "sampler.steps": "8",
}


def small(name: str, folder: Path, **more: str) -> Any:
    return recipes.with_overrides(recipes.load(name), [*SMALL.items(), ("data.cache", str(folder / "cache")), *more.items()])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("points")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("CELLS", 12), ("DENSITY_STEPS", 4), ("ARROWS", 5), ("LEVELS", (0.8, 0.1)), ("STEPS_SHOWN", 4)):
            patch.setattr(plane_views, name, value)
        unveil.train(small("rf-toy", folder), folder / "rf-toy", console=False)
    return folder


@pytest.fixture
def run(folder: Path) -> ImageRun:
    run = unveil.load(folder / "rf-toy")
    assert isinstance(run, ImageRun)
    return run


def test_it_learns_where_the_points_are(run: ImageRun) -> None:
    assert run.points and run.shape == (2, 1, 1) and run.classes == ()
    assert run.distance().distance < 0.25 < run.distance(family=run.family.with_steps(1)).distance
    made = run.generate(200, seed=3)
    assert torch.allclose(made[:1], run.generate(1, seed=3), atol=1e-5) and made.std() < 0.8


def test_the_page_shows_where_points_come_from(run: ImageRun) -> None:
    views = Evidence.load(run.path).views[:3]
    assert [view.title for view in views] == ["Points out of noise", "The vector field", "Paths from noise to data"]
    for view, size, count in zip(views, ((832, 416), (416, 416), (416, 416)), (4, 2, 1), strict=True):
        assert isinstance(view, ImageGrid) and view.drawn and len(view.sheets) == len(view.labels) == count
        assert Image.open(io.BytesIO(base64.b64decode(view.sheets[0]))).size == size == (view.width, view.height)
    cli.main(["report", str(run.path)])
    assert (run.path / "report.html").read_text().count('class="drawn"') == 7


def test_the_field_and_the_density_are_those_of_the_model(run: ImageRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that is exact: arrows to E[x0 | x], density that of the mixture."""
    centres = torch.tensor([[-0.6, 0.0], [0.6, 0.3]], dtype=torch.float64)
    world = Mixture([0.5, 0.5], centres, [0.04, 0.04])
    prepared = prepare_images(run.recipe.data)

    class Exact(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.anchor = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: Any, level: Any) -> Any:
            return world.denoiser()(x.double().reshape(-1, 2), level).reshape(x.shape).to(x)

    drawn: dict[str, Any] = {}
    monkeypatch.setattr(plane_views, "field", lambda noisy, at, arrows: drawn.update(at=at, arrows=arrows) or plane.scatter(at))
    monkeypatch.setattr(plane_views, "paths", lambda tracks, density: drawn.update(density=density) or plane.scatter(tracks))
    monkeypatch.setattr(plane_views, "LEVELS", (0.3,))
    monkeypatch.setattr(plane_views, "CELLS", 26)
    monkeypatch.setattr(plane_views, "CELLS_AROUND", 1)
    plane_views._field(run.family, Exact(), np.zeros((5, 2)))  # type: ignore[arg-type]
    wanted = world.denoise(torch.from_numpy(drawn["at"]), 0.3).numpy() - drawn["at"]
    assert np.allclose(drawn["arrows"], wanted, atol=1e-5)
    monkeypatch.setattr(plane_views, "_states", lambda family, model, count: [np.zeros((count, 2))])
    plane_views._paths(run.family, Exact(), centres.numpy())  # type: ignore[arg-type]
    row, column = np.unravel_index(drawn["density"].argmax(), (26, 26))
    peak = drawn["density"].max()
    at = torch.tensor([[(column + 0.5) / 10 - 1.3, (row + 0.5) / 10 - 1.3]], dtype=torch.float64)
    assert peak == pytest.approx(world.log_density(at, 0.0).exp().item(), rel=0.05)
    assert np.abs(at.numpy() - centres.numpy()).max(1).min() < 0.11 and (drawn["density"] > 0).sum() == 18
    assert prepared.shape == plane.PLANE


def test_quality_is_the_distance_to_held_out_points(run: ImageRun, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["evaluate", str(run.path), "--nfe", "2,8", "--solvers", "euler,heun", "--samples", "60"])
    said = capsys.readouterr().out
    assert "euler, 8 NFE" in said and "sliced Wasserstein" in said and "60 generated with 60 held-out points" in said
    evidence = Evidence.load(run.path)
    assert QUALITY in {view.title for view in evidence.views} and evidence.headline is not None
    assert evidence.headline.unit == "sliced Wasserstein distance"
    cli.main(["evaluate", str(run.path), "--json"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["points"][0]["fidelity"]["floor"] > 0
    with pytest.raises(UserError, match=r"--bits.*points"):
        run.evaluate()
    assert dict(doctor.checkpoint(run.path))["images"].startswith("points in the plane")


def test_samples_are_a_scatter_plot(run: ImageRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--invert", "3"], ["--between", "1,2"], ["--num", "50", "--watch"]):
        cli.main(["sample", str(run.path), *more, "--out", str(tmp_path / "a.png")])
        assert Image.open(tmp_path / "a.png").size == (plane.SIDE, plane.SIDE)
        (tmp_path / "a.png").unlink()
    *_, last = run.sample(20)
    assert last.thumbnail().shape == (64, 64, 1)
    with pytest.raises(UserError, match="number of a held-out one"):
        run.image("a.png")
    cli.main(["data", "inspect", "rf-toy", "--data.cache", str(tmp_path)])
    assert "standard deviation" in capsys.readouterr().out


@pytest.mark.parametrize("toy", ["rings", "gaussians"])
def test_the_parts_of_a_toy_are_classes(toy: str, folder: Path, tmp_path: Path) -> None:
    more = {"data.path": toy, "objective.conditional": "true", "training.steps": "2", "sampler.steps": "2"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("CELLS", 4), ("DENSITY_STEPS", 1), ("ARROWS", 2), ("LEVELS", (0.1,)), ("STEPS_SHOWN", 2), ("TRACK_STEPS", 3)):
            patch.setattr(plane_views, name, value)
        run = unveil.train(small("edm-toy", folder, **more), tmp_path / toy, console=False)
    assert run.classes == tuple(str(i) for i in range(3 if toy == "rings" else 8))  # type: ignore[attr-defined]
    assert torch.isfinite(run.generate(4, label="1")).all()  # type: ignore[attr-defined]
