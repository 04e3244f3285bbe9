"""What modules count in training: made known to all ranks after every update, acted on, and written down.

A router counts how many choices each expert got; after the update it moves its bias by the counts of the whole step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from unveil.training.parallel import World


@runtime_checkable
class Counting(Protocol):
    counts: Tensor
    """On this rank, int64, since the last ``after_step``."""

    def after_step(self, counts: Tensor, ok: Tensor) -> None:
        """Act on the counts of the step over all ranks where ``ok`` (its update was made, a boolean on the device); count anew."""


class Counters:
    """All such modules of a network, by name. Nothing here waits for the device but ``row`` and ``state_dict``."""

    def __init__(self, model: nn.Module, world: World) -> None:
        self._modules = {name: m for name, m in model.named_modules() if isinstance(m, Counting)}
        self._world = world
        self._totals = [torch.zeros_like(m.counts) for m in self._modules.values()]
        """Over the steps since the last row and all ranks; steps whose update was masked stay out."""

    @torch.no_grad()
    def after_step(self, ok: Tensor) -> None:
        modules = list(self._modules.values())
        for module, total, counts in zip(modules, self._totals, self._world.sum_tensors([m.counts for m in modules]), strict=True):
            total += counts * ok
            module.after_step(counts, ok)

    def row(self) -> dict[str, Any]:
        """Of the load since the last row: the violation ``max / mean - 1`` of each module, the highest and the mean of them, the share of
        choices that were dropped (none ever is: there is no capacity), and the counts themselves."""
        loads = {name: counts for name, counts in self.state_dict().items() if sum(counts)}
        for total in self._totals:
            total.zero_()
        if not loads:
            return {}
        violations = {name: max(counts) * len(counts) / sum(counts) - 1 for name, counts in loads.items()}
        highest, mean = max(violations.values()), sum(violations.values()) / len(violations)
        each = {f"load/violation {name}": value for name, value in violations.items()}
        return {"load/violation": highest, "load/mean_violation": mean, "load/dropped": 0.0, **each, "load/counts": list(loads.values())}

    def state_dict(self) -> dict[str, list[int]]:
        return {name: total.tolist() for name, total in zip(self._modules, self._totals, strict=True)}

    def load_state_dict(self, state: Mapping[str, Sequence[int]]) -> None:
        """The inverse; what it does not name has counted nothing."""
        for name, total in zip(self._modules, self._totals, strict=True):
            total.copy_(torch.tensor(state.get(name, [0] * len(total))))
