"""What is minimised: cross-entropy of the present and of the chunks ahead, each a term with its own denominator (OadTR, eq. 9)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unveil.data.clips import NONE, Clips
from unveil.family import Term
from unveil.streams.detector import Logits, scored


def horizon_name(k: int) -> str:
    """The measured term of the k-th chunk ahead, from 1."""
    return f"future {k}"


@dataclass(frozen=True)
class StreamObjective:
    """CE(present) / rows + ``future_weight`` x CE(future) / targets, in nats.

    What has no class, and what is of an ignored one, counts nowhere; ignored classes stand outside the softmax, so they are never trained.
    """

    horizon: int
    future_weight: float
    ignored: tuple[int, ...] = ()

    def targets(self, batch: Clips) -> dict[str, float]:
        """Denominators: of ``present`` and ``future`` the classes that count, and of each horizon its own."""
        present_N, future_NK = self._counted(batch.present_N), self._counted(self._ahead(batch))
        each = (future_NK != NONE).sum(0).tolist()
        ahead = {"future": float(sum(each))} if self.horizon else {}
        return {"present": float((present_N != NONE).sum())} | ahead | {horizon_name(k + 1): float(n) for k, n in enumerate(each)}

    def loss(self, model: Any, batch: Clips) -> dict[str, Term]:
        """The terms, for a model that maps ``Clips`` to ``Logits``; each horizon's is measured beside ``present`` and ``future``."""
        logits: Logits = model(batch)
        present = self._losses(logits.present_NC, batch.present_N).sum()
        future_NK = self._losses(logits.future_NKC, self._ahead(batch))
        measured = {horizon_name(k + 1): Term(part, 0.0) for k, part in enumerate(future_NK.detach().sum(0).unbind())}
        ahead = {"future": Term(future_NK.sum(), self.future_weight)} if self.horizon else {}
        return {"present": Term(present)} | ahead | measured

    def log_likelihood(self, logits: Logits, batch: Clips) -> Tensor:
        """log p of the present's class, ``[N]`` in nats; 0 where it does not count."""
        return -self._losses(logits.present_NC, batch.present_N)

    def _losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        wide = scored(logits, self.ignored)
        flat = F.cross_entropy(wide.flatten(0, -2), self._counted(targets).flatten(), ignore_index=NONE, reduction="none")
        return flat.view(targets.shape)

    def _counted(self, targets: Tensor) -> Tensor:
        """Targets, ``NONE`` in the place of ignored classes."""
        ignored = torch.tensor(self.ignored, dtype=targets.dtype, device=targets.device)
        return torch.where(torch.isin(targets, ignored), NONE, targets)

    def _ahead(self, batch: Clips) -> Tensor:
        """The chunks ahead that the network tells. Raises ValueError where the batch has fewer."""
        if batch.future_NK.shape[1] < self.horizon:
            raise ValueError(f"{batch.future_NK.shape[1]} chunks ahead in the batch, the network tells {self.horizon}")
        return batch.future_NK[:, : self.horizon]


def curve(metrics: Mapping[str, float], horizon: int, prefix: str = "train/") -> list[float]:
    """Cross-entropy of the present and of each chunk ahead in a row of metrics, nan where there was none."""
    names = ["present", *(horizon_name(k + 1) for k in range(horizon))]
    return [metrics.get(prefix + name, float("nan")) for name in names]
