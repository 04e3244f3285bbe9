"""Models from one form to another: there and back the same weights and samples, and diffusers alone makes the same of the folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import unveil
from unveil import cli, convert
from unveil import recipe as recipes
from unveil.errors import UserError
from unveil.image_run import ImageRun

diffusers = pytest.importorskip("diffusers")

TINY = {
    "model.channels": "[8, 16]",
    "model.attention": '["none", "both"]',
    "model.layers": "1",
    "model.groups": "4",
    "model.head_width": "8",
    "data.batch": "8",
    "data.limit": "60",
    "training.steps": "1",
    "training.evaluate_every": "0",
    "training.compile": "off",
    "training.dtype": "float32",
    "evaluation.tokens": "2",
    "sampler.steps": "4",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs, one of them told classes, with weights that are not zero."""
    folder = tmp_path_factory.mktemp("convert")
    for name in ("edm-digits", "ddpm-digits", "rf-digits"):
        told = {"objective.conditional": "true"} if name == "ddpm-digits" else {}
        given = [*TINY.items(), *told.items(), ("data.cache", str(folder / "cache"))]
        unveil.train(recipes.with_overrides(recipes.load(name), given), folder / name, console=False)
    return folder


@pytest.fixture(params=["edm-digits", "ddpm-digits", "rf-digits"])
def run(request: pytest.FixtureRequest, runs: Path) -> ImageRun:
    return loaded(runs / request.param)


def loaded(folder: Path) -> ImageRun:
    run = unveil.load(folder)
    assert isinstance(run, ImageRun)
    return run


def same(first: ImageRun, second: ImageRun) -> None:
    ours, theirs = first.model.state_dict(), second.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    label = 3 if first.classes else None
    made = [run.generate(2, kind="heun", steps=3, label=label) for run in (first, second)]
    assert torch.equal(*made)


def test_there_and_back(run: ImageRun, tmp_path: Path) -> None:
    there = loaded(convert.convert(run.path, tmp_path / "there"))
    same(run, there)
    back = loaded(convert.convert(tmp_path / "there", tmp_path / "back"))
    same(run, back)
    assert back.recipe.objective.path.kind == run.recipe.objective.path.kind and back.classes == run.classes
    assert {p.name for p in (tmp_path / "back").iterdir()} == {"model.safetensors", "config.json", "README.md"}


def test_diffusers_reads_it_and_says_the_same(run: ImageRun, tmp_path: Path) -> None:
    convert.convert(run.path, tmp_path / "there", "diffusers")
    theirs = diffusers.UNet2DModel.from_pretrained(tmp_path / "there" / "unet").eval()
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([1.0, 600.0])
    told = torch.tensor([3, 10]) if run.classes else None
    with torch.no_grad():
        expected = run.model.network(x, t, told)  # type: ignore[operator]
        torch.testing.assert_close(theirs(x, t, told).sample, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


def test_the_code_of_its_card_samples(run: ImageRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From our noise it makes our images, but for the last digits of its standard deviation."""
    convert.convert(run.path, tmp_path / "there")
    card = (tmp_path / "there" / "README.md").read_text()
    assert "parameters that predicts" in card and "[objective" in card and str(tmp_path) not in card
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    latents = run.family.latents([0, 1, 2, 3]).float()
    monkeypatch.setattr(torch, "randn", lambda *shape: latents)
    found: dict[str, Any] = {}
    exec(compile(code, "card", "exec"), found)
    expected = torch.cat([run.generate(1, seed=i, label=i if run.classes else None, kind="ddim") for i in range(4)])
    torch.testing.assert_close(found["x"], expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


def test_the_card_of_a_network_from_elsewhere_claims_nothing(runs: Path, tmp_path: Path) -> None:
    convert.convert(runs / "edm-digits", tmp_path / "there")
    convert.convert(tmp_path / "there", tmp_path / "back")
    assert "Trained elsewhere" in (tmp_path / "back" / "README.md").read_text()


def test_a_network_of_latents_takes_its_autoencoder_along(tmp_path: Path) -> None:
    tiny = {"block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    torch.manual_seed(0)
    diffusers.AutoencoderKL(latent_channels=4, norm_num_groups=4, layers_per_block=1, **tiny).save_pretrained(tmp_path / "dit" / "vae")
    small = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "sample_size": 4, "num_embeds_ada_norm": 3}
    diffusers.DiTTransformer2DModel(**small).save_pretrained(tmp_path / "dit" / "transformer")
    diffusers.DDIMScheduler(clip_sample=False).save_pretrained(tmp_path / "dit" / "scheduler")
    run = loaded(tmp_path / "dit")
    assert run.shape == (4, 4, 4) and run.generate(1, steps=2).shape == (1, 3, 8, 8)
    back = loaded(convert.convert(tmp_path / "dit", tmp_path / "ours"))
    again = loaded(convert.convert(tmp_path / "ours", tmp_path / "theirs"))
    for other in (back, again):
        assert torch.equal(other.generate(1, steps=2, label=1), run.generate(1, steps=2, label=1))
    assert "AutoencoderKL" in (tmp_path / "theirs" / "README.md").read_text()


def test_what_cannot_be_converted(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--to: 'unveil' is the form"):
        convert.convert(runs / "edm-digits", tmp_path / "there", "unveil")
    other = recipes.with_overrides(
        recipes.load("score-vp-digits"), [*TINY.items(), ("data.cache", str(runs / "cache")), ("sampler.grid", "auto")]
    )
    unveil.train(other, tmp_path / "vp", console=False)
    with pytest.raises(UserError, match="no scheduler of diffusers asks"):
        convert.convert(tmp_path / "vp", tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_the_command_line_converts_samples_inverts_and_examines(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cli.main(["convert", str(runs / "edm-digits"), "there"])
    assert Path("there").resolve().as_uri() in capsys.readouterr().out
    Image.new("L", (8, 8), 90).save("grey.png")
    for more in (
        ["--sampler.kind", "heun", "--sampler.steps", "3"],
        ["--sampler.path", "rectified-flow", "--sampler.kind", "euler", "--sampler.steps", "3"],
        ["--between", "3,8"],
        ["--invert", "grey.png"],
        ["--inpaint", "grey.png", "--hole", "4,0,8,8", "--sampler.kind", "ancestral", "--num", "2"],
    ):
        cli.main(["sample", "there", "--out", "a.png", *more])
        assert Image.open("a.png").size[0] >= 8
        Path("a.png").unlink()
    cli.main(["doctor", "there"])
    shown = capsys.readouterr().out
    assert "8 x 8 pixels, 1 channel, 0 classes" in shown and "all finite" in shown and "not measured" in shown


def test_it_is_measured_against_images_that_one_gives(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("unveil.evaluation.features.STEPS", 20)
    monkeypatch.setenv("UNVEIL_CACHE", str(tmp_path / "cache"))
    convert.convert(runs / "edm-digits", tmp_path / "there")
    for i in range(20):
        place = tmp_path / "pictures" / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((16, 16), 80).save(place / f"{i}.png")
    args = ["evaluate", str(tmp_path / "there"), "--samples", "8", "--nfe", "4"]
    cli.main([*args, "--data", str(tmp_path / "pictures")])
    assert "Frechet" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(args)
    assert "--data" in capsys.readouterr().err
