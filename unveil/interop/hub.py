"""Folders of the Hugging Face hub, fetched once into its own cache: settings, tokenizer and safetensors, never code or pickles."""

from __future__ import annotations

import importlib
from pathlib import Path

from unveil.errors import UserError

PREFIX = "hub:"
PATTERNS = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "merges.txt")
_UNREACHED = ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectTimeout", "ReadTimeout")
"""What the library raises without a network, by name: it has changed what it builds on."""


def fetched(name: str) -> Path:
    """The local copy of ``hub:ID``. Raises UserError where it is not there and cannot be had."""
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise UserError(
            name, "is on the hub, and huggingface_hub is not installed", "pip install 'unveil[hub]', or give a folder"
        ) from None
    identity = name.removeprefix(PREFIX)
    try:
        folder = Path(hub.snapshot_download(identity, allow_patterns=list(PATTERNS)))
    except Exception as error:  # offline, unknown, gated, a full disk: the library has a class for each, and says what
        if isinstance(error, ConnectionError) or type(error).__name__ in _UNREACHED:
            problem = "is not on this machine, and the hub cannot be reached"
            raise UserError(name, problem, "go online, or give a folder that holds it") from None
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(name, f"cannot be fetched ({said})", "look at its name, or give a folder that holds it") from None
    if not any(folder.rglob("*.safetensors")):
        raise UserError(name, "has no safetensors, and nothing else is fetched: pickles can run code", "look for a copy that has them")
    return folder
