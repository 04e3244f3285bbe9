from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unveil.config import AugmentConfig, ImageDataConfig
from unveil.data.image_loader import ImageLoader, held_out_images
from unveil.data.images import normalised
from unveil.data.pixels import PreparedImages, prepare_images
from unveil.errors import UserError


class Noisy:
    """Draws a time and an array in the form of an image."""

    def transform(self, tokens: Any, rng: np.random.Generator) -> Any:
        return tokens

    def draw(self, sample_id: int, epoch: int, length: int, rng: np.random.Generator) -> dict[str, Any]:
        return {"t": rng.random(1), "eps": rng.standard_normal((1, 1, 8, 8), dtype=np.float32)}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ImageDataConfig:
    return ImageDataConfig(limit=105, batch=16, augment=AugmentConfig(probability=0.3), cache=str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def prepared(config: ImageDataConfig) -> PreparedImages:
    return prepare_images(config)


def rows(loader: Any, count: int) -> list[dict[str, Any]]:
    return [
        {
            "x": b.x_NCHW.tolist(),
            "ids": b.sample_ids_N.tolist(),
            "labels": None if b.labels_N is None else b.labels_N.tolist(),
            "augmentation": b.augmentation_NA.tolist(),
            **{name: value.tolist() for name, value in noise.items()},
        }
        for b, noise in islice(loader, count)
    ]


@pytest.fixture(scope="module")
def straight(prepared: PreparedImages, config: ImageDataConfig) -> list[dict[str, Any]]:
    return rows(ImageLoader(prepared, config, 3, Noisy(), labelled=True), 40)


def test_an_epoch_shows_every_training_image_once_in_an_order_of_its_own(prepared: PreparedImages, config: ImageDataConfig) -> None:
    plain = replace(config, augment=AugmentConfig())
    seen = [one for batch, _ in islice(ImageLoader(prepared, plain, 0, Noisy(), labelled=True), 12) for one in batch.split()]
    train = prepared.parts["train"]
    assert len(train) == 95 and [int(one.sample_ids_N) for one in seen] == list(range(192))
    truth = {normalised(prepared.store[int(i)]).tobytes(): int(prepared.store.labels[i]) for i in train}
    epochs = [[one.x_NCHW.numpy().tobytes() for one in seen[e * 95 : (e + 1) * 95]] for e in range(2)]
    assert set(epochs[0]) == set(epochs[1]) == set(truth) and epochs[0] != epochs[1]
    assert all(one.labels_N is not None and truth[one.x_NCHW.numpy().tobytes()] == int(one.labels_N) for one in seen)
    assert seen[0].augmentation_NA is None


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing_and_it_resumes_exactly(
    prepared: PreparedImages, config: ImageDataConfig, straight: list[dict[str, Any]], workers: int
) -> None:
    loader = ImageLoader(prepared, replace(config, workers=workers), 3, Noisy(), labelled=True)
    assert rows(loader, 9) == straight[:9]
    state = json.loads(json.dumps(loader.state_dict()))
    again = ImageLoader(prepared, config, 3, Noisy(), labelled=True)
    again.load_state_dict(state)
    assert rows(again, 10) == straight[9:19]


def test_ranks_share_one_order(prepared: PreparedImages, config: ImageDataConfig, straight: list[dict[str, Any]]) -> None:
    ranks = [ImageLoader(prepared, config, 3, Noisy(), rank, 3, labelled=True) for rank in range(3)]
    batches = [rows(loader, 8) for loader in ranks]
    assert [batches[j % 3][j // 3] for j in range(24)] == straight[:24]
    assert ranks[0].state_dict() == ranks[1].state_dict() == ranks[2].state_dict()


def test_a_sample_is_the_same_in_batches_of_any_size(
    prepared: PreparedImages, config: ImageDataConfig, straight: list[dict[str, Any]]
) -> None:
    small = rows(ImageLoader(prepared, replace(config, batch=5), 3, Noisy(), labelled=True), 16)
    for name in ("x", "ids", "labels", "augmentation", "t", "eps"):
        assert [v for row in small for v in row[name]] == [v for row in straight[:5] for v in row[name]]
    assert rows(ImageLoader(prepared, config, 4, Noisy()), 1)[0]["x"] != straight[0]["x"]


def test_a_state_of_other_data_is_refused(prepared: PreparedImages, config: ImageDataConfig) -> None:
    state = ImageLoader(prepared, config, 3, Noisy()).state_dict()
    for other in (
        ImageLoader(prepared, config, 4, Noisy()),
        ImageLoader(prepared, replace(config, batch=8), 3, Noisy()),
        ImageLoader(prepared, replace(config, augment=AugmentConfig()), 3, Noisy()),
        ImageLoader(prepare_images(replace(config, hold_out=4)), config, 3, Noisy()),
    ):
        with pytest.raises(UserError, match="resume with the recipe"):
            other.load_state_dict(state)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        ImageLoader(prepared, config, 0, Noisy(), 2, 2)


def test_held_out_images_come_in_order_as_they_are(prepared: PreparedImages, config: ImageDataConfig) -> None:
    batches = list(held_out_images(prepared, replace(config, batch=4), labelled=True))
    assert [b.size for b in batches] == [4, 4, 2]
    x = torch.cat([b.x_NCHW for b in batches])
    assert np.array_equal(x.numpy(), np.stack([normalised(prepared.store[i]) for i in range(9, 105, 10)]))
    assert torch.cat([b.sample_ids_N for b in batches]).tolist() == list(range(10))
    assert all(b.augmentation_NA is not None and not b.augmentation_NA.any() for b in batches)
    assert sum(b.size for b in held_out_images(prepared, config, limit=3)) == 3
    none = prepare_images(replace(config, hold_out=0))
    with pytest.raises(UserError, match=r"data\.hold_out"):
        list(held_out_images(none, replace(config, hold_out=0)))


def test_labels_are_missed_by_name(config: ImageDataConfig, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("L", (8, 8)).save(tmp_path / "one.png")
    unlabelled = replace(config, kind="folder", path=str(tmp_path))
    with pytest.raises(UserError, match=r"data\.labels.*1 of 1 images"):
        ImageLoader(prepare_images(unlabelled), unlabelled, 0, Noisy(), labelled=True)
