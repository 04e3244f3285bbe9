"""The streaming benchmark's form and fairness, at toy sizes and without a look at the clock."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache

import pytest
import torch

from benchmarks import streaming
from benchmarks.measure import Row
from unveil.streams.oadtr import OadTR
from unveil.training import precision

SMALL = {"features": 6, "classes": 4, "ignored": (3,), "width": 16, "steps": 8, "heads": 2, "depth": 1, "decoder_heads": 2}
EXACT = replace(streaming.EXACT, **SMALL)  # type: ignore[arg-type]
CACHED = replace(streaming.CACHED, **SMALL, decoder_depth=1)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product at one rate, so that floors cost no second."""
    monkeypatch.setattr(precision, "matmul_rate", cache(lambda *shape: 1e12))


@pytest.mark.parametrize(
    "row",
    [
        lambda: streaming.exact(torch.float32, EXACT, 1, pairs=5),
        lambda: streaming.exact(torch.bfloat16, EXACT, 1, pairs=5),
        lambda: streaming.together(EXACT, 3, 3, pairs=5),
        lambda: streaming.cached(True, CACHED, EXACT, 1, pairs=5),
        lambda: streaming.cached(False, CACHED, EXACT, 1, pairs=5),
    ],
    ids=["exact", "bfloat16", "together", "cached", "present"],
)
def test_rows(row: Callable[[], Row]) -> None:
    found = row()
    assert set(json.loads(json.dumps(asdict(found)))) == {"name", "ours", "peer", "peer_name", "ratio", "unit", "spread", "floor"}
    assert found.ours > 0 and found.peer > 0 and found.floor and found.floor > 0 and found.unit == "chunks/s"


def test_streams_begin_full() -> None:
    streamer = streaming.filled(streaming.build(OadTR, EXACT), 8, torch.float32, streams=3)
    assert streamer.open == {0: 8, 1: 8, 2: 8}


def test_another_network_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "disagreement", lambda *_: 1e-3)
    with pytest.raises(RuntimeError, match=r"scores differ by 1.0e-03"):
        streaming.exact(torch.float32, EXACT, 1, pairs=5)


def test_bfloat16_is_near_and_float32_nearer() -> None:
    network = streaming.build(OadTR, EXACT)
    near, nearer = (streaming.disagreement(network, EXACT, dtype) for dtype in (torch.bfloat16, torch.float32))
    assert 0 < nearer < 1e-5 < near < 0.1
