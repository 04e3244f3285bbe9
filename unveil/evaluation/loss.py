"""The loss of any family on held-out data, with noise that is the same at every evaluation, so that only the network differs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from unveil.data.noise import generator
from unveil.family import Family, Noise


def held_out_loss(family: Family, model: nn.Module, batches: Iterable[Any], draws: int = 1, seed: int = 0) -> dict[str, float]:
    """The trained and the measured terms by name: sums over the batches and draws over denominators; empty ones are left out.

    Args:
        batches: what the family's loss takes; sample ids count through them.
        draws: of the noise, per sample.
    """

    def noised() -> Iterator[tuple[Any, Noise]]:
        for batch in batches:
            for draw in range(draws):
                each = [family.draw(i, draw, 1, generator(seed, draw, i, "held-out loss")) for i in batch.sample_ids_N.tolist()]
                yield batch, {name: torch.from_numpy(np.concatenate([one[name] for one in each])) for name in each[0]}

    return averaged(family, model, noised())


def averaged(family: Family, model: nn.Module, batches: Iterable[tuple[Any, Noise]]) -> dict[str, float]:
    """The same over batches that come with their noise."""
    sums: dict[str, float] = {}
    denominators: dict[str, float] = {}
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        for batch, noise in batches:
            for name, value in family.targets(batch, noise).items():
                denominators[name] = denominators.get(name, 0.0) + value
            with torch.no_grad():
                terms = family.loss(model, batch.to(device), {name: value.to(device) for name, value in noise.items()})
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + float(term.sum)
    finally:
        model.train(was_training)
    return {name: sums[name] / value for name, value in denominators.items() if value and name in sums}
