"""Rows of an encoder beside prepared images: the store's order, checksums, and going on where it stopped."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unveil.config import ImageDataConfig
from unveil.data import encoded as module
from unveil.data import pixels
from unveil.data.image_loader import ImageLoader, held_out_images
from unveil.data.pixels import PreparedImages, prepare_images
from unveil.errors import UserError

COUNT = 23


class Halves:
    """The mean is the image's upper left quarter, the standard deviation 0.5 everywhere."""

    columns = ("mean", "std")

    def __init__(self, digest: str = "a", stops_after: int = 99) -> None:
        self.digest, self.seen, self._stops_after = digest, 0, stops_after

    def encode(self, items: Sequence[Any]) -> list[Any]:
        if self.seen + len(items) > self._stops_after:
            raise KeyboardInterrupt
        self.seen += len(items)
        quarter = np.stack(items)[:, :, :4, :4]
        return [quarter, np.full_like(quarter, 0.5)]


class Lengths:
    digest, columns = "b", ("embedding",)

    def encode(self, items: Sequence[str]) -> list[Any]:
        return [np.array([[len(text), 1.0] for text in items])]


class NoNoise:
    def transform(self, tokens: Any, rng: Any) -> Any:
        return tokens

    def draw(self, sample_id: int, epoch: int, length: int, rng: Any) -> dict[str, Any]:
        return {"u": rng.random(1)}


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedImages:
    """23 digits in five files."""
    monkeypatch.setattr(pixels, "SHARD_BYTES", 5 * 64)
    monkeypatch.setattr(module, "BATCH", 2)
    return prepare_images(ImageDataConfig(limit=COUNT, cache=str(tmp_path)))


def test_rows_stand_in_the_order_of_the_store(prepared: PreparedImages) -> None:
    encoder = Halves()
    found = prepared.with_latents(encoder, (1, 4, 4))
    assert encoder.seen == COUNT and found.shape == (1, 4, 4) and prepared.shape == (1, 8, 8)
    for rows in (found.latents, pickle.loads(pickle.dumps(found.latents))):
        assert len(rows) == COUNT
        assert all(np.array_equal(rows.row("mean", i), prepared.values(i)[:, :4, :4]) for i in range(COUNT))
    again, other = Halves(), Halves("other")
    prepared.with_latents(again, (1, 4, 4))
    prepared.with_latents(other, (1, 4, 4))
    assert again.seen == 0 and other.seen == COUNT


def test_an_interrupted_encoding_goes_on_with_the_next_file(prepared: PreparedImages) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepared.with_latents(Halves(stops_after=13), (1, 4, 4))
    rest = Halves()
    found = prepared.with_latents(rest, (1, 4, 4))
    assert rest.seen == COUNT - 10 and len(found.latents or ()) == COUNT


def test_a_damaged_file_is_named(prepared: PreparedImages) -> None:
    rows = prepared.with_latents(Halves(), (1, 4, 4)).latents
    assert rows is not None
    path = prepared.folder.with_name(rows.key) / "00001.arrow"
    data = bytearray(path.read_bytes())
    data[data.index(rows.row("mean", 6).tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"00001\.arrow.*delete it"):
        prepared.with_latents(Halves(), (1, 4, 4))


def test_the_loader_draws_latents_and_the_held_out_ones_are_means(prepared: PreparedImages, tmp_path: Path) -> None:
    found = prepared.with_latents(Halves(), (1, 4, 4))
    config = ImageDataConfig(limit=COUNT, cache=str(tmp_path), batch=len(found.parts["train"]))
    loader = ImageLoader(found, config, 3, NoNoise())
    (first, _), (second, _) = next(loader), next(loader)
    order = [np.argsort(batch.x_NCHW.flatten(1).sum(1).numpy()) for batch in (first, second)]
    assert first.x_NCHW.shape == (21, 1, 4, 4) and not np.array_equal(*order)
    means = np.stack([found.values(int(i)) for i in found.parts["train"]])
    spread = first.x_NCHW.numpy() - means[[_nearest(means, x) for x in first.x_NCHW.numpy()]]
    assert 0.3 < spread.std() < 0.6  # 0.5, less what the nearest mean takes away
    (held,) = held_out_images(found, config)
    assert np.array_equal(held.x_NCHW.numpy(), np.stack([found.values(int(i)) for i in found.parts["validation"]]))
    again, _ = next(ImageLoader(found, config, 3, NoNoise()))
    assert np.array_equal(again.x_NCHW, first.x_NCHW)
    with pytest.raises(UserError, match="other data"):
        ImageLoader(prepared.with_latents(Halves("other"), (1, 4, 4)), config, 3, NoNoise()).load_state_dict(loader.state_dict())


def test_embeddings_go_with_their_images(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for i in range(4):
        Image.new("L", (4, 4), 50 * i).save(tmp_path / "photos" / f"{i}.png")
        (tmp_path / "photos" / f"{i}.txt").write_text("x" * i + "\n")
    config = ImageDataConfig(kind="folder", path=str(tmp_path / "photos"), captions=".txt", cache=str(tmp_path), hold_out=2, batch=2)
    found = prepare_images(config).with_embeddings(Lengths(), 2)
    assert [found.store.caption(i) for i in range(4)] == ["", "x", "xx", "xxx"]
    batch, _ = next(ImageLoader(found, config, 0, NoNoise()))
    assert batch.embedding_NE is not None
    shades = ((batch.x_NCHW[:, 0, 0, 0] + 1) * 127.5 / 50).round()
    assert batch.embedding_NE[:, 0].tolist() == shades.tolist() and sorted(shades.tolist()) == [0, 2]
    (held,) = held_out_images(found, config)
    assert held.embedding_NE is not None and held.embedding_NE.tolist() == [[1, 1], [3, 1]]
    (tmp_path / "photos" / "2.txt").write_text("other words")
    assert prepare_images(config).store.caption(2) == "other words"


def _nearest(means: Any, x: Any) -> int:
    return int(np.square(means - x).sum((1, 2, 3)).argmin())
