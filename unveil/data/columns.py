"""Columns on disk: one memory-mapped Arrow file with a format version, a key and a checksum."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from unveil.config import ImageDataConfig, TextDataConfig
from unveil.errors import UserError

REMEDY = "delete it and run `unveil data prepare` again"


def cache_folder(config: TextDataConfig | ImageDataConfig) -> Path:
    """``data.cache``, else the environment's ``UNVEIL_CACHE``, else ``~/.cache/unveil``."""
    return Path(config.cache or os.environ.get("UNVEIL_CACHE") or "~/.cache/unveil").expanduser()


def write_columns(path: Path, columns: Mapping[str, pa.Array], version: int, key: str) -> None:
    """Write one file, aside first and then renamed: under its name it is always whole. ``key`` says what shaped it."""
    metadata = {"unveil.format": str(version), "unveil.key": key, "unveil.crc32": str(_checksum(columns))}
    table = pa.record_batch(list(columns.values()), names=list(columns)).replace_schema_metadata(metadata)
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_batch(table)
        aside.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()


def read_columns(path: Path, names: tuple[str, ...], version: int, key: str) -> dict[str, pa.Array]:
    """Map one file and check it. Raises UserError where it is missing, truncated, corrupted or of another format or key."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
        metadata = {k.decode(): v.decode() for k, v in (reader.schema.metadata or {}).items()}
        if metadata.get("unveil.format") != str(version):
            found = metadata.get("unveil.format", "none")
            raise UserError(str(path), f"has shard format {found}, this unveil reads {version}", REMEDY)
        if metadata.get("unveil.key") != key:
            raise UserError(str(path), "was made from other data or settings than its folder says", REMEDY)
        batch = reader.get_batch(0)
        batch.validate(full=True)
        columns = {name: batch.column(name) for name in names}
        checksum = str(_checksum(columns))
    except (pa.ArrowException, OSError, KeyError, IndexError, ValueError) as error:
        raise UserError(str(path), f"is truncated or damaged ({(str(error) or 'empty').splitlines()[0]})", REMEDY) from error
    if checksum != metadata.get("unveil.crc32"):
        raise UserError(str(path), "is corrupted: its checksum does not match", REMEDY)
    return columns


def _checksum(columns: Mapping[str, pa.Array]) -> int:
    value = 0
    for column in columns.values():
        if pa.types.is_large_string(column.type):
            value = zlib.crc32("\0".join(column.to_pylist()).encode("utf-8", "surrogatepass"), value)
            continue
        nested = isinstance(column, pa.LargeListArray | pa.FixedSizeListArray)
        parts = [column.values] if nested else [column]
        parts += [column.offsets] if isinstance(column, pa.LargeListArray) else []
        for part in parts:
            value = zlib.crc32(np.ascontiguousarray(part.to_numpy(zero_copy_only=True)).data, value)
    return value
