"""Text as it is uncovered, in the terminal: every token in the colour of the step at which it was committed, underlined where the network
was not sure; below it what the step committed and what all of them took."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text

from unveil.image_run import ImageSnapshot
from unveil.snapshots import TextSnapshot

RAMP = ((112, 104, 214), (58, 134, 220), (38, 166, 154), (124, 200, 90), (250, 224, 60))
"""Early to late: rising in lightness, so that it reads without colour vision, and never so dark that a black terminal hides it."""
UNSURE = 0.5
"""Probability at its step below which a token is underlined."""
FRAME = 0.04
"""Seconds a step is shown at the least: a small network is faster than the eye."""

CONTROL = (
    {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {127: "\u2421"} | dict.fromkeys(range(128, 160), "�")
)


def printable(text: str) -> str:
    """Text with control characters as pictures: what a model writes must not steer a terminal."""
    return text.translate(CONTROL)


def colour(step: int, last: int) -> str:
    """Of a token committed at ``step`` of ``last``, as ``#rrggbb``."""
    place = (step - 1) / max(last - 1, 1) * (len(RAMP) - 1)
    low = min(int(place), len(RAMP) - 2)
    mixed = (round(a + (b - a) * (place - low)) for a, b in zip(RAMP[low], RAMP[low + 1], strict=True))
    return "#" + "".join(f"{min(max(value, 0), 255):02x}" for value in mixed)


def painted(snapshot: TextSnapshot, last: int) -> Text:
    """All rows, a rule between them; what was given as it is, what is covered dim."""
    text = Text()
    for row in range(len(snapshot.rows)):
        if row:
            text.append("\n────\n", style="dim")
        for piece, at, sure in snapshot.pieces(row):
            how = "bold underline" if sure < UNSURE else "bold"
            text.append(printable(piece), style="dim" if at < 0 else f"{how} {colour(at, last)}" if at else "")
    text.append(f"\n{told(snapshot)}", style="dim italic")
    return text


def told(snapshot: TextSnapshot) -> str:
    """The step, what it committed and with what probability, and what all steps took."""
    return "; ".join(part for part in (f"step {snapshot.step}: {snapshot.fresh}", snapshot.cost) if part)


def blocks(sheet: np.ndarray[Any, np.dtype[np.uint8]]) -> Text:
    """An image ``[H, W, C]`` of characters that are two pixels high."""
    pixels = np.broadcast_to(sheet, (*sheet.shape[:2], 3))
    pixels = np.concatenate([pixels, pixels[-1:]]) if len(pixels) % 2 else pixels
    text = Text(no_wrap=True)
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        for a, b in zip(upper, lower, strict=True):
            text.append("▀", style="rgb({},{},{}) on rgb({},{},{})".format(*a, *b))
        text.append("\n")
    return text


def watch_images(snapshots: Iterable[ImageSnapshot], console: Console | None = None) -> ImageSnapshot:
    """Show what the network makes out at each step; on what is no terminal nothing, but the last snapshot is returned all the same."""
    console = console or Console()
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        for snapshot in snapshots:
            if console.is_terminal:
                live.update(blocks(snapshot.thumbnail()), refresh=True)
                time.sleep(FRAME)
    return snapshot


def watch(snapshots: Iterable[TextSnapshot], last: int, console: Console | None = None) -> TextSnapshot | None:
    """Show the snapshots as they come and return the last one; a line per step where the output is no terminal.

    ``last`` is the number of steps expected, which scales the colours.
    """
    console, snapshot = console or Console(), None
    if not console.is_terminal:
        for snapshot in snapshots:
            shown = snapshot.text if isinstance(snapshot.text, str) else " │ ".join(snapshot.text)
            console.print(f"{snapshot.step:4d}  {shown!r}  {snapshot.fresh}", markup=False, highlight=False, soft_wrap=True)
        if snapshot is not None and snapshot.cost:
            console.print(f"      {snapshot.cost}", markup=False, highlight=False)
        return snapshot
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        for snapshot in snapshots:
            start = time.perf_counter()
            live.update(painted(snapshot, last), refresh=True)
            time.sleep(max(0.0, FRAME - (time.perf_counter() - start)))
    return snapshot
