"""Sequences end to end: the one form in which text reaches a network.

Shape letters, here and in every file of ``nn``: T tokens of a pack, N sequences, D width, H query heads, G key-value heads,
E width of a head, F feed-forward width, V vocabulary, B rows of a decoding batch, C capacity of a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """N sequences end to end.

    ``cu_seqlens`` holds the N + 1 boundaries, int32, and may repeat its last entry so that its shape stays the same from pack to
    pack. ``positions`` restart at 0 in every sequence. ``sample_ids`` are global sample indices, one per sequence.
    """

    tokens_T: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    positions_T: Tensor
    sample_ids_N: Tensor

    unit: ClassVar[str] = "tok"

    @staticmethod
    def of(sequences: Sequence[Tensor], sample_ids: Sequence[int] | None = None) -> Packed:
        """Pack 1-D integer tensors in the order given. Raises ValueError for an empty list or an empty sequence."""
        if not sequences or any(len(s) == 0 for s in sequences):
            raise ValueError("a pack needs at least one sequence and no empty ones")
        device = sequences[0].device
        lengths = torch.tensor([len(s) for s in sequences])
        cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        positions_T = torch.arange(int(cu_seqlens[-1])) - cu_seqlens[:-1].repeat_interleave(lengths)
        ids = torch.arange(len(sequences)) if sample_ids is None else torch.tensor(list(sample_ids), dtype=torch.int64)
        return Packed(
            torch.cat(list(sequences)).long(), cu_seqlens.int().to(device), int(lengths.max()), positions_T.to(device), ids.to(device)
        )

    @property
    def size(self) -> int:
        """What the trainer counts: tokens."""
        return len(self.tokens_T)

    @property
    def lengths(self) -> list[int]:
        """Lengths of the sequences, on the host."""
        bounds = self.cu_seqlens.tolist()
        return [b - a for a, b in pairwise(bounds) if b > a]

    @property
    def sequence_T(self) -> Tensor:
        """Which sequence each token belongs to, int64 ``[T]``."""
        lengths = (self.cu_seqlens[1:] - self.cu_seqlens[:-1]).long()
        index = torch.arange(len(lengths), device=lengths.device)
        return torch.repeat_interleave(index, lengths, output_size=self.tokens_T.shape[0])

    def split(self, values_T: Tensor | None = None) -> list[Tensor]:
        """One tensor per sequence, of the tokens or of any per-token values."""
        return list(torch.split(self.tokens_T if values_T is None else values_T, self.lengths))

    def with_tokens(self, tokens_T: Tensor) -> Packed:
        """The same layout with other tokens (a noised canvas, say)."""
        return replace(self, tokens_T=tokens_T)

    def to(self, device: torch.device | str) -> Packed:
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "max_seqlen"}
        return replace(self, **moved)
