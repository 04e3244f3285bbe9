"""Batches without end, built ahead by any number of workers, for one of any number of ranks, and resumed exactly.

What is in a batch is a pure function of a plan and of the batch's number in one global order. Workers only build ahead of time, and a
rank takes every ``world``-th batch.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from unveil.errors import UserError

Array = np.ndarray[Any, Any]
State = dict[str, Any]
Batch = TypeVar("Batch")


class Noising(Protocol):
    """What a loader asks of a family; see ``unveil.family.Family``."""

    def transform(self, tokens: Array, rng: np.random.Generator) -> Array: ...
    def draw(self, sample_id: int, epoch: int, length: int, rng: np.random.Generator) -> dict[str, Array]: ...


class Planner(Protocol):
    """Says what the next batch consists of; its state names samples, not their content."""

    def next(self) -> Any: ...
    def state(self) -> State: ...
    def restore(self, state: State) -> None: ...


class Plan(Protocol):
    """All that a worker needs to build any batch."""

    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...
    def planner(self) -> Planner: ...

    def shape(self) -> State:
        """What a state must agree with."""

    def build(self, planned: Any) -> tuple[Any, dict[str, Array]]:
        """The content of a batch in NumPy's arrays, which travel between processes, and its noise."""

    def finish(self, content: Any) -> Any:
        """The batch itself."""


class Built(NamedTuple):
    """A batch on its way out of a worker, and the state after it."""

    content: Any
    noise: dict[str, Array]
    state: State


class Ahead(Generic[Batch]):
    """Micro-batches ``(batch, noise)`` of one rank; ``workers`` processes build ahead.

    ``state_dict`` is what to go on from after the last batch handed out, however far workers have built ahead; it is the same on every
    rank at the same number of batches.
    """

    def __init__(self, plan: Plan, workers: int) -> None:
        if not 0 <= plan.rank < plan.world:
            raise ValueError(f"rank {plan.rank} of {plan.world}")
        self._plan, self._workers = plan, workers
        self._state = plan.planner().state()
        self._batches: Iterator[Built] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[Batch, dict[str, Tensor]]:
        if self._batches is None:
            self._batches = self._start()
        built = next(self._batches)
        self._state = built.state
        return self._plan.finish(built.content), {k: torch.from_numpy(v) for k, v in built.noise.items()}

    def state_dict(self) -> State:
        """JSON-able: where the planner stands, and what that belongs to."""
        return {**self._state, "shape": self._plan.shape()}

    def load_state_dict(self, state: State) -> None:
        """Go on after the batch at which ``state`` was taken. Raises UserError where it belongs to other data or another cutting."""
        if state.get("shape") != self._plan.shape():
            problem = "the checkpoint was made with other data or other batches"
            raise UserError("data", problem, "resume with the recipe and the data of the run")
        self._state = {k: v for k, v in state.items() if k != "shape"}
        self._batches = None

    def _start(self) -> Iterator[Built]:
        dataset = _Batches(self._plan, self._state)
        if not self._workers:
            return iter(dataset)
        loader = DataLoader(
            dataset,
            batch_size=None,
            num_workers=self._workers,
            collate_fn=_as_is,
            worker_init_fn=_start_worker,
            # its own generator: the default one belongs to the training and is not to move with the number of workers
            generator=torch.Generator(),
        )
        return iter(loader)


class _Batches(IterableDataset[Built]):
    """Every worker plans all batches, which is cheap and keeps them in one order, and builds its own share."""

    def __init__(self, plan: Plan, state: State) -> None:
        self._plan, self._state = plan, state

    def __iter__(self) -> Iterator[Built]:
        info = get_worker_info()
        mine, workers = (info.id, info.num_workers) if info else (0, 1)
        planner = self._plan.planner()
        planner.restore(self._state)
        turn = 0
        while True:
            planned = [planner.next() for _ in range(self._plan.world)]
            if turn % workers == mine:
                yield Built(*self._plan.build(planned[self._plan.rank]), planner.state())
            turn += 1


def _as_is(built: Any) -> Any:
    return built


def _start_worker(index: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer answers both, and then ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
