"""Where the runs of a sweep are trained: processes of this machine, or a Ray cluster. Both take a call and give a future."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Protocol

from unveil.errors import UserError

RETRIES = 3
"""How often Ray begins a run again whose worker died; each time it goes on from its checkpoint."""


class Engine(Protocol):
    died: type[Exception]
    """What a future raises whose worker was killed or ran out of memory."""

    def __enter__(self) -> Engine: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]: ...

    def interrupt(self) -> None:
        """Let what runs save itself and stop."""


class Processes:
    """So many of them at a time, on this machine."""

    died: type[Exception] = BrokenProcessPool

    def __init__(self, workers: int) -> None:
        self._pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _alone)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *error: Any) -> None:
        self._pool.shutdown()

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        return self._pool.submit(function, *args)

    def interrupt(self) -> None:
        for process in multiprocessing.active_children():
            process.terminate()


class Ray:
    """Tasks of a Ray cluster: that of the environment's ``RAY_ADDRESS``, or one of ``workers`` slots started here and ended with the sweep.

    Its workers share the file system, where the runs lie; a task whose worker dies is begun again, elsewhere if need be, and goes on from
    the run's checkpoint. Raises UserError where Ray is missing or the cluster does not answer.
    """

    def __init__(self, workers: int) -> None:
        for name in ("RAY_USAGE_STATS_ENABLED", "RAY_TQDM_PATCH_PRINT"):  # it would replace this process's print for good
            os.environ.setdefault(name, "0")
        try:
            import ray
        except ImportError as error:
            raise UserError("--engine", "'ray' needs the library `ray`", "pip install 'unveil[ray]', or take local") from error
        self._ray, self._refs = ray, list[Any]()
        self.died: type[Exception] = ray.exceptions.RayError
        here = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers, "include_dashboard": False}
        try:
            ray.init(logging_level="ERROR", log_to_driver=False, **here)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError("--engine", f"no Ray cluster ({str(error).splitlines()[0]})", "check RAY_ADDRESS, or leave it out") from error

    def __enter__(self) -> Ray:
        return self

    def __exit__(self, *error: Any) -> None:
        self._ray.shutdown()

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        task = self._ray.remote(num_cpus=1, max_retries=RETRIES)(function)
        self._refs.append(task.remote(*args))
        future: Future[Any] = self._refs[-1].future()
        return future

    def interrupt(self) -> None:
        for ref in self._refs:
            self._ray.cancel(ref)
        self._ray.wait(self._refs, num_returns=len(self._refs), timeout=60)


ENGINES: dict[str, Callable[[int], Engine]] = {"local": Processes, "ray": Ray}


def _alone() -> None:
    """Ctrl-C in a terminal goes to the sweep alone, which hands it on once."""
    os.setpgrp()
