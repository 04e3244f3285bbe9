from __future__ import annotations

import builtins
import gzip
import io
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from unveil.config import ImageDataConfig
from unveil.data.pictures import Picture, Unreadable, fingerprint, pictures
from unveil.errors import UserError


def encoded(pixels: Any, format: str = "png") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(stream, format)
    return stream.getvalue()


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">I{values.ndim}I", 0x0800 | values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of two 6 x 4 images, one of them grey."""
    rng = np.random.default_rng(0)
    for name in ("dog/b.png", "cat/a.png", "cat/z.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(rng.integers(0, 256, (4, 6, 3))))
    (tmp_path / "dog" / "a.PNG").write_bytes(encoded(rng.integers(0, 256, (4, 6))))
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"no image")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    return tmp_path


def test_captions_stand_beside_images_or_in_a_column(photos: Path, tmp_path: Path) -> None:
    config = ImageDataConfig(kind="folder", path=str(photos), captions=".txt")
    with pytest.raises(UserError, match=r"a\.png: has no caption, there is no a\.txt; write one"):
        list(pictures(config))
    for name in ("dog/b", "dog/a", "cat/a", "cat/z"):
        (photos / f"{name}.txt").write_text(f"\n {name} \n")
    assert [p.caption for p in pictures(config)] == ["cat/a", "cat/z", "dog/a", "dog/b"]  # type: ignore[union-attr]
    before = fingerprint(config)
    (photos / "cat" / "a.txt").write_text("another, longer")
    assert fingerprint(config) != before and len(before) == 8
    (photos / "cat" / "a.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"a\.txt: is no UTF-8"):
        list(pictures(config))
    with pytest.raises(UserError, match=r"data.captions.*such as \.txt"):
        list(pictures(replace(config, captions="caption")))
    rows = {"image": [encoded([[1, 2]]), encoded([[3, 4]])], "words": ["one", None]}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    table = ImageDataConfig(kind="parquet", path=str(tmp_path / "t.parquet"), captions="words")
    assert next(pictures(table)).caption == "one"  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"data.captions: 'words' of .* row 2 holds NoneType, wanted a text"):
        list(pictures(table))
    with pytest.raises(UserError, match=r"data\.captions: there is no 'word'"):
        list(pictures(replace(table, captions="word")))


def test_a_toy_is_points(tmp_path: Path) -> None:
    found = list(pictures(ImageDataConfig(kind="toy", path="rings", limit=9)))
    assert len(found) == 9 and {(p.pixels.shape, p.pixels.dtype) for p in found} == {((2, 1, 1), np.dtype(np.float32))}  # type: ignore[union-attr]


def test_digits_are_scikit_learns_with_every_level_kept_apart() -> None:
    found = list(pictures(ImageDataConfig()))
    truth = load_digits()
    assert len(found) == 1797 and {p.pixels.shape for p in found} == {(8, 8, 1)}
    assert [p.label for p in found] == [str(t) for t in truth.target]
    assert all(np.array_equal(np.rint(p.pixels[..., 0] * (16 / 255)), image) for p, image in zip(found, truth.images, strict=True))
    assert max(p.pixels.max() for p in found) == 255
    assert len(list(pictures(ImageDataConfig(limit=7)))) == 7


def test_digits_without_scikit_learn_are_a_kind_error(monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def blocked(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith(("sklearn", "PIL")):
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(UserError, match=r"scikit-learn; pip install 'unveil\[images\]'"):
        list(pictures(ImageDataConfig()))


def test_idx_files_come_back_byte_for_byte(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (5, 3, 2)), np.array([3, 1, 4, 1, 5])
    (tmp_path / "i.gz").write_bytes(gzip.compress(idx(images)))
    (tmp_path / "l").write_bytes(idx(labels))
    config = ImageDataConfig(kind="idx", path=str(tmp_path / "i.gz"), labels=str(tmp_path / "l"))
    found = list(pictures(config))
    assert np.array_equal(np.stack([p.pixels for p in found])[..., 0], images)
    assert [p.label for p in found] == list("31415")
    assert next(pictures(replace(config, labels=""))).label is None
    assert next(pictures(replace(config, mode="rgb"))).pixels.shape == (3, 2, 3)
    assert len(fingerprint(config)) == 2


def test_mnist_is_mnist(data_dir: Path) -> None:
    folder = data_dir / "mnist"
    config = ImageDataConfig(
        kind="idx", path=str(folder / "t10k-images-idx3-ubyte.gz"), labels=str(folder / "t10k-labels-idx1-ubyte.gz"), limit=20
    )
    assert "".join(str(p.label) for p in pictures(config)) == "72104149590690159734"


def _damage(folder: Path, name: str) -> ImageDataConfig:
    images, labels = idx(np.zeros((4, 2, 2))), idx(np.zeros(3))
    contents = {"cut": images[:-1], "labels": idx(np.zeros(4)), "text": b"hello, world", "fine": images, "zip": gzip.compress(images)[:30]}
    for key, data in contents.items():
        (folder / (key + ".gz" * (key == "zip"))).write_bytes(data)
    (folder / "three").write_bytes(labels)
    (folder / "two-channels").write_bytes(idx(np.zeros((4, 2, 2, 2))))
    return ImageDataConfig(kind="idx", path=str(folder / name))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cut", "truncated"),
        ("text", "no IDX"),
        ("labels", "no IDX"),
        ("none", "no file"),
        ("zip.gz", "cannot be read"),
        ("two-channels", "2"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        list(pictures(_damage(tmp_path, name)))
    assert name in str(error.value)


def test_labels_of_another_file_are_refused(tmp_path: Path) -> None:
    config = replace(_damage(tmp_path, "fine"), labels=str(tmp_path / "three"))
    with pytest.raises(UserError, match="3 labels for 4 images"):
        list(pictures(config))
    with pytest.raises(UserError, match=r"data\.labels"):
        fingerprint(replace(config, labels=str(tmp_path / "no")))


def test_a_folder_is_read_in_order_with_its_subfolders_as_classes(photos: Path) -> None:
    found = list(pictures(ImageDataConfig(kind="folder", path=str(photos))))
    assert [(Path(p.name).name, p.label) for p in found] == [("a.png", "cat"), ("z.png", "cat"), ("a.PNG", "dog"), ("b.png", "dog")]
    assert [p.pixels.shape for p in found] == [(4, 6, 3), (4, 6, 3), (4, 6, 1), (4, 6, 3)]
    assert np.array_equal(found[0].pixels, np.asarray(Image.open(photos / "cat" / "a.png")))
    assert {p.pixels.shape for p in pictures(ImageDataConfig(kind="folder", path=str(photos), mode="grey", size=3))} == {(3, 3, 1)}
    alone = next(pictures(ImageDataConfig(kind="folder", path=str(photos / "cat" / "a.png"))))
    assert alone.label is None


def test_what_cannot_be_read_is_handed_over_with_the_reason(photos: Path) -> None:
    good = (photos / "cat" / "a.png").read_bytes()
    bad = {"b.png": good[: len(good) // 2], "c.png": b"", "d.png": b"\x89PNG and so on", "e.jpg": good[:8] + b"\0" * 50}
    for name, data in bad.items():
        (photos / "cat" / name).write_bytes(data)
    found = list(pictures(ImageDataConfig(kind="folder", path=str(photos))))
    assert [Path(p.name).name for p in found if isinstance(p, Unreadable)] == sorted(bad)
    assert all(p.reason and "\n" not in p.reason for p in found if isinstance(p, Unreadable))
    assert sum(isinstance(p, Picture) for p in found) == 4


def test_a_mode_that_is_neither_grey_nor_rgb_is_named(photos: Path) -> None:
    Image.new("RGBA", (6, 4)).save(photos / "cat" / "b.png")
    with pytest.raises(UserError, match=r"b\.png: is of mode RGBA.*data\.mode"):
        list(pictures(ImageDataConfig(kind="folder", path=str(photos))))
    assert len(list(pictures(ImageDataConfig(kind="folder", path=str(photos), mode="rgb")))) == 5


def test_parquet_holds_encoded_images_alone_or_as_datasets_writes_them(photos: Path, tmp_path: Path) -> None:
    data = (photos / "cat" / "a.png").read_bytes()
    rows = {"image": [{"bytes": data, "path": "a.png"}, {"bytes": b"cut", "path": None}], "raw": [data, data], "kind": [4, None]}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    config = ImageDataConfig(kind="parquet", path=str(tmp_path / "t.parquet"), labels="kind")
    first, second = pictures(config)
    assert isinstance(first, Picture) and first.label == "4" and isinstance(second, Unreadable)
    one, two = pictures(replace(config, column="raw", labels=""))
    assert isinstance(one, Picture) and isinstance(two, Picture) and np.array_equal(one.pixels, first.pixels) and one.label is None
    for wrong, said in ((replace(config, column="imgae"), "data.column"), (replace(config, labels="kinds"), "data.labels")):
        with pytest.raises(UserError, match="did you mean") as error:
            list(pictures(wrong))
        assert error.value.field == said
    with pytest.raises(UserError, match="holds int"):
        list(pictures(replace(config, column="kind", labels="")))


def test_a_path_that_is_empty_or_missing_is_named(tmp_path: Path) -> None:
    for path, said in (("", "empty"), (str(tmp_path / "no"), "does not exist"), (str(tmp_path), "holds no")):
        with pytest.raises(UserError, match=said):
            list(pictures(ImageDataConfig(kind="folder", path=path)))
