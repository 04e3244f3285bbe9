"""The one size of all benchmarks, for both sides; our network, our training step, and the machine's limit for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measure import Block, rate
from unveil.autoregressive.family import Autoregressive
from unveil.config import AutoregressiveRecipe, NextTokenConfig, NextTokenSamplerConfig, TransformerConfig
from unveil.environment import device
from unveil.family import Noise
from unveil.nn.packed import Packed
from unveil.text.vocabulary import Vocabulary
from unveil.training import precision
from unveil.training.budget import flops
from unveil.training.determinism import deterministic
from unveil.training.guard import Guard
from unveil.training.metrics import Window
from unveil.training.optimizer import Optimizer
from unveil.training.parallel import World
from unveil.training.update import Update

MODEL = TransformerConfig(width=256, depth=6, heads=4, hidden=704, tie=False)
VOCABULARY = 4096


def vocabulary(size: int) -> Vocabulary:
    """The last six ids are special, as in every tokenizer of ours."""
    return Vocabulary(size, *range(size - 6, size))


def family(model: TransformerConfig, size: int) -> Autoregressive:
    """Next-token training and greedy decoding."""
    return Autoregressive(vocabulary(size), model, NextTokenConfig(), NextTokenSamplerConfig(temperature=0.0))


def build(model: TransformerConfig, size: int) -> Any:
    """Our network, freshly initialised, computing in the dtype that the trainer's probe chooses here."""
    return built(family(model, size))


def built(kind: Any) -> Any:
    """The same of any family."""
    torch.manual_seed(0)
    network = kind.build().to(device())
    precision.apply(network, precision.compute_dtype("auto", device()))
    return network


def trainer(model: TransformerConfig, size: int, compiled: bool, kind: Any = None, noise: Noise | None = None) -> Callable[[Packed], None]:
    """A whole step on one pack, as ``unveil train`` does it: loss, backward, clip at 1, guard, fused AdamW, deterministic kernels.

    Of another family than ``family``, where ``kind`` and what the loader drew for the pack are given.
    """
    network, world = build(model, size) if kind is None else built(kind), World()
    recipe = AutoregressiveRecipe(model=model)
    guard = Guard(world)
    update = Update(kind or family(model, size), network, Optimizer(network, recipe.optimizer), guard, Window(), recipe, world)
    if compiled:
        network.compile_blocks()
    network.train()
    done = 0

    def step(batch: Packed) -> None:
        nonlocal done
        with deterministic(device()):
            update([(batch, noise or {})], done, 0, 1.0)
            guard.read(late=1)
        done += 1

    return step


def block(step: Callable[[Packed], None], batches: list[Packed], amount: float, repeats: int = 1) -> Block:
    """A block that steps through the batches, which hold ``amount`` useful tokens together."""

    def once() -> None:
        for batch in batches:
            step(batch)

    return lambda: rate(once, amount, repeats)


def undisturbed(probe: Callable[[], float]) -> float:
    """The highest of several measurements of the machine by ``training.precision``, each a fraction of a second that a neighbour may
    spoil; its cache is for one process that trains."""
    found = []
    for _ in range(3):
        precision.matmul_rate.cache_clear()
        found.append(probe())
    return max(found)


def floor(model: TransformerConfig, size: int, batch: Packed) -> float:
    """Tokens per second of a training step that does nothing but its FLOPs, at the best matrix product measured here."""
    peak = undisturbed(lambda: max(precision.peak_flops(dtype, device()) for dtype in (torch.float32, torch.bfloat16)))
    return peak / flops(build(model, size), batch)
