"""Which weights these are: a hash that does not depend on the file they came in."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


class Fingerprint:
    """A hash of weights by name, dtype, shape and content, in whatever order they are seen."""

    def __init__(self) -> None:
        self._parts: dict[str, bytes] = {}

    def see(self, name: str, tensor: Tensor) -> None:
        found = hashlib.blake2b(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), digest_size=16)
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        self._parts[name] = found.digest()

    def value(self) -> str:
        """24 hexadecimal digits."""
        return hashlib.blake2b(b"".join(self._parts[name] for name in sorted(self._parts)), digest_size=12).hexdigest()
