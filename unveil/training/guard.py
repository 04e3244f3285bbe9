"""The guard against losses and gradients that are not finite."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.errors import UserError
from unveil.training.parallel import World

PATIENCE = 3
"""Masked updates in a row after which the run stops."""


class _Pending(NamedTuple):
    step: int
    tokens: int
    ok: Tensor
    finite: list[Tensor]
    sample_ids: list[Tensor]


class Skipped(NamedTuple):
    """An update that was masked, and the samples that are to blame: of the micro-batches whose own loss was not finite, or of the
    whole step if all losses were and only the gradient was not."""

    step: int
    tokens: int
    sample_ids: list[int]


class Guard:
    """Masks the update of a bad step by a flag on the device, and reads the flag one step late, when it costs no wait."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._pending: deque[_Pending] = deque()
        self.in_a_row = 0

    def judge(self, step: int, tokens: int, total: Tensor, norm: Tensor, losses: Sequence[Tensor], sample_ids: Sequence[Tensor]) -> Tensor:
        """Whether the update may happen, as a boolean scalar on the device.

        Args:
            step, tokens: that the run will have done with this update.
            total, norm: the step's loss and the norm of its gradient over all ranks.
            losses: this rank's share of the loss by micro-batch.
            sample_ids: the global sample indices of each micro-batch.
        """
        ok = torch.isfinite(total) & torch.isfinite(norm)
        self._pending.append(_Pending(step, tokens, ok, [torch.isfinite(loss) for loss in losses], list(sample_ids)))
        return ok

    def read(self, late: int) -> Skipped | None:
        """The oldest masked update not told yet, of those judged at least ``late`` steps ago; None if there is none."""
        while len(self._pending) > late:
            step, tokens, ok, finite, sample_ids = self._pending.popleft()
            if not ok:
                self.in_a_row += 1
                bad = [ids for good, ids in zip(finite, sample_ids, strict=True) if not good]
                named = self._world.gather([i for ids in bad for i in ids.tolist()])
                # all losses finite and only a gradient not: nobody can be singled out
                named = named or self._world.gather([i for ids in sample_ids for i in ids.tolist()])
                return Skipped(step, tokens, named)
            self.in_a_row = 0
        return None

    def clear(self, in_a_row: int) -> None:
        """Forget what was judged and not read; ``in_a_row`` updates before were masked."""
        self._pending.clear()
        self.in_a_row = in_a_row

    def stop_if_hopeless(self, skipped: Skipped, last_good: int | None) -> None:
        """Raise a UserError after three masked updates in a row. ``last_good`` is the step of the newest checkpoint."""
        if self.in_a_row >= PATIENCE:
            shown = ", ".join(map(str, skipped.sample_ids[:8])) + (", ..." if len(skipped.sample_ids) > 8 else "")
            kept = "no checkpoint was written yet" if last_good is None else f"the checkpoint of step {last_good} is intact"
            problem = f"not finite {PATIENCE} times in a row, last at step {skipped.step} with samples {shown}; {kept}"
            raise UserError("loss", problem, "lower optimizer.lr or look at those samples, then go on with --resume")
