from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unveil.config import ImageDataConfig
from unveil.data.image_loader import held_out_images
from unveil.data.images import normalised
from unveil.data.pixels import PreparedImages, prepare_images
from unveil.errors import UserError
from unveil.evaluation import features as module
from unveil.evaluation.features import Features, of_classifier, of_inception
from unveil.evaluation.fidelity import fidelity
from unveil.metrics.kid import kid


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ImageDataConfig:
    return ImageDataConfig(cache=str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def prepared(config: ImageDataConfig) -> PreparedImages:
    return prepare_images(config)


@pytest.fixture(scope="module")
def features(prepared: PreparedImages) -> Features:
    return of_classifier(prepared)


def images(prepared: PreparedImages, start: int, count: int) -> Tensor:
    return torch.from_numpy(normalised(np.stack([prepared.store[i] for i in range(start, start + count)])))


def test_the_classifier_knows_digits_and_says_how_well(features: Features) -> None:
    assert features.accuracy > 0.95 and f"{features.accuracy:.1%}" in features.name


def test_it_is_trained_once(prepared: PreparedImages, config: ImageDataConfig, features: Features, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.cat([batch.x_NCHW for batch in held_out_images(prepared, config)])
    monkeypatch.setattr(module, "_trained", None)
    again = of_classifier(prepared)
    assert again.accuracy == features.accuracy and np.array_equal(again(x), features(x))
    (prepared.folder / "features-179.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="damaged"):
        of_classifier(prepared)
    (prepared.folder / "features-179.safetensors").unlink()


def test_they_are_those_of_the_stored_levels_in_batches_of_any_size(prepared: PreparedImages, features: Features) -> None:
    x = images(prepared, 0, 7)
    assert np.array_equal(features(x + 0.3 / 255), features(x))
    assert np.allclose(features(x, batch=2), features(x), atol=1e-5) and features(x).shape == (7, 64)


def test_fidelity_orders_what_an_eye_would_order(prepared: PreparedImages, features: Features) -> None:
    real, others = images(prepared, 0, 800), images(prepared, 800, 800)
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.3, tuple(others.shape)).astype(np.float32))
    ones = others[[i for i in range(800) if prepared.store.labels[800 + i] == 1]].repeat(10, 1, 1, 1)[:800]
    same, noisy, collapsed = (fidelity(made, real, features) for made in (others, others + noise, ones))
    assert same.frechet < noisy.frechet < collapsed.frechet
    assert same.kid < noisy.kid < collapsed.kid
    assert same.precision > 0.7 and same.recall > 0.7 and collapsed.recall < 0.3
    assert 0 < same.frechet_stderr < same.frechet and same.samples == same.real == 800
    assert noisy.kid == kid(features(real), features(others + noise), block=200).value


def test_images_without_classes_need_other_features(tmp_path: Path, config: ImageDataConfig) -> None:
    from PIL import Image

    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    prepared = prepare_images(ImageDataConfig(kind="folder", path=str(tmp_path), cache=config.cache))
    with pytest.raises(UserError, match="--inception"):
        of_classifier(prepared)


class Small(nn.Module):
    def forward(self, x: Tensor, return_features: bool) -> Tensor:
        return x.float().mean(dim=[2, 3]) if return_features else x.float()


def test_inception_is_a_torchscript_file_that_gets_bytes_in_rgb(tmp_path: Path, prepared: PreparedImages) -> None:
    path = tmp_path / "small.pt"
    torch.jit.script(Small()).save(str(path))
    found = of_inception(str(path))(images(prepared, 0, 3))
    means = np.stack([prepared.store[i].mean() for i in range(3)])
    assert np.allclose(found, means[:, None].repeat(3, 1), rtol=1e-6)
    (tmp_path / "text.pt").write_text("no weights")
    for name in ("text.pt", "none.pt"):
        with pytest.raises(UserError, match="--inception"):
            of_inception(str(tmp_path / name))
