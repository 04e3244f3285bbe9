"""Latents of an AutoencoderKL: its own numbers, scaled, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")

import diffusers

from unveil.errors import UserError
from unveil.interop.autoencoder import Autoencoder
from unveil.interop.folder import WEIGHTS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.3,
        shift_factor=0.1,
    )
    model.save_pretrained(tmp_path)
    return tmp_path


def images(size: int = 8) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_latents_are_the_scaled_mean(folder: Path) -> None:
    ours, theirs = Autoencoder(folder), diffusers.AutoencoderKL.from_pretrained(folder)
    with torch.no_grad():
        expected = (theirs.encode(images()).latent_dist.mode() - 0.1) * 0.3
    torch.testing.assert_close(ours.encode(images()), expected, rtol=0, atol=1e-6)
    assert expected.shape == (2, ours.channels, 8 // ours.factor, 8 // ours.factor)


def test_noise_makes_a_draw_of_them(folder: Path) -> None:
    ours, theirs, noise = Autoencoder(folder), diffusers.AutoencoderKL.from_pretrained(folder), torch.randn(2, 4, 4, 4)
    with torch.no_grad():
        std = theirs.encode(images()).latent_dist.std
    torch.testing.assert_close(ours.encode(images(), noise) - ours.encode(images()), 0.3 * std * noise, rtol=0, atol=1e-6)


def test_decoding_takes_the_scale_off_again(folder: Path) -> None:
    ours, theirs = Autoencoder(folder), diffusers.AutoencoderKL.from_pretrained(folder)
    with torch.no_grad():
        expected = theirs.decode(theirs.encode(images()).latent_dist.mode()).sample
    torch.testing.assert_close(ours.decode(ours.encode(images())), expected, rtol=0, atol=1e-5)
    assert ours.decode(ours.encode(images()).double()).dtype == torch.float64


def refused(folder: Path, *parts: str) -> None:
    with pytest.raises(UserError) as error:
        Autoencoder(folder)
    assert all(part in str(error.value) for part in parts) and "\n" not in str(error.value)


def test_without_diffusers_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    refused(folder, "diffusers", "pip install")


def test_images_that_it_cannot_halve(folder: Path) -> None:
    with pytest.raises(UserError, match="7 x 7 pixels are no multiple of the autoencoder's 2"):
        Autoencoder(folder).encode(images(7))


def test_no_folder(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "config.json", "is missing")


def test_another_class(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"_class_name": "VQModel"}))
    refused(folder, "VQModel", "AutoencoderKL")


@pytest.mark.parametrize("kind", ["missing", "extra", "misshapen", "truncated", "pickled"])
def test_weights_that_are_not_its_own(kind: str, folder: Path) -> None:
    place = folder / WEIGHTS
    state = load_file(place)
    name = sorted(state)[0]
    if kind == "missing":
        del state[name]
    elif kind == "extra":
        state["another"] = torch.zeros(1)
    elif kind == "misshapen":
        state[name] = torch.zeros(3, 3)
    save_file(state, place)
    if kind == "truncated":
        place.write_bytes(place.read_bytes()[:1000])
    elif kind == "pickled":
        torch.save(state, folder / "diffusion_pytorch_model.bin")
        place.unlink()
    refused(folder, str(folder), "both whole")


def test_the_digest_is_of_the_content(folder: Path, tmp_path: Path) -> None:
    ours = Autoencoder(folder)
    ours.save(tmp_path / "copy")
    copy = Autoencoder(tmp_path / "copy")
    assert copy.digest == ours.digest and torch.equal(copy.encode(images()), ours.encode(images()))
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.4}))
    assert Autoencoder(tmp_path / "copy").digest != ours.digest
    state = load_file(folder / WEIGHTS)
    next(iter(state.values())).view(-1)[0] += 1
    save_file(state, folder / WEIGHTS)
    assert Autoencoder(folder).digest != ours.digest


def test_images_of_other_channels_are_refused(folder: Path) -> None:
    assert Autoencoder(folder).latents(3, 8, 6) == (4, 4, 3)
    with pytest.raises(UserError, match=r"data\.mode: the images have 1 channel, the autoencoder takes 3"):
        Autoencoder(folder).latents(1, 8, 8)
