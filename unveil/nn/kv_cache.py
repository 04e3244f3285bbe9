"""Keys and values of what has been read, one length per sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

GROWTH = 128
"""Capacity grows by at least this many tokens at a time."""


@dataclass
class KVCache:
    """For each layer ``[B, G, C, E]`` keys and values; row b holds its first ``lengths[b]`` entries. Latent attention keeps one entry
    per token as its key, and values of width 0."""

    keys: list[Tensor]
    values: list[Tensor]
    lengths: list[int]

    @staticmethod
    def empty(
        layers: int, rows: int, heads: int, capacity: int, widths: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> KVCache:
        """``widths``: E of the keys and of the values."""
        shapes = [(rows, heads, capacity, width) for width in widths]
        keys, values = ([torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)] for shape in shapes)
        return KVCache(keys, values, [0] * rows)

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[2]

    def reserve(self, length: int) -> None:
        """Make room for ``length`` tokens per row."""
        if length > self.capacity:
            self._resize(max(length, self.capacity + GROWTH, self.capacity * 3 // 2))

    def first(self, length: int) -> tuple[list[Tensor], list[Tensor]]:
        """Views of the first ``length`` keys and values of every layer."""
        return [k[:, :, :length] for k in self.keys], [v[:, :, :length] for v in self.values]

    def write(self, layer: int, row: int, keys_TGE: Tensor, values_TGE: Tensor) -> None:
        """Fill an empty row with a sequence's keys and values; ``lengths`` is the caller's to set, once per pass over the layers."""
        self.keys[layer][row, :, : len(keys_TGE)] = keys_TGE.transpose(0, 1)
        self.values[layer][row, :, : len(values_TGE)] = values_TGE.transpose(0, 1)

    def cut(self, lengths: Sequence[int]) -> None:
        """Row b forgets what it holds beyond its first ``lengths[b]`` entries. Raises ValueError where it holds fewer."""
        if len(lengths) != len(self.lengths) or any(new > old for new, old in zip(lengths, self.lengths, strict=True)):
            raise ValueError(f"rows of {self.lengths} entries cannot be cut to {list(lengths)}")
        self.lengths = list(lengths)

    def select(self, rows: Sequence[int]) -> KVCache:
        """A cache of these rows, in this order; their capacity is kept, so that they go on without growing at once."""
        index = torch.tensor(list(rows), dtype=torch.int64, device=self.keys[0].device)
        return KVCache([k[index] for k in self.keys], [v[index] for v in self.values], [self.lengths[r] for r in rows])

    def join(self, other: KVCache) -> KVCache:
        """A cache of this one's rows followed by the other's."""
        capacity = max(self.capacity, other.capacity)
        for cache in (self, other):
            if cache.capacity < capacity:
                cache._resize(capacity)
        keys = [torch.cat(pair) for pair in zip(self.keys, other.keys, strict=True)]
        values = [torch.cat(pair) for pair in zip(self.values, other.values, strict=True)]
        return KVCache(keys, values, self.lengths + other.lengths)

    def _resize(self, capacity: int) -> None:
        extra = (0, 0, 0, capacity - self.capacity)
        self.keys, self.values = [F.pad(k, extra) for k in self.keys], [F.pad(v, extra) for v in self.values]
