"""Ranks of a data-parallel run, and the few things they tell one another."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET = 1 << 23
"""Numbers of a gradient that travel together: large enough to hide latency, small enough not to double the memory."""


@dataclass(frozen=True)
class World:
    """This process's ``rank`` among ``size``. Alone, every method returns what it was given and costs nothing."""

    rank: int = 0
    size: int = 1

    @staticmethod
    def join() -> World:
        """The world that torchrun's environment describes; joins its process group the first time (NCCL on CUDA, else gloo)."""
        if not dist.is_initialized():
            if int(os.environ.get("WORLD_SIZE", "1")) == 1:
                return World()
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return World(dist.get_rank(), dist.get_world_size())

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """The values summed over ranks in float64; every rank must pass the same names."""
        if self.size == 1:
            return dict(values)
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        total = torch.tensor([values[name] for name in sorted(values)], dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return dict(zip(sorted(values), total.tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return self.sum({"flag": float(flag)})["flag"] > 0

    def gather(self, values: Sequence[Any]) -> list[Any]:
        """The values of all ranks, in rank order."""
        if self.size == 1:
            return list(values)
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, list(values))
        return [value for part in parts for value in part]

    def sum_gradients(self, parameters: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
        """Sum every ``grad`` over ranks in place, and return the sum of ``loss`` (a scalar). One without a gradient counts as 0."""
        if self.size == 1:
            return loss
        loss = loss.clone()
        dist.all_reduce(loss)
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        bucket: list[Tensor] = []
        for i, p in enumerate(parameters):
            assert p.grad is not None
            bucket.append(p.grad)
            last = i + 1 == len(parameters) or parameters[i + 1].dtype != p.dtype
            if last or sum(g.numel() for g in bucket) >= BUCKET:
                flat = torch.cat([g.reshape(-1) for g in bucket])
                dist.all_reduce(flat)
                for g, part in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
                    g.copy_(part.view_as(g))
                bucket = []
        return loss

    def sum_tensors(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each tensor summed over ranks, which pass the same shapes of one dtype in the same order; they travel together."""
        if self.size == 1 or not tensors:
            return list(tensors)
        flat = torch.cat([t.reshape(-1) for t in tensors])
        dist.all_reduce(flat)
        return [part.view_as(t) for t, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True)]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()
