"""A small run that trains in milliseconds: ragged packs, a loss of several terms, and a process that can be killed."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from unveil.autoregressive.family import Autoregressive
from unveil.config import (
    ExpertsConfig,
    MaskedConfig,
    MaskedSamplerConfig,
    NextTokenConfig,
    NextTokenSamplerConfig,
    OptimizerConfig,
    Recipe,
    ScheduleConfig,
    SourceConfig,
    TextDataConfig,
    TokenizerConfig,
    TrainingConfig,
    TransformerConfig,
)
from unveil.data.loader import Loader
from unveil.data.shards import prepare
from unveil.discrete.family import Discrete
from unveil.family import Noise, Term
from unveil.nn.head import Head, cross_entropy
from unveil.nn.layout import Bidirectional
from unveil.nn.packed import Packed
from unveil.nn.transformer import Transformer
from unveil.text.vocabulary import Vocabulary
from unveil.training.loop import Trainer
from unveil.training.optimizer import Optimizer

VOCABULARY = 32


class ToyLoader:
    """Packs of ragged lengths; sample i is a function of i alone. Pack j goes to rank j % world."""

    def __init__(self, rank: int = 0, world: int = 1, bad: tuple[int, ...] = ()) -> None:
        self.pack, self.world, self.bad = rank, world, bad

    def __iter__(self) -> ToyLoader:
        return self

    def __next__(self) -> tuple[Packed, dict[str, torch.Tensor]]:
        rng = np.random.Generator(np.random.Philox(key=[7, self.pack]))
        lengths = rng.integers(3, 12, size=2 + self.pack % 3)
        # a token depends on the one before it: there is something to learn
        sequences = [torch.from_numpy((rng.integers(VOCABULARY) + 3 * np.arange(n)) % VOCABULARY) for n in lengths]
        batch = Packed.of(sequences, [10 * self.pack + i for i in range(len(sequences))])
        scale = np.nan if self.pack in self.bad else 1.0
        noise = {"weights_T": torch.from_numpy(scale * rng.random(int(lengths.sum()))).float()}
        self.pack += self.world
        return batch, noise

    def state_dict(self) -> dict[str, Any]:
        return {"pack": self.pack}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pack = state["pack"]


class ToyFamily:
    """Weighted cross-entropy of every token given the whole sequence, a second term per sequence, a measurement, and an empty bucket."""

    def targets(self, batch: Packed, noise: Noise) -> dict[str, float]:
        return {"nll": float(len(batch.tokens_T)), "spread": float(len(batch.sample_ids_N)), "count": 1.0, "empty": 0.0}

    def loss(self, model: nn.Module, batch: Packed, noise: Noise) -> dict[str, Term]:
        hidden_TD = model(batch)
        total, _ = model.head.reduce(hidden_TD, cross_entropy, noise["weights_T"], batch.tokens_T.roll(-1))
        spread = torch.stack([part.square().mean() for part in batch.split(hidden_TD)]).sum()
        return {"nll": Term(total), "spread": Term(spread, 0.01), "count": Term(total.new_ones(()), 0.0)}


def network(dropout: float = 0.0, depth: int = 1) -> Transformer:
    torch.manual_seed(0)
    return Transformer(TransformerConfig(width=32, depth=depth, heads=2, dropout=dropout), VOCABULARY, Bidirectional())


def recipe(optimizer: dict[str, Any] | None = None, **training: Any) -> Recipe:
    base = {"steps": 8, "log_every": 3, "dtype": "float32", "compile": "off", "threads": 1}
    return Recipe(
        seed=3,
        optimizer=OptimizerConfig(**(optimizer or {})),
        schedule=ScheduleConfig(warmup=0.25),
        training=TrainingConfig(**{**base, **training}),
    )


def evaluate(model: nn.Module) -> dict[str, float]:
    with torch.no_grad():
        return {"mean": float(model(Packed.of([torch.arange(5)])).mean())}


def trainer(directory: Path, run: Recipe, loader: Any = None, model: nn.Module | None = None, **options: Any) -> Trainer:
    return Trainer(ToyFamily(), model or network(), loader or ToyLoader(), run, directory, **{"console": False, **options})  # type: ignore[arg-type]


def expert_trainer(directory: Path, run: Recipe, loader: Any = None) -> Trainer:
    """Next tokens by a network whose second layer has experts."""
    experts = ExpertsConfig(routed=4, top_k=2, hidden=8, dense=1, bias_rate=0.01, balance=0.1)
    model = TransformerConfig(width=32, depth=2, heads=2, experts=experts)
    family = Autoregressive(Vocabulary(VOCABULARY, *range(26, 32)), model, NextTokenConfig(), NextTokenSamplerConfig())
    torch.manual_seed(0)
    return Trainer(family, family.build(), loader or ToyLoader(), run, directory, console=False)


def kill_in_step(step: int) -> None:
    """Make this process kill itself (SIGKILL) in the given step, counted from 1, after the backward pass and before the update."""
    whole, seen = Optimizer.step, [0]

    def deadly(self: Optimizer, *args: Any, **options: Any) -> None:
        seen[0] += 1
        if seen[0] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        whole(self, *args, **options)

    Optimizer.step = deadly  # type: ignore[method-assign]


class Cell(nn.Module):
    """The cheapest network that has something to compile."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.inner, self.head = nn.Embedding(VOCABULARY, 16), nn.Linear(16, 16), Head(16, VOCABULARY)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, batch: Packed) -> torch.Tensor:
        return self.inner(self.embedding(batch.tokens_T)).sigmoid()

    def compile_blocks(self) -> None:
        self.inner.compile(dynamic=True)


def real(directory: Path, workers: int) -> Trainer:
    """The discrete family on best-fit packs of a text file, which ``workers`` processes build."""
    home = directory.parent
    corpus = home / "corpus.txt"
    if not corpus.exists():
        rng = np.random.default_rng(0)
        corpus.write_text("\n".join(" ".join(rng.choice(list("abcdefgh"), n)) for n in rng.integers(5, 60, size=400)) + "\n")
    data = TextDataConfig(
        sources=(SourceConfig(kind="text", path=str(corpus), documents="line"),),
        tokenizer=TokenizerConfig(kind="bytes"),
        context=48,
        packing_length=128,
        workers=workers,
        cache=str(home / "cache"),
    )
    prepared = prepare(data)
    model = TransformerConfig(width=32, depth=1, heads=2, dropout=0.1)
    family = Discrete(prepared.tokenizer.vocabulary, model, MaskedConfig(), MaskedSamplerConfig())
    run = recipe({"kind": "muon"}, save_every=2, packs=2, ema=0.9)
    torch.manual_seed(0)
    return Trainer(family, family.build(), Loader(prepared, data, 3, family), run, directory, evaluate=evaluate, console=False)


def variant(name: str, directory: Path, workers: int = 1) -> Trainer:
    """The runs that the resume test kills and straight runs repeat."""
    if name == "real":
        return real(directory, workers)
    if name == "adamw":
        return trainer(directory, recipe(save_every=2, evaluate_every=3), evaluate=evaluate)
    muon = {"kind": "muon"}
    compiled = "off" if name == "muon" else "on"
    model = Cell() if name == "compiled cell" else network(dropout=0.2)
    return trainer(directory, recipe(muon, save_every=2, packs=2, ema=0.9, compile=compiled), model=model, evaluate=evaluate)


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    kill_in_step(arguments["kill"])
    variant(arguments["variant"], Path(arguments["directory"])).fit()
