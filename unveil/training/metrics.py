"""What a run writes down: sums since the last row, ``metrics.jsonl``, ``timing.jsonl`` and TensorBoard events."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from unveil.training.parallel import World


class Window:
    """Sums and denominators of the loss terms over the steps since the last row.

    ``add`` keeps tensors and waits for nothing; ``fold`` reads them. A row is the ratio of sums over the window and over ranks, never
    a mean of means; steps whose update was masked stay out, and so do terms that nothing contributed to.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._denominators: dict[str, float] = {}
        self._pending: list[tuple[Tensor, Tensor, dict[str, list[Tensor]], dict[str, float]]] = []

    def add(self, ok: Tensor, norm: Tensor, sums: dict[str, list[Tensor]], denominators: Mapping[str, float]) -> None:
        """A step: whether its update was made, its gradient norm, this rank's sums by term and micro-batch, all ranks' denominators."""
        self._pending.append((ok, norm, sums, dict(denominators)))

    def fold(self) -> None:
        for ok, norm, sums, denominators in self._pending:
            if not ok:
                continue
            self._add("grad_norm", [float(norm)], 1.0)
            for name, denominator in denominators.items():
                self._add(f"train/{name}", torch.stack(sums[name]).tolist() if name in sums else [], denominator)
        self._pending.clear()

    def _add(self, name: str, values: Sequence[float], denominator: float) -> None:
        self._denominators[name] = self._denominators.get(name, 0.0) + denominator
        for value in values:
            self._sums[name] = self._sums.get(name, 0.0) + value

    def row(self, world: World) -> dict[str, float]:
        """The ratios since the last call, in the order in which the terms appeared."""
        self.fold()
        shared = {"grad_norm"}  # the same number on every rank, not a share of it
        own = {name: self._sums.get(name, 0.0) for name in self._denominators}
        totals = {**world.sum({n: v for n, v in own.items() if n not in shared}), **{n: own[n] for n in own if n in shared}}
        row = {name: totals[name] / denominator for name, denominator in self._denominators.items() if denominator}
        self._sums, self._denominators = {}, {}
        return row

    def state_dict(self) -> dict[str, Any]:
        self.fold()
        return {"sums": dict(self._sums), "denominators": dict(self._denominators)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._pending.clear()
        self._sums, self._denominators = dict(state["sums"]), dict(state["denominators"])


class Journal:
    """The files of a run directory that grow. Only rank 0 writes; ``last`` is known to all.

    Args:
        directory: the run's.
        step: rows after this step are dropped: a resumed run writes them again.
    """

    def __init__(self, directory: Path, step: int, world: World) -> None:
        self.last: dict[str, float] = {}
        self._writes = world.rank == 0
        if not self._writes:
            return
        directory.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.jsonl", "timing.jsonl"):
            _truncate(directory / name, step)
        for row in _rows(directory / "metrics.jsonl"):
            self._remember(row)
        self._metrics = (directory / "metrics.jsonl").open("a")
        self._timing = (directory / "timing.jsonl").open("a")
        self._board = _board(directory / "tensorboard", step)

    def metrics(self, step: int, tokens: int, values: Mapping[str, Any]) -> None:
        """A row of ``metrics.jsonl``: everything in it is the same whenever and however often the run was interrupted."""
        row = {"step": step, "tokens": tokens, **values}
        self._remember(row)
        if self._writes:
            self._write(self._metrics, row)
            self._chart(values, step)

    def timing(self, step: int, tokens: int, values: Mapping[str, float]) -> None:
        """A row of ``timing.jsonl``: what differs from run to run."""
        if self._writes:
            self._write(self._timing, {"step": step, "tokens": tokens, **values})
            self._chart({f"timing/{name}": value for name, value in values.items()}, step)

    def sync(self) -> None:
        """Bring the rows to the disk, before a checkpoint that counts on them."""
        if self._writes:
            os.fsync(self._metrics.fileno())

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._writes:
            for file in (self._metrics, self._timing, self._board):
                if file is not None:
                    file.close()

    def _remember(self, row: Mapping[str, Any]) -> None:
        self.last |= {name: value for name, value in row.items() if isinstance(value, (int, float))}

    def _write(self, file: Any, row: Mapping[str, Any]) -> None:
        file.write(json.dumps(row) + "\n")
        file.flush()

    def _chart(self, values: Mapping[str, Any], step: int) -> None:
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(name, value, step)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows up to the first that is not whole: a killed process may leave half a line."""
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                return


def _truncate(path: Path, step: int) -> None:
    kept = [json.dumps(row) + "\n" for row in _rows(path) if row["step"] <= step]
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(kept))
    os.replace(partial, path)


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
