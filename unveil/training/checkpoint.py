"""Checkpoints by ``torch.distributed.checkpoint``: written aside, checked, renamed; read without trusting them.

A checkpoint is a folder ``step-00001000`` with DCP's files and a ``manifest.json`` (format version, step, size and CRC-32 of every file).
All of its state is tensors, the host's part as JSON bytes in one of them, because DCP would unpickle anything else.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from unveil.errors import UserError
from unveil.training import unpickle
from unveil.training.parallel import World

FORMAT_VERSION = 1
_DTYPES = ("float64", "float32", "bfloat16", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
_DCP = "torch.distributed.checkpoint"
_METADATA = {
    *(f"{_DCP}.metadata.{name}" for name in ("Metadata", "MetadataIndex", "StorageMeta")),
    *(f"{_DCP}.metadata.{name}" for name in ("TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "_MEM_FORMAT_ENCODING")),
    f"{_DCP}.filesystem._StorageInfo",
    *(f"torch.{name}" for name in ("Size", *_DTYPES)),
    "torch.serialization._get_layout",
    "pathlib.PosixPath",
    "pathlib._local.PosixPath",
}


class _Reader(FileSystemReader):
    """DCP's reader, with its one unrestricted ``pickle.load`` replaced."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path) / ".metadata"
        with path.open("rb") as file:
            metadata: Metadata = unpickle.load(file, _METADATA, str(path))
        try:
            sound = _describes_its_folder(metadata, path.parent)
        except (AttributeError, TypeError):  # an allowed type in the wrong place
            sound = False
        if not sound:
            raise UserError(str(path), "refused: it describes more than the tensors of its folder", "get a clean copy of the checkpoint")
        return metadata


def _describes_its_folder(metadata: Metadata, path: Path) -> bool:
    """A byte entry would be unpickled by DCP, a file could lie elsewhere, and a size could ask for all the memory there is."""
    stored = sum(f.stat().st_size for f in path.glob("*.distcp"))
    wanted = 0
    for tensor in metadata.state_dict_metadata.values():
        if not isinstance(tensor, TensorStorageMetadata):
            return False
        wanted += math.prod(tensor.size) * tensor.properties.dtype.itemsize
    return wanted <= stored and all(Path(info.relative_path).name == info.relative_path for info in metadata.storage_data.values())


def save(directory: Path, step: int, tensors: Mapping[str, Tensor], host: Mapping[str, Any], world: World) -> Path:
    """Write the checkpoint of ``step`` into ``directory``; it appears under its name only when it is whole and on the disk.

    Every rank calls this: ``tensors`` are the same on all of them and written once, ``host`` (JSON-able) is each rank's own.
    Raises UserError if the disk is full; earlier checkpoints are untouched then.
    """
    final, partial = folder(directory, step), directory / f".step-{step:08d}.partial"
    if world.rank == 0:
        directory.mkdir(parents=True, exist_ok=True)
        for stale in directory.glob(".step-*"):
            shutil.rmtree(stale)
    world.barrier()
    blob = torch.frombuffer(bytearray(json.dumps(host).encode()), dtype=torch.uint8)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp_save({**tensors, f"host.{world.rank}": blob}, storage_writer=FileSystemWriter(partial), no_dist=world.size == 1)
        if world.rank == 0:
            _publish(partial, final, step)
    except (CheckpointException, OSError) as e:
        shutil.rmtree(partial, ignore_errors=True)
        if _full(e):
            problem = f"no space left while the checkpoint of step {step} was written; earlier ones are intact"
            raise UserError(str(directory), problem, "free some space and go on with --resume") from e
        raise
    world.barrier()
    return final


def _publish(partial: Path, final: Path, step: int) -> None:
    """Write the manifest, bring everything to the disk and rename."""
    files = {path.name: [path.stat().st_size, _crc(path)] for path in sorted(partial.iterdir())}
    with (partial / "manifest.json").open("w") as file:
        json.dump({"format_version": FORMAT_VERSION, "step": step, "files": files}, file)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(partial)
    if final.exists():  # of the same step, before a resume from an earlier one
        final.rename(partial.with_suffix(".old"))
    partial.rename(final)
    shutil.rmtree(partial.with_suffix(".old"), ignore_errors=True)
    _sync_folder(final.parent)


def load(path: Path, world: World) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and this rank's host state of a checkpoint folder, on the CPU.

    Raises UserError for a file that is missing, truncated or corrupted, for a ``.metadata`` that asks for anything but tensors, for
    another format version and for another number of ranks.
    """
    remedy = f"delete {path} and resume from an older checkpoint"
    manifest = _manifest(path, remedy)
    for name, (size, crc) in manifest["files"].items():
        file = path / Path(name).name
        if not file.is_file():
            raise UserError(str(file), "is missing", remedy)
        if file.stat().st_size != size or _crc(file) != crc:
            raise UserError(str(file), "is truncated or corrupted: size or checksum differ from the manifest's", remedy)
    reader = _Reader(path)
    described = reader.read_metadata().state_dict_metadata
    ranks = sum(name.startswith("host.") for name in described)
    if ranks != world.size:
        raise UserError(str(path), f"written by {ranks} rank(s), read by {world.size}", f"start {ranks} process(es), as the run had")
    # another rank's host state is its own
    mine = {name: t for name, t in described.items() if not name.startswith("host.") or name == f"host.{world.rank}"}
    tensors = {n: torch.empty(t.size, dtype=t.properties.dtype) for n, t in mine.items() if isinstance(t, TensorStorageMetadata)}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp_load(tensors, storage_reader=reader, no_dist=True)
        host: dict[str, Any] = json.loads(tensors.pop(f"host.{world.rank}").numpy().tobytes())
    except (CheckpointException, ValueError) as e:
        raise UserError(str(path), "cannot be read: its files do not hold what its .metadata says", remedy) from e
    return tensors, host


def _manifest(path: Path, remedy: str) -> dict[str, Any]:
    file = path / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(file.read_bytes())
        version, files = manifest["format_version"], manifest["files"]
        sound = all(isinstance(size, int) and isinstance(crc, int) for size, crc in files.values())
    except FileNotFoundError as e:
        raise UserError(str(file), "is missing: this is no whole checkpoint", remedy) from e
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise UserError(str(file), "is corrupted", remedy) from e
    if version != FORMAT_VERSION:
        raise UserError(str(file), f"has format version {version}, this unveil reads {FORMAT_VERSION}", "use the unveil that wrote it")
    if not sound or ".metadata" not in files:
        raise UserError(str(file), "is corrupted", remedy)
    return manifest


def folder(directory: Path, step: int) -> Path:
    return directory / f"step-{step:08d}"


def steps(directory: Path) -> list[int]:
    """The steps of which ``directory`` holds a checkpoint, ascending; none if there is no such directory."""
    names = [p.name for p in directory.iterdir()] if directory.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"step-(\d+)", name)))


def prune(directory: Path, keep: int, best: int | None) -> None:
    """Delete all but the newest ``keep`` checkpoints (at least one) and that of step ``best``."""
    for step in steps(directory)[: -max(keep, 1)]:
        if step != best:
            shutil.rmtree(folder(directory, step))


def _crc(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _full(error: BaseException) -> bool:
    causes = [e for e, _ in error.failures.values()] if isinstance(error, CheckpointException) else [error]
    # torch.save's zip writer hides the OSError of the file below it, and the exceptions of other ranks come without their cause
    return any(
        (isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)) or "inline_container" in str(e) for e in causes
    )
