"""What a killed compiler leaves behind, cleared away before the next one trips over it."""

from __future__ import annotations

import struct
import time
from pathlib import Path

_HEADER = struct.Struct("<40xQ10xHH2x")
"""Of a 64-bit ELF file: offset of the section table, and the size and number of its entries."""
_SETTLED = 60.0
"""Seconds: a younger file may be in another process's hands."""


def whole(library: Path) -> bool:
    """Whether a shared library is as long as its header says; true for anything but a 64-bit ELF file, which is not ours to judge."""
    with library.open("rb") as file:
        head = file.read(64)
        length = file.seek(0, 2)
    if not head.startswith(b"\x7fELF\x02"):
        return bool(head)
    if len(head) < 64:
        return False
    table, size, count = _HEADER.unpack_from(head)
    return length >= table + size * count


def drop_torn_libraries(cache: Path | None = None) -> list[Path]:
    """Remove the truncated libraries of ``torch.compile``'s cache and name them; they are compiled again when they are asked for.

    A process killed while the linker writes leaves half a file under the name of a whole one, and every later process that finds it
    dies on loading it.
    """
    if cache is None:
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        cache = Path(cache_dir())
    torn = []
    for library in cache.rglob("*.so"):
        try:
            if time.time() - library.stat().st_mtime > _SETTLED and not whole(library):
                library.unlink()
                torn.append(library)
        except OSError:  # gone meanwhile, or another user's
            continue
    return torn
