"""Files of a diffusers folder: JSON, and safetensors whole or in shards. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unveil.errors import UserError

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a file. Raises UserError, with ``remedy`` where there is no such file."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(str(path), "is missing", remedy) from None
    except ValueError:
        raise UserError(str(path), "is no JSON", "download it again") from None
    if not isinstance(found, dict):
        raise UserError(str(path), f"holds a {type(found).__name__}, wanted an object", "download it again")
    return found


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def shards(folder: Path, name: str = WEIGHTS) -> list[Path]:
    """The files that hold a network's weights. Raises UserError for a listing that is corrupted, and where there are only pickled ones."""
    path, listing = folder / name, folder / f"{name}.index.json"
    if path.is_file():
        return [path]
    if listing.is_file():
        places = read_json(listing, "take the whole download").get("weight_map")
        if not isinstance(places, dict):
            raise UserError(str(listing), "is corrupted: no weight_map in it", "take the whole download")
        return [folder / place for place in sorted(set(places.values()))]
    if pickled := sorted(folder.glob("*.bin")):
        remedy = "save it again by save_pretrained, whose default is safetensors"
        raise UserError(str(pickled[0]), "holds pickled weights, which can run code when they are read", remedy)
    return [path]


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a network under their names. Raises UserError for a file that is missing, corrupted or pickled."""
    state: dict[str, Tensor] = {}
    for file in shards(folder):
        try:
            state |= load_file(file)
        except FileNotFoundError:
            raise UserError(str(file), "is missing", "take the whole download, with its safetensors") from None
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(str(file), f"is truncated or corrupted ({error})", "download it again") from None
    return state


def digest(settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """Of a network: its settings but for the notes of their writer, and its weights, wherever they lie and whoever saved them last."""
    kept = {key: value for key, value in settings.items() if not key.startswith("_")}
    found = hashlib.blake2b(json.dumps(kept, sort_keys=True, default=str).encode(), digest_size=12)
    for name, tensor in sorted(state.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
