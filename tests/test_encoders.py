"""A run on latents, told by texts, from beginning to end: prepared, trained, sampled, judged, and moved."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import unveil
from unveil import cli, doctor, plan
from unveil import recipe as recipes
from unveil.encoders import Encoders
from unveil.errors import UserError
from unveil.image_run import ImageRun

SMALL = {
    "model.channels": "[8]",
    "model.attention": '["none"]',
    "model.layers": "1",
    "model.groups": "4",
    "model.head_width": "8",
    "data.batch": "8",
    "training.steps": "2",
    "training.log_every": "1",
    "training.evaluate_every": "0",
    "training.save_every": "0",
    "training.sample_every": "0",
    "training.compile": "off",
    "training.dtype": "float32",
    "training.ema": "0",
    "evaluation.tokens": "4",
    "evaluation.samples": "8",
    "sampler.steps": "3",
    "objective.class_dropout": "0.5",
}


@pytest.fixture(scope="module")
def folder(autoencoder_folder: Path, text_encoder_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    shutil.copytree(autoencoder_folder, folder / "vae")
    shutil.copytree(text_encoder_folder("bert"), folder / "bert")
    rng = np.random.default_rng(0)
    for i in range(40):
        colour = ("red", "blue")[i % 2]
        (folder / "photos" / colour).mkdir(parents=True, exist_ok=True)
        pixels = np.array(Image.new("RGB", (8, 8), colour)) ^ rng.integers(0, 64, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / colour / f"{i:02d}.png")
        (folder / "photos" / colour / f"{i:02d}.txt").write_text(f"a {colour} square\n")
    (folder / "my.toml").write_text(
        'base = "edm-digits"\n[data]\nkind = "folder"\npath = "photos"\nautoencoder = "vae"\ncaptions = ".txt"\ntext_encoder = "bert"\n'
    )
    unveil.train(recipe(folder), folder / "run", console=False)
    return folder


def recipe(folder: Path) -> Any:
    return recipes.with_overrides(recipes.load(str(folder / "my.toml")), [*SMALL.items(), ("data.cache", str(folder / "cache"))])


@pytest.fixture
def run(folder: Path) -> ImageRun:
    run = unveil.load(folder / "run")
    assert isinstance(run, ImageRun)
    return run


def test_the_run_keeps_its_encoders_and_samples_without_theirs(folder: Path, tmp_path: Path, run: ImageRun) -> None:
    shutil.copytree(folder / "run" / "final", tmp_path / "moved")
    assert {p.name for p in (tmp_path / "moved").iterdir()} == {"model.safetensors", "config.json", "autoencoder", "text_encoder"}
    moved = unveil.load(tmp_path / "moved")
    assert isinstance(moved, ImageRun) and moved.shape == (4, 4, 4)
    assert torch.equal(moved.generate(2, prompt="a red square"), run.generate(2, prompt="a red square"))
    assert moved.encoders.autoencoder is not None and run.encoders.autoencoder is not None
    assert moved.encoders.autoencoder.digest == Encoders.of(recipe(folder).data).autoencoder.digest  # type: ignore[union-attr]
    shutil.rmtree(tmp_path / "moved" / "autoencoder")
    with pytest.raises(UserError, match=r"autoencoder.*config.json.*is missing"):
        unveil.load(tmp_path / "moved")


def test_what_is_seen_is_decoded(run: ImageRun) -> None:
    *_, last = run.sample(3, seed=5)
    assert last.x.shape == (3, 4, 4, 4) and last.images.shape == (3, 8, 8, 3)
    assert run.encoders.autoencoder is not None
    decoded = run.encoders.autoencoder.decode(torch.from_numpy(last.x))
    assert torch.equal(run.generate(3, seed=5), decoded)
    shown = np.clip(np.rint((decoded.numpy() + 1) * 127.5), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    assert np.abs(last.images.astype(int) - shown).max() <= 1
    assert Image.open(io.BytesIO(last.png())).size == (510, 510)
    assert Image.open(run.path / "samples" / "step-00000002.png").size == (497, 497)


def test_words_are_told(run: ImageRun) -> None:
    for p in run.model.parameters():  # two steps have moved the last layer alone
        if not p.any():
            torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(0))
    red, blue, none = (run.generate(2, prompt=words) for words in ("red", "blue", None))
    assert not torch.allclose(red, blue, atol=1e-4) and not torch.allclose(red, none, atol=1e-4)
    assert torch.allclose(run.generate(2, prompt="red", guidance=0.0), none, atol=1e-4)
    assert not torch.allclose(run.generate(2, prompt="red", guidance=3.0), red, atol=1e-4)


def test_judged_by_decoded_images(run: ImageRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unveil.evaluation.features.STEPS", 5)
    seen: list[Any] = []
    fidelity = unveil.image_run.fidelity  # type: ignore[attr-defined]
    monkeypatch.setattr("unveil.image_run.fidelity", lambda made, real, by: seen.append((made, real)) or fidelity(made, real, by))
    assert run.distance().samples == 8
    ((made, real),) = seen
    assert made.shape == (8, 3, 8, 8) and real.shape == (36, 3, 8, 8) and real.abs().max() <= 1
    with pytest.raises(UserError, match=r"--bits.*latents.*decoded"):
        run.evaluate()


def test_images_are_encoded_on_the_way_in(run: ImageRun, folder: Path) -> None:
    held, file = run.image("0"), run.image(str(folder / "photos" / "blue" / "19.png"))
    assert held.shape == (4, 4, 4) and np.allclose(held, file, atol=1e-5)  # blue comes first: the tenth of all is its tenth
    *_, last = run.inpaint(held, (0, 0, 4, 8), num=2, kind="ancestral", prompt="blue")
    assert (last.x[:, :, :, 2:] == held[:, :, 2:]).all() and not np.array_equal(last.x[0], last.x[1])
    with pytest.raises(UserError, match=r"--hole.*2 x 2 pixels.*multiples of 2"):
        run.inpaint(held, (1, 0, 4, 8))
    *_, back = run.with_sampler(steps=60, n_max=20.0).reconstruct(held)
    assert np.abs(back.x[0] - held).max() < 0.2


def test_the_command_line_knows_them(folder: Path, run: ImageRun, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = str(tmp_path / "a.png")
    cli.main(["sample", str(run.path), "--prompt", "a red square", "--num", "4", "--sampler.guidance", "2", "--out", out])
    assert Image.open(out).size == (510, 510)
    cli.main(["data", "inspect", str(folder / "my.toml"), "--data.cache", str(folder / "cache")])
    said = capsys.readouterr().out
    assert "4 x 4, 4 channels" in said and "a blue square" in said and "8 x 8 pixels, RGB" in said
    found = dict(doctor.checkpoint(run.path))
    assert found["images"].startswith("8 x 8 pixels, 3 channels") and "latents" in found["bits per dimension"]
    assert plan.ImagePlan(recipe(folder), torch.float32, 1e9).parameters == run.parameters()
