"""Power-function averages kept while a run trains, and their snapshots on disk, from which one of any width is made afterwards
(Karras et al. 2024, section 3)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from unveil.errors import UserError
from unveil.training.ema import Average
from unveil.training.ema_profile import Profile, decay, gamma_of


class PowerAverages:
    """An average of the parameters of ``model`` for each relative width (sigma_rel); none without widths."""

    def __init__(self, model: nn.Module, widths: Sequence[float]) -> None:
        self._averages = {width: Average(model, partial(decay, gamma_of(width))) for width in widths}

    def update(self) -> None:
        for average in self._averages.values():
            average.update()

    def save(self, folder: Path, step: int) -> None:
        """A file for each width, whole or not at all; of the same step the same bytes."""
        for width, average in self._averages.items():
            folder.mkdir(exist_ok=True)
            path = folder / f"step-{step:08d}-{width:g}.safetensors"
            aside = path.with_name(f".{path.name}.partial")
            about = {"profile": f"{gamma_of(width)!r} {average.updates}"}  # one entry: those of several are written in any order
            save_file({name: tensor.cpu().contiguous() for name, tensor in average.state_dict().items()}, aside, metadata=about)
            os.replace(aside, path)

    def state_dict(self) -> dict[str, Tensor]:
        named = ((i, average.state_dict()) for i, average in enumerate(self._averages.values()))
        return {f"{i}.{name}": tensor for i, state in named for name, tensor in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Raises UserError as ``Average.load_state_dict``."""
        for i, average in enumerate(self._averages.values()):
            mine = {name.removeprefix(f"{i}."): tensor for name, tensor in state.items() if name.startswith(f"{i}.")}
            average.load_state_dict(mine, updates)


class Kept(NamedTuple):
    """A snapshot on disk."""

    profile: Profile
    path: Path

    def load(self) -> dict[str, Tensor]:
        """Its weights by name. Raises UserError for a file that is damaged."""
        try:
            with safe_open(self.path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
        except (SafetensorError, OSError) as error:
            raise _damaged(self.path) from error


def kept(folder: Path) -> list[Kept]:
    """The snapshots of a run's ``averages/``, none where there is no such folder. Raises UserError for a file that is damaged."""
    found = []
    for path in sorted(folder.glob("step-*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                gamma, updates = (file.metadata() or {})["profile"].split()
            found.append(Kept(Profile(float(gamma), float(updates)), path))
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise _damaged(path) from error
    return found


def _damaged(path: Path) -> UserError:
    return UserError(str(path), "is damaged", "delete it, the others may do")
