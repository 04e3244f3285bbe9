"""Work on shards in other processes, where there are some, with the same results in the same order as without."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from types import ModuleType
from typing import Any, NamedTuple

from unveil.errors import UserError

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many shards are done, and of how many (0: not known)."""


@contextmanager
def processes(workers: int) -> Iterator[Executor | None]:
    """That many of them, started as there is work; None for one or less, which means this one."""
    if workers < 2:
        yield None
        return
    with _without_main():
        pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker)
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


class Failure(NamedTuple):
    """A UserError on its way between processes: exceptions with more than one argument do not survive pickling."""

    field: str
    problem: str
    remedy: str


def each(
    pool: Executor | None, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], stage: str, report: Progress
) -> Iterator[Any]:
    """Results in the order of the tasks. A worker's UserError is raised here."""
    report(stage, 0, len(tasks))
    if not tasks:
        return
    columns = zip(*tasks, strict=True)
    for done, result in enumerate(map(function, *columns) if pool is None or len(tasks) == 1 else pool.map(function, *columns), 1):
        if isinstance(result, Failure):
            raise UserError(*result)
        report(stage, done, len(tasks))
        yield result


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the main module: workers need nothing of it, and to import it again would run a script that has no ``__main__`` guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent alone answers it
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
