"""One update of the weights: the loss of a step over micro-batches and ranks, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unveil.config import Recipe
from unveil.family import Family, Noise
from unveil.training.counting import Counters
from unveil.training.determinism import seed_micro_batch
from unveil.training.guard import Guard
from unveil.training.metrics import Window
from unveil.training.optimizer import Optimizer
from unveil.training.parallel import World


class Update:
    """The loss of a step is the sum over terms of ``weight * sum / denominator``, both over all micro-batches of all ranks. So the
    denominators are added up before any backward pass, and however a step is cut into packs and ranks, the gradient is the same.

    Nothing in it waits for the device.
    """

    def __init__(
        self, family: Family, model: nn.Module, optimizer: Optimizer, guard: Guard, window: Window, recipe: Recipe, world: World
    ) -> None:
        self.family, self.model, self.optimizer, self.guard, self.window = family, model, optimizer, guard, window
        self.recipe, self.world = recipe, world
        self.counters = Counters(model, world)
        self.device = next(model.parameters()).device

    def __call__(self, micro: Sequence[tuple[Any, Noise]], step: int, tokens: int, multiplier: float) -> int:
        """Update on this rank's micro-batches, at ``multiplier`` times the learning rates; returns the tokens of all ranks.

        ``step`` and ``tokens`` are what the run had done before. An update whose loss or gradient is not finite changes nothing.
        """
        denominators, count = self._denominators(micro)
        self.optimizer.zero_grad()
        losses: list[Tensor] = []
        sums: dict[str, list[Tensor]] = {}
        for i, (batch, noise) in enumerate(micro):
            seed_micro_batch(self.recipe.seed, step, i * self.world.size + self.world.rank)
            terms = self.family.loss(self.model, batch.to(self.device), {name: t.to(self.device) for name, t in noise.items()})
            # a denominator of 0 says that there is nothing of the term in the step, as a bucket of times may have nothing
            shares = [t.weight * t.sum / denominators[name] for name, t in terms.items() if t.weight and denominators[name]]
            if shares:
                loss = torch.stack(shares).sum()
                loss.backward()
            losses.append(loss.detach() if shares else torch.zeros((), device=self.device))
            for name, term in terms.items():
                sums.setdefault(name, []).append(term.sum.detach())

        total = self.world.sum_gradients(self.optimizer.parameters, torch.stack(losses).sum())
        gradients = [p.grad for p in self.optimizer.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if clip := self.recipe.optimizer.clip:
            torch._foreach_mul_(gradients, (clip / (norm + 1e-6)).clamp(max=1.0))
        ok = self.guard.judge(step + 1, tokens + count, total, norm, losses, [batch.sample_ids_N for batch, _ in micro])
        self.window.add(ok, norm, sums, denominators)
        self.optimizer.step(multiplier, ok)
        self.counters.after_step(ok)
        return count

    def _denominators(self, micro: Sequence[tuple[Any, Noise]]) -> tuple[dict[str, float], int]:
        """Every term's denominator over the step, and its tokens."""
        own: dict[str, float] = {"": 0.0}  # the tokens travel with the denominators
        for batch, noise in micro:
            own[""] += batch.size
            for name, value in self.family.targets(batch, noise).items():
                own[name] = own.get(name, 0.0) + value
        total = self.world.sum(own)
        count = int(total.pop(""))
        return total, count
