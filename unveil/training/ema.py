"""An exponential moving average of the weights, for evaluation and export."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unveil.training.weights import assign


class Average:
    """The average ``a <- d a + (1 - d) w`` of every parameter (Polyak and Juditsky 1992), with ``d = min(decay, (1 + n) / (10 + n))``
    after n updates, so that the first weights do not weigh on a short run.

    Args:
        model: its parameters are followed; they keep their storage.
        decay: in [0, 1); 0 keeps no average, and ``weights`` are the model's own.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay {decay} is not in [0, 1)")
        self.decay, self.updates = decay, 0
        self._live = dict(model.named_parameters()) if decay else {}
        self._mean = {name: p.detach().clone() for name, p in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Follow the parameters as they are now."""
        if self._mean:
            decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
            torch._foreach_lerp_(list(self._mean.values()), list(self._live.values()), 1 - decay)
        self.updates += 1

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
