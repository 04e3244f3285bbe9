from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from unveil.data.images import Images
from unveil.evaluation.loss import held_out_loss
from unveil.family import Term


class Toy:
    """The loss is u times the image's value; a second term has nothing in odd images."""

    def draw(self, sample_id: int, epoch: int, length: int, rng: np.random.Generator) -> dict[str, Any]:
        return {"u": rng.random(1)}

    def targets(self, batch: Images, noise: Any) -> dict[str, float]:
        return {"loss": float(batch.size), "even": float((batch.sample_ids_N % 2 == 0).sum()), "never": 0.0}

    def loss(self, model: nn.Module, batch: Images, noise: Any) -> dict[str, Term]:
        assert not torch.is_grad_enabled() and not model.training
        value = noise["u"] * batch.x_NCHW[:, 0, 0, 0]
        return {"loss": Term(value.sum()), "even": Term(value[batch.sample_ids_N % 2 == 0].sum(), 0.0), "never": Term(value.sum() * 0)}


def batches(size: int) -> list[Images]:
    x, ids = torch.arange(1.0, 8).view(7, 1, 1, 1), torch.arange(7)
    return [Images(a, i) for a, i in zip(x.split(size), ids.split(size), strict=True)]


def test_it_is_a_ratio_of_sums_whatever_the_batches_and_the_same_every_time() -> None:
    network = nn.Linear(1, 1)
    found = [held_out_loss(Toy(), network, batches(size), draws=3, seed=1) for size in (1, 3, 7)]  # type: ignore[arg-type]
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-6)
    assert found[0].keys() == {"loss", "even"} and network.training
    assert 1.0 < found[0]["loss"] < 3.5
    assert held_out_loss(Toy(), network, batches(7), draws=3, seed=2) != found[0]  # type: ignore[arg-type]
