"""What this machine computes fast: a probe of its matrix products, and the dtype that follows from it."""

from __future__ import annotations

import time
from functools import cache
from typing import Literal

import torch
from torch import nn

from unveil.errors import UserError
from unveil.nn import fp8, fp8_grouped
from unveil.nn.linear import Linear
from unveil.nn.moe import Stack

_SWEEP = ((512, 512, 512), (1024, 1024, 1024), (2048, 512, 2048), (2048, 2048, 2048))
"""(m, n, k). The peak lies at different shapes on different machines."""
_PATIENCE = 0.15
"""Seconds for one shape."""


@cache
def matmul_rate(m: int, n: int, k: int, dtype: torch.dtype, device: str, threads: int) -> float:
    """FLOP/s of ``[m, k] @ [k, n]``, the best of what fits into the patience; cached for the process.

    ``threads`` is the number of threads it runs with now: another number is another measurement.
    """
    a, b = (torch.ones(shape, dtype=dtype, device=device) for shape in ((m, k), (k, n)))
    best, spent = float("inf"), 0.0
    for attempt in range(50):
        seconds = _once(a, b)
        spent += seconds
        best = min(best, seconds) if attempt else best  # the first one allocates and chooses kernels
        if attempt and spent > _PATIENCE:
            break
    return 2 * m * n * k / best


def _once(a: torch.Tensor, b: torch.Tensor) -> float:
    start = time.perf_counter()
    a @ b
    if a.device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def compute_dtype(wanted: Literal["auto", "bfloat16", "float32", "float64"], device: torch.device) -> torch.dtype:
    """The dtype of activations: as wanted, or by ``auto`` the faster of float32 and bfloat16. Never float16, whose range needs a
    loss scale, and which no CPU multiplies faster than bfloat16."""
    if wanted != "auto":
        return {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}[wanted]
    single, half = (matmul_rate(1024, 1024, 1024, d, str(device), torch.get_num_threads()) for d in (torch.float32, torch.bfloat16))
    # casts and the float32 islands (norms, softmax, loss) eat a small advantage
    return torch.bfloat16 if half > 1.5 * single else torch.float32


def peak_flops(dtype: torch.dtype, device: torch.device) -> float:
    """The best FLOP/s over a sweep of matrix shapes: what utilisation is measured against."""
    return max(matmul_rate(*shape, dtype, str(device), torch.get_num_threads()) for shape in _SWEEP)


def apply(model: nn.Module, dtype: torch.dtype) -> None:
    """Let ``model`` compute in ``dtype``: sets its ``compute_dtype``, which casts at use, if it has one.

    Master weights stay float32; for float64 they become float64 too.
    """
    if dtype == torch.float64:
        model.double()
    if hasattr(model, "compute_dtype"):
        setattr(model, "compute_dtype", dtype)  # noqa: B010  (nn.Module types its attributes as tensors)


def train_in_fp8(model: nn.Module) -> None:
    """Let the matrices of the blocks of ``model`` be multiplied in FP8 in training (DeepSeek-V3, section 3.3). What the paper keeps in
    higher precision stays: embedding, head, norms, gates, attention between its projections, master weights, sums.

    Raises UserError for a network without such matrices.
    """
    found = [*_inner(model, "blocks"), *_inner(model, "mtp")]
    if not found:
        raise UserError("training.fp8", "is for transformers of text, this is another network", "leave it out")
    for name, module in found:
        if isinstance(module, Stack):
            module.low = fp8_grouped.grouped
        elif isinstance(module, Linear):
            module.low = fp8.linear_after_attention if name.endswith("attention.out") else fp8.linear


def _inner(model: nn.Module, part: str) -> list[tuple[str, nn.Module]]:
    """The matrices of a part of the model that has such blocks."""
    blocks = getattr(model, part, nn.Module())
    return [(name, module) for name, module in blocks.named_modules() if isinstance(module, Linear | Stack)]
