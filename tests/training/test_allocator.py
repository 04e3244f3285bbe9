from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, resource
from unveil.training.allocator import keep_freed_memory
assert keep_freed_memory() is {kept}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def touch():
    blocks = [libc.malloc(8 << 20) for _ in range(16)]
    for b in blocks:
        ctypes.memset(b, 1, 8 << 20)
    for b in blocks:
        libc.free(b)
touch(); touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_that_was_freed_is_not_faulted_in_again() -> None:
    faults = int(subprocess.run([sys.executable, "-c", SCRIPT.format(kept=True)], capture_output=True, text=True, check=True).stdout)
    left = SCRIPT.replace("assert keep_freed_memory() is {kept}", "")
    without = int(subprocess.run([sys.executable, "-c", left], capture_output=True, text=True, check=True).stdout)
    assert faults < 100 < without
