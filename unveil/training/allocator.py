"""Freed memory stays with the process: the next step asks for the same sizes again."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # the names of glibc's <malloc.h>
_LARGEST_MMAP_THRESHOLD = 32 << 20  # more is refused


def keep_freed_memory() -> bool:
    """Tell glibc not to hand freed blocks back to the kernel; true where that was done (Linux with glibc), false elsewhere.

    A training step frees some hundred megabytes of activations and asks for them again; every page that went back is faulted in and
    zeroed anew. It acts on the whole process, so the trainer asks for it and a library call does not.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))
