"""Moving averages of the weights, for evaluation and export."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unveil.training.weights import assign


def warm(decay: float) -> Callable[[int], float] | None:
    """An exponential decay that grows to ``decay`` over the first updates, ``min(decay, n / (9 + n))``, so that the first weights do not
    weigh on a short run; None, no average, for 0.

    Raises ValueError outside [0, 1).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay {decay} is not in [0, 1)")
    return (lambda update: min(decay, update / (9 + update))) if decay else None


class Average:
    """The average ``a <- d a + (1 - d) w`` of every parameter that is trained (Polyak and Juditsky 1992).

    Args:
        model: its parameters are followed; they keep their storage.
        decay: d of update n = 1, 2, ...; None keeps no average, and the weights are the model's own.
    """

    def __init__(self, model: nn.Module, decay: Callable[[int], float] | None) -> None:
        self.decay, self.updates = decay, 0
        self._live = {name: p for name, p in model.named_parameters() if p.requires_grad} if decay else {}
        self._mean = {name: p.detach().clone() for name, p in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Follow the parameters as they are now."""
        self.updates += 1
        if self.decay:
            torch._foreach_lerp_(list(self._mean.values()), list(self._live.values()), 1 - self.decay(self.updates))

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the model's parameters are the averaged ones; they must not be trained there."""
        # the storages change hands rather than their contents: nothing is copied, and views of a parameter's storage (the slices
        # of a fused projection that Muon updates) are the trained weights again on the way out
        trained = {name: p.data for name, p in self._live.items()}
        for name, p in self._live.items():
            p.data = self._mean[name]
        try:
            yield
        finally:
            for name, p in self._live.items():
                p.data = trained[name]

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._mean)

    def load_state_dict(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Raises UserError for a missing, extra or misshapen weight."""
        assign(state, self._mean, "averaged weights of the checkpoint")
        self.updates = updates
