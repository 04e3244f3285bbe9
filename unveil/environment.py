"""What a run was made with: versions and the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "pyarrow")


def environment() -> dict[str, Any]:
    """Versions, processor, threads, device, compiler: JSON-able, for ``environment.json`` and ``unveil doctor``."""
    return {
        "unveil": version(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "system": platform.platform(),
        "processor": processor(),
        "features": features(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "compiler": next((found for name in (os.environ.get("CXX", "c++"), "g++", "clang++") if (found := shutil.which(name))), "none"),
    }


def version() -> str:
    try:
        return importlib.metadata.version("unveil")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """The processor's name as it calls itself."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def features() -> list[str]:
    """Instruction sets that decide which dtype is fast."""
    flags = _cpuinfo("flags").split() or _cpuinfo("Features").split()
    return [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16", "sve") if name in flags]


def device() -> torch.device:
    """Where networks run: CUDA if it is there, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == key), "")
