"""What a finished run leaves: ``final/model.safetensors`` and ``final/config.json``, enough to build the network again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from unveil.config import FORMAT_VERSION
from unveil.errors import UserError
from unveil.training.weights import assign, weights

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def write(folder: Path, model: nn.Module, config: Mapping[str, Any]) -> None:
    """Write the weights as they are now and ``config`` with the format version.

    ``config`` is what ``read_config`` will give back: JSON-able, for a text model ``vocabulary`` (the number of tokens) among its keys.
    """
    write_config(folder, config)
    partial = folder / f".{WEIGHTS}.partial"
    save_file({name: tensor.cpu().contiguous() for name, tensor in weights(model).items()}, partial, metadata={"format": "pt"})
    os.replace(partial, folder / WEIGHTS)


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """``config`` with the format version, for what lies beside it in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps({"format_version": FORMAT_VERSION, **config}, indent=2) + "\n")


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json``. Raises UserError if it is missing, no JSON object, of another format version, or its vocabulary no number."""
    path = folder / CONFIG
    remedy = "export the run again: resume it, or copy final/ from where it was trained"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError as e:
        raise UserError(str(path), "is missing", remedy) from e
    except ValueError as e:
        raise UserError(str(path), "is corrupted: no JSON", remedy) from e
    if not isinstance(config, dict) or not isinstance(config.get("vocabulary", 0), int):
        raise UserError(str(path), "is corrupted: 'vocabulary' in it is no number of tokens", remedy)
    if config.get("format_version") != FORMAT_VERSION:
        problem = f"has format version {config.get('format_version')}, this unveil reads {FORMAT_VERSION}"
        raise UserError(str(path), problem, "use the unveil that wrote it")
    return config


def check_tokenizer(folder: Path, tokenizer: Path | str, size: int) -> None:
    """Raise a UserError unless ``tokenizer`` (named for the message) has as many tokens as the network of ``folder``."""
    wanted = read_config(folder).get("vocabulary")
    if size != wanted:
        problem = f"has {size} tokens, the network of {folder} has {wanted}" if wanted else f"the network of {folder} names no vocabulary"
        raise UserError(str(tokenizer), problem, "use the tokenizer.json that it was trained with")


def read(folder: Path, model: nn.Module) -> None:
    """Load the weights of ``folder`` into ``model``, strictly.

    Raises UserError if the file is missing, truncated or corrupted, or if it lacks a weight, has one too many, or one of another shape.
    """
    path = folder / WEIGHTS
    remedy = "export the run again: resume it, or copy final/ from where it was trained"
    try:
        found = load_file(path)
    except FileNotFoundError as e:
        raise UserError(str(path), "is missing", remedy) from e
    except (SafetensorError, OSError, ValueError) as e:
        raise UserError(str(path), f"is truncated or corrupted ({e})", remedy) from e
    assign(found, weights(model), str(path))
