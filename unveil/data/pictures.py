"""Images from where a recipe says: scikit-learn's digits, IDX files, a folder, Parquet or the hub; and toys, which are points.

An image is uint8 ``[H, W, C]`` with one channel (grey) or three (RGB), a point float32 ``[2, 1, 1]``.
"""

from __future__ import annotations

import gzip
import io
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unveil.config import ImageDataConfig
from unveil.data.toys import POINTS, points
from unveil.errors import UserError, nearest

Array = np.ndarray[Any, Any]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MODES = {"grey": "L", "rgb": "RGB"}


class Picture(NamedTuple):
    """An image, a name unique within its source, and what it shows: a class's name, if that is known, and words, if they are asked for."""

    name: str
    pixels: Array
    label: str | None
    caption: str | None = None


class Unreadable(NamedTuple):
    """What stands in an image's place when it cannot be read, and why."""

    name: str
    reason: str


def pictures(config: ImageDataConfig) -> Iterator[Picture | Unreadable]:
    """The source's images in a fixed order, at their own size and in the mode that ``config.mode`` asks for, up to ``config.limit``.

    Raises UserError for a path that is missing, for a file that is none of its kind, for rows without the column, for a hub id that
    cannot be reached and for a library that is not installed; an image that cannot be read comes out as ``Unreadable``.
    """
    for count, found in enumerate(_READERS[config.kind](config)):
        if config.limit and count == config.limit:
            return
        yield found


def fingerprint(config: ImageDataConfig) -> list[Any]:
    """What tells whether the source has changed since it was read: sizes and times of its files."""
    if config.kind in ("digits", "hub", "toy"):
        return [config.path]
    paths = [*_files(config), *([Path(config.labels).expanduser()] if config.kind == "idx" and config.labels else [])]
    if config.kind == "folder" and config.captions:
        paths += [found for path in paths if (found := path.with_suffix(config.captions)).is_file()]
    for path in paths:
        if not path.exists():
            raise UserError("data.labels", f"'{path}' does not exist", "give the IDX file of the labels, or leave it empty")
    return [[str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in paths]


def _digits(config: ImageDataConfig) -> Iterator[Picture]:
    """8 x 8 pixels of 17 levels, which become 0, 16, ..., 255."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("data.kind", "'digits' needs the library scikit-learn", "pip install 'unveil[images]'") from error
    images, labels = load_digits().images, load_digits().target
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        levels = np.rint(image[..., None] * (255 / 16)).astype(np.uint8)
        yield Picture(f"digit {index}", _arranged(levels, config), str(label))


def _toy(config: ImageDataConfig) -> Iterator[Picture]:
    for index, (point, part) in enumerate(zip(*points(config.path, config.limit or POINTS), strict=True)):
        yield Picture(f"point {index}", point.reshape(2, 1, 1), str(part))


# IDX -----------------------------------------------------------------------------------------------------------------------------


def _idx(config: ImageDataConfig) -> Iterator[Picture]:
    """LeCun's format: a magic number that names type and dimensions, the sizes, the values; plain or gzipped."""
    images = _read_idx(Path(config.path).expanduser(), "data.path", (3, 4))
    labels = _read_idx(Path(config.labels).expanduser(), "data.labels", (1,)) if config.labels else None
    if labels is not None and len(labels) != len(images):
        raise UserError("data.labels", f"{len(labels)} labels for {len(images)} images", "give the labels that belong to data.path")
    images = images[..., None] if images.ndim == 3 else images
    if images.shape[-1] not in (1, 3):
        raise UserError("data.path", f"{config.path} holds images of {images.shape[-1]} channels", "give grey (1) or RGB (3) images")
    for index, image in enumerate(images):
        label = None if labels is None else str(labels[index])
        yield Picture(f"{config.path}[{index}]", _arranged(image, config), label)


def _read_idx(path: Path, field: str, dimensions: tuple[int, ...]) -> Array:
    if not path.is_file():
        raise UserError(field, f"no file '{path}'" if str(path) != "." else "kind 'idx' needs a file and it is empty", "give an IDX file")
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            data = stream.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(str(path), f"cannot be read ({error})", "get a clean copy of the file") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08" or data[3] not in dimensions:
        raise UserError(str(path), f"is no IDX file of bytes in {' or '.join(map(str, dimensions))} dimensions", "give another file")
    count = data[3]
    start = 4 + 4 * count
    shape = struct.unpack(f">{count}I", data[4:start]) if len(data) >= start else ()
    if not shape or len(data) - start != int(np.prod(shape, dtype=np.int64)):
        raise UserError(str(path), f"is truncated or damaged: {len(data):,} bytes do not hold what its header says", "get a clean copy")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


# Folders -------------------------------------------------------------------------------------------------------------------------


def _files(config: ImageDataConfig) -> list[Path]:
    root = Path(config.path).expanduser()
    if not config.path or not root.exists():
        problem = f"'{config.path}' does not exist" if config.path else f"kind '{config.kind}' needs one and it is empty"
        raise UserError("data.path", problem, "give a file or a folder")
    if root.is_file():
        return [root]
    suffixes = (".parquet",) if config.kind == "parquet" else SUFFIXES
    inside = (p for p in root.rglob("*") if not any(part.startswith(".") for part in p.relative_to(root).parts))
    files = sorted(p for p in inside if p.is_file() and p.name.lower().endswith(suffixes))
    if not files:
        raise UserError("data.path", f"the folder '{config.path}' holds no {suffixes[0]}", "give another folder, or another data.kind")
    return files


def _folder(config: ImageDataConfig) -> Iterator[Picture | Unreadable]:
    root = Path(config.path).expanduser()
    for path in _files(config):
        name = path.relative_to(root if root.is_dir() else root.parent)
        try:
            data = path.read_bytes()
        except OSError as error:
            yield Unreadable(str(path), error.strerror or str(error))
            continue
        caption = _beside(path, config.captions) if config.captions else None
        yield _decoded(str(path), data, name.parts[0] if len(name.parts) > 1 else None, caption, config)


def _beside(path: Path, suffix: str) -> str:
    """The words in the file beside an image."""
    if not suffix.startswith("."):
        raise UserError("data.captions", f"got '{suffix}' for a folder", "give the suffix of the files beside the images, such as .txt")
    try:
        return path.with_suffix(suffix).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise UserError(str(path), f"has no caption, there is no {path.stem}{suffix}", "write one, or take the image away") from None
    except UnicodeDecodeError as error:
        raise UserError(str(path.with_suffix(suffix)), f"is no UTF-8 ({error.reason})", "save it as UTF-8") from None


def _decoded(name: str, data: bytes, label: str | None, caption: str | None, config: ImageDataConfig) -> Picture | Unreadable:
    """An encoded image, upright as its EXIF data say."""
    Image, ImageOps = _pillow(config.kind)
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
    # what Pillow's plugins raise for files that are cut or damaged
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error, Image.DecompressionBombError) as error:
        reason = "no known format" if isinstance(error, Image.UnidentifiedImageError) else str(error) or type(error).__name__
        return Unreadable(name, reason.splitlines()[0])
    if config.mode == "as-is" and image.mode not in ("1", "L", "RGB"):
        raise UserError(name, f"is of mode {image.mode}, wanted L (grey) or RGB", 'set data.mode to "grey" or "rgb"')
    return Picture(name, _pixels(image, "L" if image.mode == "1" else image.mode, config), label, caption)


def _arranged(pixels: Array, config: ImageDataConfig) -> Array:
    """Decoded pixels in the mode and size that are asked for."""
    mode = "L" if pixels.shape[-1] == 1 else "RGB"
    fits = not config.size or pixels.shape[:2] == (config.size, config.size)
    if fits and MODES.get(config.mode, mode) == mode:
        return pixels
    Image, _ = _pillow(config.kind)
    return _pixels(Image.fromarray(pixels[..., 0] if mode == "L" else pixels), mode, config)


def _pixels(image: Any, mode: str, config: ImageDataConfig) -> Array:
    image = image.convert(MODES.get(config.mode, mode))
    if config.size:
        Image, ImageOps = _pillow(config.kind)
        image = ImageOps.fit(image, (config.size, config.size), Image.Resampling.LANCZOS)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _pillow(kind: str) -> tuple[Any, Any]:
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise UserError("data.kind", f"'{kind}' needs the library pillow here", "pip install 'unveil[images]'") from error
    return PIL.Image, PIL.ImageOps


# Parquet and the hub -------------------------------------------------------------------------------------------------------------


def _parquet(config: ImageDataConfig) -> Iterator[Picture | Unreadable]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in _files(config):
        try:
            with pq.ParquetFile(path) as table:
                known = table.schema_arrow.names
                wanted = _columns(config)
                for name in wanted:
                    if name not in known:
                        raise _no_column(name, known, str(path), config)
                rows = (row for batch in table.iter_batches(batch_size=256, columns=wanted) for row in batch.to_pylist())
                for number, row in enumerate(rows, 1):
                    yield _of_row(f"{path} row {number}", row, config)
        except (pa.ArrowException, OSError) as error:
            raise UserError(str(path), f"cannot be read as Parquet ({str(error).splitlines()[0]})", "check the file") from error


def _hub(config: ImageDataConfig) -> Iterator[Picture | Unreadable]:
    """Rows of the ``train`` split of ``owner/name`` or ``owner/name:configuration``, streamed; images come undecoded."""
    try:
        import datasets
    except ImportError as error:
        raise UserError("data.kind", "'hub' needs the library `datasets`", "pip install 'unveil[hub]'") from error
    name, _, configuration = config.path.partition(":")
    try:
        stream = datasets.load_dataset(name, configuration or None, split="train", streaming=True)
        stream = stream.cast_column(config.column, datasets.Image(decode=False))
        rows = iter(stream)
        for number in range(sys.maxsize):
            row = next(rows, None)
            if row is None:
                return
            for column in _columns(config):
                if column not in row:
                    raise _no_column(column, list(row), config.path, config)
            yield _of_row(f"{config.path} row {number}", row, config)
    except UserError:
        raise
    except Exception as error:  # every layer below (network, file formats, scripts) raises errors of its own
        offline = " while HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else ""
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        problem = f"the hub's '{config.path}' cannot be read{offline} ({reason})"
        raise UserError("data.path", problem, "check the id and the connection, or give local files") from error


def _of_row(name: str, row: dict[str, Any], config: ImageDataConfig) -> Picture | Unreadable:
    """The image column holds encoded bytes, alone or as ``datasets`` writes them: ``{"bytes": ..., "path": ...}``."""
    value = row[config.column]
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        problem = f"'{config.column}' of {name} holds {type(data).__name__}, wanted the bytes of an image file"
        raise UserError("data.column", problem, "name the column that holds the image")
    label = row[config.labels] if config.labels else None
    caption = row[config.captions] if config.captions else None
    if config.captions and not isinstance(caption, str):
        problem = f"'{config.captions}' of {name} holds {type(caption).__name__}, wanted a text"
        raise UserError("data.captions", problem, "name the column that holds the captions")
    return _decoded(name, data, None if label is None else str(label), caption, config)


def _columns(config: ImageDataConfig) -> list[str]:
    return [name for name in (config.column, config.labels, config.captions) if name]


def _no_column(column: str, known: list[str], where: str, config: ImageDataConfig) -> UserError:
    field = {config.captions: "data.captions", config.labels: "data.labels", config.column: "data.column"}[column]
    return UserError(field, f"there is no '{column}' in {where}", nearest(column, known))


_READERS: dict[str, Callable[[ImageDataConfig], Iterator[Picture | Unreadable]]] = {
    "digits": _digits,
    "idx": _idx,
    "folder": _folder,
    "parquet": _parquet,
    "hub": _hub,
    "toy": _toy,
}
