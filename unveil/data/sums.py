"""Sums asked and answered: conversations that need no download, for recipes that run as they stand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

COUNT = 4000
"""Conversations of ``sums``."""
ASKED = ("What is {a} + {b}?", "Add {a} and {b}.", "How much is {a} plus {b}?")


def sums(count: int = COUNT) -> Iterator[dict[str, Any]]:
    """Rows of one or two questions; the second adds to the answer of the first. The same on every run."""
    rng = np.random.Generator(np.random.Philox(key=0))
    for _ in range(count):
        a, b, c = (int(n) for n in rng.integers(0, 100, 3))
        turns = [(ASKED[rng.integers(len(ASKED))].format(a=a, b=b), str(a + b))]
        if rng.random() < 0.25:
            turns.append((f"And {c} more?", str(a + b + c)))
        spoken = [(role, text) for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)]
        yield {"messages": [{"role": role, "content": text} for role, text in spoken]}
