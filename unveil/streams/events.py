"""Scores as events: a class begins where its probability reaches one threshold and ends where it falls below a lower one (hysteresis)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from unveil.errors import UserError

Array = np.ndarray[Any, Any]

BACKGROUND = 0
"""The class that is no event, by the field's convention."""


@dataclass(frozen=True)
class Event:
    """A class began or ended in a stream. Chunks count from 0 in every stream."""

    stream: Hashable
    label: int
    kind: Literal["start", "end"]
    chunk: int
    """The chunk at which it was told: of an end the first that is not of the event."""
    score: float
    """Probability at this chunk."""
    began: int
    """The chunk of the start: of a start its own."""
    peak: float
    """Highest probability so far."""


class Events:
    """What goes on in each stream, from one chunk to the next. Several classes may go on at once.

    Args:
        start: probability from which on a class goes on.
        stop: probability below which it no longer does; between the two what was stays, so that a score that trembles is one event.

    Raises UserError unless 0 <= stop <= start <= 1.
    """

    def __init__(self, start: float = 0.5, stop: float = 0.3) -> None:
        if not 0 <= stop <= start <= 1:
            raise UserError("stop", f"got {stop} with start = {start}", "keep 0 <= stop <= start <= 1")
        self.start, self.stop = start, stop
        self._streams: dict[Hashable, _Going] = {}

    def update(self, stream_ids: Sequence[Hashable], present_BC: Array) -> list[Event]:
        """What began and ended with the next chunk of each of these streams, whose probabilities are ``present_BC``; ends first."""
        return [event for stream, scores_C in zip(stream_ids, present_BC, strict=True) for event in self._update(stream, scores_C)]

    def close(self, stream_ids: Sequence[Hashable] | None = None) -> list[Event]:
        """These streams (all, if None) are over: what goes on in them ends behind their last chunk. One that was never seen has nothing."""
        found = []
        for stream in list(self._streams) if stream_ids is None else stream_ids:
            going = self._streams.pop(stream, None)
            if going is not None:
                found += [going.told(stream, label, "end") for label in np.flatnonzero(going.began_C >= 0).tolist()]
        return found

    def _update(self, stream: Hashable, scores_C: Array) -> list[Event]:
        going = self._streams.setdefault(stream, _Going(scores_C))
        active_C = going.began_C >= 0
        begins_C = ~active_C & (scores_C >= self.start)
        begins_C[BACKGROUND] = False
        ends_C = active_C & (scores_C < self.stop)
        going.scores_C = scores_C
        going.peak_C[begins_C] = 0
        np.maximum(going.peak_C, scores_C, out=going.peak_C)
        going.began_C[begins_C] = going.chunk
        events = [going.told(stream, label, "end") for label in np.flatnonzero(ends_C).tolist()]
        events += [going.told(stream, label, "start") for label in np.flatnonzero(begins_C).tolist()]
        going.began_C[ends_C] = -1
        going.chunk += 1
        return events


class _Going:
    """One stream: the next chunk's number, where each class began (-1: it does not go on), its peak and its last score."""

    def __init__(self, scores_C: Array) -> None:
        self.chunk, self.scores_C = 0, scores_C
        self.began_C, self.peak_C = np.full(len(scores_C), -1), np.zeros(len(scores_C))

    def told(self, stream: Hashable, label: int, kind: Literal["start", "end"]) -> Event:
        return Event(stream, label, kind, self.chunk, float(self.scores_C[label]), int(self.began_C[label]), float(self.peak_C[label]))
