"""Prepared images: read once into memory-mapped files, with their classes and captions; a fixed rule says which are held out.

A folder of the cache is named by a hash of all that shaped it. Files are written aside and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from unveil.config import ImageDataConfig
from unveil.data.columns import REMEDY, cache_folder, read_columns, write_columns
from unveil.data.encoded import Encoder, Rows, encoded
from unveil.data.images import normalised
from unveil.data.pictures import Picture, Unreadable, fingerprint, pictures
from unveil.errors import UserError

PIXEL_FORMAT = 1
SHARD_BYTES = 1 << 26
NO_LABEL = -1

Array = np.ndarray[Any, Any]
Shape = tuple[int, int, int]
Part = Literal["train", "validation"]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many images are done, and of how many (0: not known)."""


class PixelStore:
    """All images of a source over any number of files: item ``i`` is a read-only view, uint8 ``[H, W, C]``, or float32 ``[C, H, W]``
    of what is no picture and used as it is.

    ``labels`` int64 ``[D]`` are in memory, pixels are read from the mapped files; ``ranks`` takes a label of the files to the label it
    stands for. Raises UserError for a file that is missing, truncated, corrupted or of another format.
    """

    def __init__(self, paths: Sequence[Path], key: str, shape: Shape, ranks: Sequence[int], captioned: bool = False) -> None:
        self._origin, self.shape = (tuple(paths), key, shape, tuple(ranks), captioned), shape
        columns = ("name", "pixels", "label", "caption") if captioned else ("name", "pixels", "label")
        shards = [read_columns(path, columns, PIXEL_FORMAT, key) for path in paths]
        self._names = [s["name"] for s in shards]
        self._captions = [s["caption"] for s in shards] if captioned else []
        self._pixels = [s["pixels"].values.to_numpy(zero_copy_only=True).reshape(-1, *shape) for s in shards]
        self._first = np.concatenate([[0], np.cumsum([len(p) for p in self._pixels])]).astype(np.int64)
        found = np.concatenate([s["label"].to_numpy(zero_copy_only=True) for s in shards])
        self.labels = np.array([*ranks, NO_LABEL], dtype=np.int64)[found]
        self.files = [(path.name, len(part)) for path, part in zip(paths, self._pixels, strict=True)]
        """Name and number of images of each file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return PixelStore, self._origin

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> Array:
        shard, row = self._find(index)
        return self._pixels[shard][row]

    def name(self, index: int) -> str:
        shard, row = self._find(index)
        return str(self._names[shard][row])

    def caption(self, index: int) -> str:
        """What the image shows, in words."""
        shard, row = self._find(index)
        return str(self._captions[shard][row])

    @property
    def pictures(self) -> bool:
        """Whether its items have 256 levels, as pixels have, and no values of their own."""
        return bool(self._pixels[0].dtype == np.uint8)

    def values(self, index: int) -> Array:
        """An item as a network takes it, float32 ``[C, H, W]``: pixels in [-1, 1], all else as it is."""
        return normalised(self[index]) if self.pictures else self[index]

    def _find(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        shard = int(np.searchsorted(self._first, index, side="right")) - 1
        return shard, index - int(self._first[shard])


@dataclass(frozen=True)
class PreparedImages:
    """``parts`` holds the indices of the training and of the held-out images; ``classes`` the names of the labels (empty where there
    are none); ``skipped`` the images left out because they cannot be read. ``latents`` (``mean`` and ``std``) take the place of the
    pixels; ``embeddings`` (``embedding``) are those of the captions."""

    store: PixelStore
    parts: dict[Part, Array]
    classes: tuple[str, ...]
    skipped: tuple[str, ...]
    folder: Path
    latents: Rows | None = None
    embeddings: Rows | None = None

    @property
    def shape(self) -> Shape:
        """Channels, height, width of what is trained on."""
        if self.latents is not None:
            channels, height, width = self.latents.shape
        elif self.store.pictures:
            height, width, channels = self.store.shape
        else:
            channels, height, width = self.store.shape
        return channels, height, width

    def values(self, index: int, rng: np.random.Generator | None = None) -> Array:
        """What is trained on, float32 ``[C, H, W]``. Latents have a distribution: a draw from it, or without ``rng`` its mean."""
        if self.latents is None:
            return self.store.values(index)
        mean = self.latents.row("mean", index)
        return mean if rng is None else mean + self.latents.row("std", index) * rng.standard_normal(mean.shape, dtype=np.float32)

    def with_latents(self, encoder: Encoder, shape: Shape, progress: Progress | None = None) -> PreparedImages:
        """Latents of this shape in the place of the pixels, by an encoder of images float32 ``[C, H, W]`` in [-1, 1]."""
        return replace(self, latents=self._encoded(self.store.values, encoder, shape, "encoding images", progress))

    def with_embeddings(self, encoder: Encoder, width: int, progress: Progress | None = None) -> PreparedImages:
        """Embeddings ``[E]`` of the captions beside the images."""
        return replace(self, embeddings=self._encoded(self.store.caption, encoder, (width,), "encoding captions", progress))

    def _encoded(self, item: Callable[[int], Any], encoder: Encoder, shape: tuple[int, ...], stage: str, progress: Progress | None) -> Rows:
        def report(done: int, total: int) -> None:
            if progress is not None:
                progress(stage, done, total)

        try:
            return encoded(self.folder, self.store.files, item, encoder, shape, report)
        except OSError as error:
            raise _unusable(self.folder, error) from error


def prepare_images(config: ImageDataConfig, progress: Progress | None = None) -> PreparedImages:
    """The recipe's images, read now or found in the cache.

    Every ``hold_out``-th image in the order of the source is held out, whatever the seed. Raises UserError for a source that cannot be
    read, images of mixed sizes or modes, one that cannot be read (unless ``skip_corrupt``), a damaged cache and a full disk.
    """
    read = [config.kind, config.column, config.labels, config.size, config.mode, config.skip_corrupt, config.limit, config.captions]
    key = hashlib.blake2b(json.dumps([PIXEL_FORMAT, read, fingerprint(config)]).encode(), digest_size=12).hexdigest()
    folder = cache_folder(config) / "images" / key
    try:
        manifest = folder / "prepared.json"
        if not manifest.exists() or not all((folder / name).exists() for name in _manifest(manifest)["files"]):
            folder.mkdir(parents=True, exist_ok=True)
            _fill(folder, key, config, progress or (lambda stage, done, total: None))
        found = _manifest(manifest)
    except OSError as error:
        raise _unusable(folder, error) from error
    seen = found["classes"]
    classes = tuple(sorted(seen, key=_natural))
    paths = [folder / name for name in found["files"]]
    ranks = [classes.index(name) for name in seen]
    store = PixelStore(paths, key, tuple(found["shape"]), ranks, bool(config.captions))
    index = np.arange(len(store))
    held = (index + 1) % config.hold_out == 0 if config.hold_out else np.zeros(len(store), np.bool_)
    if held.all():
        raise UserError("data.hold_out", f"{config.hold_out} leaves nothing to train on", "set it to 10, or to 0 to hold out none")
    parts: dict[Part, Array] = {"train": index[~held], "validation": index[held]}
    return PreparedImages(store, parts, classes, tuple(found["skipped"]), folder)


def _unusable(folder: Path, error: OSError) -> UserError:
    problem = f"'{folder}' cannot be used ({error.strerror or error})"
    return UserError("data.cache", problem, "free some space or name another folder")


def _manifest(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not found.keys() >= {"files", "shape", "classes", "skipped"}:
            raise ValueError
    except (ValueError, AttributeError) as error:
        raise UserError(str(path), "is damaged", REMEDY) from error
    return found


def _fill(folder: Path, key: str, config: ImageDataConfig, report: Progress) -> None:
    found: list[Picture] = []
    files: list[str] = []
    skipped: list[str] = []
    classes: dict[str, int] = {}
    first: Picture | None = None
    count = 0

    def close() -> None:
        nonlocal found
        if found:
            files.append(f"{len(files):05d}.arrow")
            _write(folder / files[-1], key, found, classes)
            found = []

    for picture in pictures(config):
        if isinstance(picture, Unreadable):
            if not config.skip_corrupt:
                problem = f"cannot be read as an image ({picture.reason})"
                raise UserError(picture.name, problem, "remove it, or leave such files out with --data.skip-corrupt true")
            skipped.append(picture.name)
            continue
        first = first or picture
        if picture.pixels.shape != first.pixels.shape:
            raise _mixed(first, picture)
        found.append(picture)
        count += 1
        if len(found) * picture.pixels.nbytes >= SHARD_BYTES:
            close()
        report("reading", count, 0)
    if first is None:
        raise UserError("data.path", f"'{config.path or config.kind}' holds no image that can be read", "give a source with images")
    close()
    manifest = {"files": files, "shape": first.pixels.shape, "classes": list(classes), "skipped": skipped}
    aside = folder / f"prepared.json.{os.getpid()}.tmp"
    aside.write_text(json.dumps(manifest), encoding="utf-8")
    aside.replace(folder / "prepared.json")


def _write(path: Path, key: str, found: list[Picture], classes: dict[str, int]) -> None:
    """Labels are numbered as they first appear: sorted they can be only once all are known."""
    labels = [NO_LABEL if p.label is None else classes.setdefault(p.label, len(classes)) for p in found]
    pixels = np.concatenate([p.pixels.reshape(-1) for p in found])
    columns = {
        "name": pa.array([p.name for p in found], pa.large_string()),
        "pixels": pa.FixedSizeListArray.from_arrays(pa.array(pixels), found[0].pixels.size),
        "label": pa.array(np.array(labels, dtype=np.int64)),
    }
    if found[0].caption is not None:
        columns["caption"] = pa.array([p.caption for p in found], pa.large_string())
    write_columns(path, columns, PIXEL_FORMAT, key)


def _natural(name: str) -> tuple[bool, int, str]:
    """Classes that are numbers in the order of numbers, so that the label of '7' is 7 where all ten are there."""
    return not name.isdecimal(), int(name) if name.isdecimal() else 0, name


def _mixed(first: Picture, other: Picture) -> UserError:
    (h, w, c), (height, width, channels) = first.pixels.shape, other.pixels.shape
    if c != channels:
        modes = {1: "grey", 3: "RGB"}
        return UserError(other.name, f"is {modes[channels]}, {first.name} is {modes[c]}", 'set data.mode to "grey" or "rgb"')
    return UserError(other.name, f"is {width} x {height} pixels, {first.name} is {w} x {h}", "set data.size to one size for all")
