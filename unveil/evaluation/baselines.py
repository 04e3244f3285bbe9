"""The baselines of a held-out score, on exactly the bytes that a model was scored on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from unveil.metrics.compression import BASELINES, Score


def baselines(train: bytes, held_out: bytes, done: Callable[[str], None] | None = None) -> list[Score]:
    """Every baseline alone and primed with the training bytes, the weakest kind first.

    The compressors release the interpreter lock, so two run at a time.
    """
    with ThreadPoolExecutor(2) as pool:
        jobs = [(name, pool.submit(score, held_out, b""), pool.submit(score, held_out, train)) for name, score in BASELINES.items()]
        scores = []
        for name, alone, primed in jobs:
            scores.append(Score(name, alone.result(), primed.result()))
            if done is not None:
                done(name)
    return scores
