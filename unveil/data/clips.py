"""Batches of histories: the one form in which streams reach a family. N windows, T chunks of all windows, F features, K chunks ahead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

NONE = -1
"""The class of a chunk that does not exist or is not scored."""


@dataclass(frozen=True)
class Clips:
    """N windows end to end, each the chunks up to the present, the newest last; no padding, so a short history is a short sequence.

    ``features_TF`` float32; ``cu_seqlens`` the N + 1 boundaries, int32; ``present_N`` the class of each window's last chunk and
    ``future_NK`` those of the chunks that follow it, int64, ``NONE`` where there is none to learn; ``sample_ids_N`` global sample indices.
    """

    features_TF: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    present_N: Tensor
    future_NK: Tensor
    sample_ids_N: Tensor

    unit: ClassVar[str] = "chunks"

    @staticmethod
    def of(windows: Sequence[Tensor], present: Tensor, future: Tensor, sample_ids: Sequence[int] | None = None) -> Clips:
        """Windows ``[n, F]`` in the order given. Raises ValueError for an empty list or an empty window."""
        if not windows or any(len(window) == 0 for window in windows):
            raise ValueError("a batch needs at least one window and no empty ones")
        lengths = torch.tensor([0, *(len(window) for window in windows)])
        ids = torch.arange(len(windows)) if sample_ids is None else torch.tensor(list(sample_ids), dtype=torch.int64)
        return Clips(torch.cat(list(windows)), lengths.cumsum(0).int(), int(lengths.max()), present, future, ids)

    @property
    def size(self) -> int:
        """What the trainer counts: chunks."""
        return len(self.features_TF)

    @property
    def lengths(self) -> list[int]:
        """Chunks of each window, on the host."""
        return [b - a for a, b in pairwise(self.cu_seqlens.tolist())]

    def split(self) -> list[Clips]:
        """One batch per window."""
        parts = enumerate(torch.split(self.features_TF, self.lengths))
        return [
            Clips(
                window,
                torch.tensor([0, len(window)], dtype=torch.int32, device=window.device),
                len(window),
                self.present_N[i : i + 1],
                self.future_NK[i : i + 1],
                self.sample_ids_N[i : i + 1],
            )
            for i, window in parts
        ]

    def to(self, device: torch.device | str) -> Clips:
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "max_seqlen"})
