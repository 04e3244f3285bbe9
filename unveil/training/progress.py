"""What a person sees while a run trains."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINES = 20
"""Lines that a whole run writes where the output is no terminal."""


class Bar:
    """Progress with time left, loss, speed and utilisation: a bar on a terminal, some lines elsewhere, nothing if not ``shown``."""

    def __init__(self, shown: bool, step: int, steps: int) -> None:
        self._console = Console(quiet=not shown)
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
        live = shown and self._console.is_terminal
        self._progress = Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=self._console, disable=not live)
        self._task: TaskID = self._progress.add_task("training", total=steps, completed=step, note="")
        self._lines = 0 if live or not shown else _LINES
        self._steps, self._step, self._shown_at = steps, step, step

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def advance(self) -> None:
        self._step += 1
        self._progress.update(self._task, completed=self._step)

    def note(self, values: Mapping[str, float], rate: float, seconds_left: float, utilisation: float, unit: str) -> None:
        """The latest losses, the ``unit`` (tokens, say) per second, time left and the share of the machine's peak, of the last row."""
        losses = "  ".join(f"{name.removeprefix('train/')} {value:.3f}" for name, value in values.items() if _headline(name))
        text = f"{losses}  {rate:,.0f} {unit}/s  {utilisation:.0%} of peak"
        self._progress.update(self._task, note=text)
        if self._lines and (self._step - self._shown_at) * self._lines >= self._steps:
            self._shown_at = self._step
            self._console.print(f"step {self._step}/{self._steps}  {text}  {seconds_left:,.0f} s left", highlight=False)

    def say(self, text: str) -> None:
        """A line of its own."""
        self._console.print(text, highlight=False)


def _headline(name: str) -> bool:
    """Losses and evaluations, but not their ten buckets by time."""
    return name.startswith(("train/", "eval/")) and " " not in name
