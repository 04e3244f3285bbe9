"""What every run has, whatever it was trained on; and what a kind of data adds to training."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from torch import nn

from unveil import recipe as recipes
from unveil.family import Family
from unveil.report.evidence import Evidence
from unveil.report.run import RunReport
from unveil.training.loop import Loader

Split = Literal["validation", "test"]
SAMPLES = 4
"""Texts drawn for the page and for ``samples/``."""


class Run(ABC):
    """A trained model with all that belongs to it: a ``TextRun`` or an ``ImageRun``. ``unveil.load`` makes one.

    ``path`` is the run directory, or a folder that holds what ``final/`` holds; ``tokenizer`` is there for text.
    """

    path: Path
    folder: Path
    recipe: Any
    tokenizer: Any
    model: nn.Module

    @abstractmethod
    def sample(self, *args: Any, **settings: Any) -> Iterator[Any]:
        """Uncover something; yields a snapshot after every step, the last of them final."""

    @abstractmethod
    def evaluate(self, *args: Any, **settings: Any) -> Any:
        """Score held-out data."""

    def with_sampler(self, **settings: Any) -> Self:
        """The same run with other settings in its recipe's sampler section. Raises UserError for what does not exist or is out of range."""
        chosen = recipes.with_overrides(self.recipe, [(f"sampler.{name}", value) for name, value in settings.items()])
        return dataclasses.replace(self, recipe=chosen)  # type: ignore[type-var]

    @property
    def metrics(self) -> Sequence[Mapping[str, float]]:
        """The rows of ``metrics.jsonl``, in the order of training."""
        return RunReport.read(self.path).log

    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


class Training(Protocol):
    """What a kind of data adds to ``unveil.run.train``."""

    @property
    def family(self) -> Family: ...

    @property
    def scores(self) -> bool:
        """Whether anything is held out to be scored."""

    def build(self) -> nn.Module:
        """The network with the weights that training starts from."""

    def loader(self, rank: int, world: int) -> Loader:
        """This rank's micro-batches."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Scores on held-out data, the first to be lowered."""

    def sample(self, model: nn.Module, step: int) -> None:
        """Write what the model makes into ``samples/``."""

    def export(self, folder: Path) -> dict[str, Any]:
        """Put what sampling needs beside the weights; returns what goes into ``config.json``."""

    def evidence(self, run: Any) -> Evidence:
        """What ``unveil report`` shows beside the log, but for the costs of the trainer."""
