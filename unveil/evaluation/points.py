"""How near generated points come to real ones, in the plane or any space of few dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from unveil.metrics.sliced import sliced_wasserstein

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Sliced:
    """``samples`` generated against ``real`` held-out points."""

    distance: float
    """Sliced Wasserstein, in the points' own unit."""
    stderr: float
    """Over the choice of the generated points: from disjoint quarters of them, without their common bias."""
    floor: float
    """The distance of as many training points: what a perfect model comes to."""
    samples: int
    real: int


def sliced(made: Array, held: Array, train: Array) -> Sliced:
    """Of points ``[N, D]``. The distance is biased upwards, the less the more points there are: compare equal numbers, or the floor."""
    quarters = [sliced_wasserstein(made[i::4], held) for i in range(4)] if len(made) >= 16 else []
    # the standard deviation over quarters shrinks to that of the whole as the number of points grows fourfold
    stderr = float(np.std(quarters, ddof=1) / 2) if quarters else float("nan")
    floor = sliced_wasserstein(train[: len(made)], held)
    return Sliced(sliced_wasserstein(made, held), stderr, floor, len(made), len(held))
