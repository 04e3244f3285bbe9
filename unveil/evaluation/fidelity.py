"""How near generated images come to real ones: Frechet and kernel distance, precision and recall, in the features that are stated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from unveil.evaluation.features import Features
from unveil.metrics.frechet import Moments, frechet
from unveil.metrics.kid import kid
from unveil.metrics.precision_recall import precision_recall


@dataclass(frozen=True)
class Fidelity:
    """``samples`` generated against ``real`` real images."""

    frechet: float
    frechet_stderr: float
    """Over the choice of the generated samples: from disjoint quarters of them, without their common bias."""
    kid: float
    kid_stderr: float
    precision: float
    recall: float
    samples: int
    real: int
    features: str


def fidelity(generated: Tensor, real: Tensor, features: Features) -> Fidelity:
    """Of images in [-1, 1]. The Frechet distance is biased upwards by some dimensions / samples: compare at equal ``samples``."""
    made, true = features(generated), features(real)
    distance = kid(true, made, block=min(1000, max(len(made) // 4, 2)))
    shares = precision_recall(true, made)
    return Fidelity(
        frechet(Moments.of(true), Moments.of(made)),
        _stderr(true, made),
        distance.value,
        distance.stderr,
        shares.precision,
        shares.recall,
        len(made),
        len(true),
        features.name,
    )


def _stderr(true: np.ndarray[Any, Any], made: np.ndarray[Any, Any]) -> float:
    """The standard deviation over quarters shrinks to that of the whole as the number of samples grows fourfold: half of it."""
    if len(made) < 16:
        return float("nan")
    whole = Moments.of(true)
    values = [frechet(whole, Moments.of(made[i::4])) for i in range(4)]
    return float(np.std(values, ddof=1) / 2)
