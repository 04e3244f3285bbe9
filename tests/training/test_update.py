from __future__ import annotations

from typing import Any

import torch

from tests.training.toy import ToyFamily, ToyLoader, network, recipe
from unveil.config import OptimizerConfig
from unveil.nn.packed import Packed
from unveil.training.guard import Guard
from unveil.training.metrics import Window
from unveil.training.optimizer import Optimizer
from unveil.training.parallel import World
from unveil.training.update import Update

ALONE = World()


def updated(micro: list[Any], clip: float = 0.0) -> tuple[dict[str, torch.Tensor], dict[str, float], int]:
    """Gradients and the row after one update in float64."""
    model = network().double()
    model.compute_dtype = torch.float64
    window = Window()
    optimizer = Optimizer(model, OptimizerConfig(clip=clip))
    update = Update(ToyFamily(), model, optimizer, Guard(ALONE), window, recipe({"clip": clip}), ALONE)  # type: ignore[arg-type]
    tokens = update(micro, 0, 0, 1.0)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, window.row(ALONE), tokens


def test_accumulated_ragged_micro_batches_equal_one_large_batch() -> None:
    loader = ToyLoader()
    micro = [(batch, {"weights_T": noise["weights_T"].double()}) for batch, noise in (next(loader) for _ in range(3))]
    sequences = [s for batch, _ in micro for s in batch.split()]
    # the toy's target wraps around its pack: give the large batch the same targets by the same order
    weights = torch.cat([noise["weights_T"] for _, noise in micro])
    ends = torch.tensor([len(batch.tokens_T) for batch, _ in micro]).cumsum(0) - 1
    weights[ends] = 0.0
    for (batch, noise), part in zip(micro, weights.split([len(batch.tokens_T) for batch, _ in micro]), strict=True):
        noise["weights_T"] = part
        assert part[-1] == 0 and len(part) == len(batch.tokens_T)
    small, row, tokens = updated(micro)
    large, whole, count = updated([(Packed.of(sequences), {"weights_T": weights})])
    assert tokens == count == len(weights)
    assert small.keys() == large.keys()
    for name in small:
        torch.testing.assert_close(small[name], large[name], rtol=1e-10, atol=1e-14)
    for name in ("grad_norm", "train/nll", "train/spread"):
        assert abs(row[name] - whole[name]) < 1e-10 * abs(whole[name])
    assert "train/empty" not in row


def test_clipping_scales_the_gradient_to_the_largest_norm() -> None:
    micro = [next(ToyLoader())]
    free, row, _ = updated(micro)
    clip = row["grad_norm"] / 4
    clipped, again, _ = updated(micro, clip)
    assert again["grad_norm"] == row["grad_norm"]
    norm = torch.stack([g.norm() for g in clipped.values()]).norm()
    assert abs(float(norm) / clip - 1) < 1e-4
    unclipped, _, _ = updated(micro, 100 * row["grad_norm"])
    assert all(torch.equal(unclipped[name], free[name]) for name in free)


def test_dropout_knows_its_place_and_not_its_history() -> None:
    """The same micro-batch at the same step drops the same units, whatever was drawn before."""
    gradients = []
    for history, step in ((1, 4), (2, 4), (1, 5)):
        model = network(dropout=0.5)
        optimizer = Optimizer(model, OptimizerConfig(clip=0.0))
        update = Update(ToyFamily(), model, optimizer, Guard(ALONE), Window(), recipe(), ALONE)  # type: ignore[arg-type]
        torch.manual_seed(history)
        update([next(ToyLoader())], step, 0, 1.0)
        gradients.append(model.embedding.weight.grad)
    assert torch.equal(gradients[0], gradients[1])
    assert not torch.equal(gradients[0], gradients[2])
