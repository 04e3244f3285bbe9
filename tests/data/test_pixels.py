from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unveil.config import ImageDataConfig
from unveil.data import pixels as module
from unveil.data.pictures import pictures
from unveil.data.pixels import PixelStore, prepare_images
from unveil.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(23):
        place = tmp_path / "photos" / ("10", "9", "b")[i % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)).save(place / f"{i:02d}.png")
    return tmp_path / "photos"


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> ImageDataConfig:
    return ImageDataConfig(kind="folder", path=str(folder), cache=str(tmp_path / "cache"))


def test_the_store_holds_the_source_over_several_files(config: ImageDataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 5 * 60)
    prepared = prepare_images(config)
    assert len(list(prepared.folder.glob("*.arrow"))) == 5 and prepared.shape == (3, 5, 4)
    truth = list(pictures(config))
    for store in (prepared.store, pickle.loads(pickle.dumps(prepared.store))):
        assert len(store) == 23
        for i, picture in enumerate(truth):
            assert np.array_equal(store[i], picture.pixels) and store.name(i) == picture.name  # type: ignore[union-attr]
    assert not prepared.store[0].flags.writeable
    with pytest.raises(IndexError):
        prepared.store[23]


def test_what_is_no_picture_is_kept_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 5 * 8)
    config = ImageDataConfig(kind="toy", path="moons", limit=23, cache=str(tmp_path))
    prepared = prepare_images(config)
    assert len(list(prepared.folder.glob("*.arrow"))) == 5 and prepared.shape == (2, 1, 1) and prepared.classes == ("0", "1")
    for store in (prepared.store, pickle.loads(pickle.dumps(prepared.store))):
        assert not store.pictures
        for i, picture in enumerate(pictures(config)):
            assert np.array_equal(store.values(i), picture.pixels) and store.values(i).dtype == np.float32  # type: ignore[union-attr]


def test_classes_stand_in_the_order_of_numbers_and_names(config: ImageDataConfig) -> None:
    prepared = prepare_images(config)
    assert prepared.classes == ("9", "10", "b")
    assert [prepared.classes[i] for i in prepared.store.labels] == [p.label for p in pictures(config)]  # type: ignore[union-attr]
    digits = prepare_images(replace(config, kind="digits"))
    assert digits.classes == tuple("0123456789") and digits.store.labels[:10].tolist() == list(range(10))


def test_every_tenth_is_held_out_and_the_cache_does_not_care(config: ImageDataConfig) -> None:
    prepared = prepare_images(config)
    assert prepared.parts["validation"].tolist() == [9, 19]
    assert sorted([*prepared.parts["train"], *prepared.parts["validation"]]) == list(range(23))
    other = prepare_images(replace(config, hold_out=4))
    assert other.parts["validation"].tolist() == [3, 7, 11, 15, 19] and other.folder == prepared.folder
    assert len(prepare_images(replace(config, hold_out=0)).parts["train"]) == 23
    with pytest.raises(UserError, match="leaves nothing"):
        prepare_images(replace(config, hold_out=1))


def test_it_is_read_once_and_again_where_the_source_changed(config: ImageDataConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare_images(config)
    with monkeypatch.context() as blocked:
        blocked.setattr(module, "pictures", None)
        assert prepare_images(config).folder == first.folder
    (first.folder / "00000.arrow").unlink()
    assert len(prepare_images(config).store) == 23
    (folder / "b" / "99.png").write_bytes((folder / "b" / "02.png").read_bytes())
    assert len(prepare_images(config).store) == 24 and prepare_images(config).folder != first.folder


def test_a_corrupt_image_is_named_and_skipped_only_if_asked(config: ImageDataConfig, folder: Path) -> None:
    (folder / "9" / "04.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"04\.png: cannot be read.*skip-corrupt"):
        prepare_images(config)
    prepared = prepare_images(replace(config, skip_corrupt=True))
    assert len(prepared.store) == 22 and [Path(name).name for name in prepared.skipped] == ["04.png"]
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no image that can be read"):
        prepare_images(replace(config, skip_corrupt=True))


def test_mixed_sizes_and_modes_are_named_by_file(config: ImageDataConfig, folder: Path) -> None:
    Image.new("RGB", (7, 5)).save(folder / "9" / "04.png")
    with pytest.raises(UserError, match=r"04\.png: is 7 x 5 pixels, .*00\.png is 4 x 5; set data\.size"):
        prepare_images(config)
    assert prepare_images(replace(config, size=4)).shape == (3, 4, 4)
    Image.new("L", (4, 5)).save(folder / "9" / "04.png")
    with pytest.raises(UserError, match=r"04\.png: is grey, .*00\.png is RGB; set data\.mode"):
        prepare_images(config)
    assert prepare_images(replace(config, mode="grey")).shape == (1, 5, 4)


def test_damage_is_refused(config: ImageDataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare_images(config)
    path = prepared.folder / "00000.arrow"
    data = bytearray(path.read_bytes())
    at = data.index(prepared.store[3].tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"checksum.*delete it"):
        prepare_images(config)
    monkeypatch.setattr(module, "PIXEL_FORMAT", 2)
    with pytest.raises(UserError, match="format 1, this unveil reads 2"):
        PixelStore([path], prepared.folder.name, (5, 4, 3), (0, 1, 2))
    monkeypatch.undo()
    manifest = prepared.folder / "prepared.json"
    for text in ("[1]", "{", json.dumps({"files": []})):
        manifest.write_text(text)
        with pytest.raises(UserError, match="damaged"):
            prepare_images(config)
