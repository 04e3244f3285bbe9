"""What a sampler keeps of the rows it has read, so that a step only says what is new.

B rows, D width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from unveil.nn.kv_cache import KVCache
from unveil.nn.packed import Packed


class Context(Protocol):
    def append(self, tokens_B: Tensor) -> Tensor:
        """Read one more token in every row; the hidden states ``[B, D]`` of those tokens."""

    def cost(self, given: int, new: int) -> tuple[int, int]:
        """Of a row with ``new`` tokens after ``given``: tokens computed to draw them, and tokens attended to out of the cache."""

    def select(self, rows: Sequence[int]) -> Context: ...
    def join(self, other: Any) -> Context: ...


@dataclass(frozen=True)
class Cached:
    """Keys and values are kept: one token per row is computed in a step."""

    model: Any
    cache: KVCache

    def append(self, tokens_B: Tensor) -> Tensor:
        return self.model.decode(tokens_B, self.cache)

    def cost(self, given: int, new: int) -> tuple[int, int]:
        return given + new - 1, sum(range(given, given + new - 1))

    def select(self, rows: Sequence[int]) -> Cached:
        return Cached(self.model, self.cache.select(rows))

    def join(self, other: Cached) -> Cached:
        return Cached(self.model, self.cache.join(other.cache))


@dataclass(frozen=True)
class Reread:
    """Only the tokens are kept and a step computes every row anew: for a network without a cache, and the plain twin of ``Cached``."""

    model: Any
    rows: list[Tensor]

    def append(self, tokens_B: Tensor) -> Tensor:
        self.rows[:] = [torch.cat([row, token]) for row, token in zip(self.rows, tokens_B[:, None], strict=True)]
        return self.last()

    def cost(self, given: int, new: int) -> tuple[int, int]:
        return sum(range(given, given + new)), 0

    def last(self) -> Tensor:
        batch = Packed.of(self.rows)
        return self.model(batch)[_last(batch)]

    def select(self, rows: Sequence[int]) -> Reread:
        return Reread(self.model, [self.rows[r] for r in rows])

    def join(self, other: Reread) -> Reread:
        return Reread(self.model, self.rows + other.rows)


def read(model: Any, prompts: Sequence[np.ndarray[Any, Any]], capacity: int, device: torch.device) -> tuple[Context, Tensor]:
    """Read all prompts in one pack, without padding; the hidden states ``[B, D]`` of their last tokens.

    ``capacity`` is the length that a row is expected to reach.
    """
    rows = [torch.as_tensor(p, dtype=torch.int64, device=device) for p in prompts]
    if not hasattr(model, "prefill"):
        context = Reread(model, rows)
        return context, context.last()
    batch = Packed.of(rows)
    cache = model.new_cache(len(rows), capacity)
    hidden_TD = model.prefill(batch, cache, range(len(rows)))
    return Cached(model, cache), hidden_TD[_last(batch)]


def _last(batch: Packed) -> Tensor:
    return batch.cu_seqlens[1:].long() - 1
