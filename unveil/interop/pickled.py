"""Checkpoints that torch pickled: Lightning's ``.ckpt`` (MDLM, BD3-LM), SEDD's ``.pth``. Numbers are read, nothing else is built.

The averaged weights are what their authors sample with. They lie there as a bare list, in the order of the network's parameters.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unveil.errors import UserError
from unveil.training import unpickle

_ALLOWED = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "collections.OrderedDict")
_REMEDY = "take the whole file, as its authors published it"
_COMPILED = "_orig_mod."


def read(path: Path) -> dict[str, Tensor]:
    """The averaged weights where there are any, else those of the last step, by their names in the network.

    Raises:
        UserError: no such checkpoint, or one without weights, or averages that do not fit the network's parameters.
    """
    content = _content(path)
    weights = content.get("state_dict", content.get("model")) if isinstance(content, Mapping) else None
    if not isinstance(weights, Mapping) or not weights or not all(_is_weight(*entry) for entry in weights.items()):
        raise UserError(str(path), "holds no weights under 'state_dict' or 'model'", _REMEDY)
    state = {name.replace(_COMPILED, "").removeprefix("module."): value for name, value in weights.items()}
    average = content.get("ema")
    shadows = average.get("shadow_params") if isinstance(average, Mapping) else None
    return state if shadows is None else state | _averaged(state, shadows, path)


def _is_weight(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def is_buffer(name: str) -> bool:
    """Whether a name in their state is no parameter: it follows from the settings."""
    return name.endswith(("rotary_emb.inv_freq", "sampling_eps_min", "sampling_eps_max"))


def _averaged(state: Mapping[str, Tensor], shadows: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(shadows, list) or not all(isinstance(shadow, Tensor) for shadow in shadows):
        raise UserError(str(path), "the averages under 'ema' are no list of tensors", _REMEDY)
    names = [name for name in state if not is_buffer(name)]
    if len(names) != len(shadows):
        raise UserError(str(path), f"{len(shadows)} averages for {len(names)} parameters", _REMEDY)
    for name, shadow in zip(names, shadows, strict=True):
        if shadow.shape != state[name].shape:
            raise UserError(str(path), f"the average of '{name}' has shape {list(shadow.shape)}, wanted {list(state[name].shape)}", _REMEDY)
    return dict(zip(names, shadows, strict=True))


def _content(path: Path) -> Any:
    """A file of ``torch.save``: a zip with a pickle and the raw bytes of every storage."""
    try:
        with zipfile.ZipFile(path) as archive:
            listing = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            root = listing.removesuffix("data.pkl")
            found: dict[str, Any] = {}

            def storage(pid: Any) -> Any:
                _, kind, key, _, count = pid
                if key not in found:
                    raw = bytearray(archive.read(f"{root}data/{key}"))
                    if kind.__name__ not in _DTYPES:
                        raise UserError(str(path), f"holds numbers of the kind {kind.__name__!r}", _REMEDY)
                    dtype = _DTYPES[kind.__name__]
                    found[key] = torch.storage.TypedStorage(
                        wrap_storage=torch.frombuffer(raw, dtype=torch.uint8).untyped_storage() if raw else torch.UntypedStorage(0),
                        dtype=dtype,
                        _internal=True,
                    )
                    if len(raw) != count * dtype.itemsize:
                        raise ValueError("truncated")
                return found[key]

            with archive.open(listing) as file:
                return unpickle.load(file, _ALLOWED, str(path), storage, lenient=True)
    except UserError as error:
        raise UserError(error.field, error.problem, _REMEDY) from None
    except (zipfile.BadZipFile, StopIteration, OSError):
        raise UserError(str(path), "is no checkpoint of torch.save", _REMEDY) from None


_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
}
