"""What makes a run repeat itself bit for bit: deterministic kernels, seeds by place instead of history, the generator's state."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Inside, torch takes deterministic kernels; an operation without one fails on the CPU and warns elsewhere."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with a fixed workspace
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill: Any = torch.utils.deterministic  # a module whose class has the property, which mypy does not see
    fills = fill.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    fill.fill_uninitialized_memory = False  # a net for reads of uninitialised memory that costs a pass per tensor
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        fill.fill_uninitialized_memory = fills


def machine(world_size: int) -> dict[str, Any]:
    """What else the last bits depend on: a run continued under another of these is close, not identical."""
    return {"torch": str(torch.__version__), "threads": torch.get_num_threads(), "ranks": world_size}


def seed_micro_batch(seed: int, step: int, index: int) -> None:
    """Seed torch for what a network draws (dropout) from the run's seed, the step and the micro-batch's index over all ranks.

    So dropout needs no history: any micro-batch can be computed again alone.
    """
    torch.manual_seed(int(np.random.SeedSequence((seed, step, index)).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def capture() -> str:
    """The state of torch's default generator, the only one that anything here draws from without a seed of its own."""
    return base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode()


def restore(state: str) -> None:
    """The inverse of ``capture``."""
    torch.set_rng_state(torch.frombuffer(bytearray(base64.b64decode(state)), dtype=torch.uint8))
