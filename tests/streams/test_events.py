from __future__ import annotations

import numpy as np
import pytest

from unveil.errors import UserError
from unveil.streams.events import Event, Events


def told(events: Events, scores: list[float], stream: str = "a") -> list[tuple[str, int, int, float]]:
    """Every chunk's events of class 1, a background taking the rest."""
    found = [event for score in scores for event in events.update([stream], np.array([[1 - score, score]]))]
    assert all(event.stream == stream and event.label == 1 for event in found)
    return [(event.kind, event.chunk, event.began, event.peak) for event in found]


def test_a_score_that_trembles_is_one_event() -> None:
    scores = [0.4, 0.5, 0.35, 0.49, 0.8, 0.3, 0.29, 0.45, 0.1]
    assert told(Events(0.5, 0.3), scores) == [("start", 1, 1, 0.5), ("end", 6, 1, 0.8)]
    assert [kind for kind, *_ in told(Events(0.5, 0.5), scores)] == ["start", "end", "start", "end"]


def test_each_event_has_its_own_peak() -> None:
    found = told(Events(0.5, 0.3), [0.9, 0.0, 0.6, 0.1])
    assert found == [("start", 0, 0, 0.9), ("end", 1, 0, 0.9), ("start", 2, 2, 0.6), ("end", 3, 2, 0.6)]


def test_the_background_is_no_event_and_classes_go_on_together() -> None:
    events = Events(0.4, 0.2)
    first = events.update(["a"], np.array([[0.9, 0.05, 0.05]]))
    both = events.update(["a"], np.array([[0.1, 0.45, 0.45]]))
    swap = events.update(["a"], np.array([[0.1, 0.8, 0.1]]))
    assert first == [] and [(e.label, e.kind) for e in both] == [(1, "start"), (2, "start")]
    assert swap == [Event("a", 2, "end", 2, 0.1, 1, 0.45)]


def test_streams_do_not_meet_and_end_with_what_goes_on() -> None:
    events = Events()
    events.update(["a", "b"], np.array([[0.1, 0.9], [0.9, 0.1]]))
    assert events.update(["b"], np.array([[0.2, 0.8]])) == [Event("b", 1, "start", 1, 0.8, 1, 0.8)]
    assert events.close(["a", "never seen"]) == [Event("a", 1, "end", 1, 0.9, 0, 0.9)]
    assert [e.stream for e in events.close()] == ["b"] and events.close() == []
    assert told(events, [0.9]) == [("start", 0, 0, 0.9)]


@pytest.mark.parametrize(("start", "stop"), [(0.3, 0.5), (1.1, 0.5), (0.5, -0.1)])
def test_thresholds_are_checked(start: float, stop: float) -> None:
    with pytest.raises(UserError, match="keep 0 <= stop <= start <= 1"):
        Events(start, stop)
