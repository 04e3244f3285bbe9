"""The weights of a text network where they lie: safetensors in one file or many, read tensor by tensor, or a checkpoint of Lightning's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unveil.errors import UserError
from unveil.interop import pickled
from unveil.interop.folder import shards, write_json

WEIGHTS = "model.safetensors"
PICKLED = (".ckpt", ".pth")
"""Checkpoints of Lightning's (MDLM, BD3-LM) and SEDD's own."""


class Shards(Mapping[str, Tensor]):
    """Tensors by name, memory-mapped: what is not asked for is never read, and nothing is kept.

    Raises:
        UserError: a file is missing, truncated or corrupted, or a name lies in two of them.
    """

    def __init__(self, files: list[Path]) -> None:
        self._places: dict[str, tuple[Path, Any]] = {}
        for file in files:
            try:
                handle = safe_open(file, framework="pt")
            except FileNotFoundError:
                raise UserError(str(file), "is missing", "take the whole download, with its safetensors") from None
            except (SafetensorError, OSError) as error:
                raise UserError(str(file), f"is truncated or corrupted ({error})", "download it again") from None
            for name in handle.keys():  # type: ignore[no-untyped-call]  # noqa: SIM118  (the handle itself does not iterate)
                if name in self._places:
                    raise UserError(str(file), f"weight '{name}' lies in {self._places[name][0].name} too", "take one download alone")
                self._places[name] = (file, handle)

    def __getitem__(self, name: str) -> Tensor:
        return self._places[name][1].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Some(Mapping[str, Tensor]):
    """Those of the weights that have one of these names, read when they are asked for."""

    def __init__(self, source: Mapping[str, Tensor], names: Iterable[str]) -> None:
        self._source, self._names = source, dict.fromkeys(names)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._source[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def stored(folder: Path) -> tuple[Mapping[str, Tensor], Path]:
    """The weights of a folder and the file to name in messages. Raises UserError as ``Shards``, ``folder.shards`` and ``pickled.read``."""
    if (checkpoint := _pickled(folder)) is not None:
        return pickled.read(checkpoint), checkpoint
    files = shards(folder, WEIGHTS)
    return Shards(files), files[0] if len(files) == 1 else folder


def _pickled(folder: Path) -> Path | None:
    """A checkpoint to read where there are no safetensors."""
    if any(folder.glob("*.safetensors*")):
        return None
    return next((path for suffix in PICKLED for path in sorted(folder.rglob(f"*{suffix}"))), None)


def save(state: Mapping[str, Tensor], folder: Path, largest: int = 4 << 30) -> None:
    """Write weights, in files of at most ``largest`` bytes where one would be larger, with the listing that says where each one lies."""
    groups: list[list[str]] = [[]]
    room = largest
    for name, tensor in state.items():
        if groups[-1] and tensor.nbytes > room:
            groups.append([])
            room = largest
        groups[-1].append(name)
        room -= tensor.nbytes
    folder.mkdir(parents=True, exist_ok=True)
    stem = WEIGHTS.removesuffix(".safetensors")
    places: dict[str, str] = {}
    for i, names in enumerate(groups, 1):
        file = WEIGHTS if len(groups) == 1 else f"{stem}-{i:05d}-of-{len(groups):05d}.safetensors"
        # a copy of one file's tensors at a time: views of one matrix would be refused
        save_file({name: state[name].detach().cpu().contiguous().clone() for name in names}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    if len(groups) > 1:
        total = sum(tensor.nbytes for tensor in state.values())
        write_json(folder / f"{WEIGHTS}.index.json", {"metadata": {"total_size": total}, "weight_map": places})
