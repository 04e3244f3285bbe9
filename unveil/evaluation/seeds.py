"""The same measure on disjoint sets of samples, as one with its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from unveil.evaluation.fidelity import Fidelity
from unveil.evaluation.points import Sliced

Measure = TypeVar("Measure", bound=Fidelity | Sliced)
MEANS = {"frechet": "frechet_stderr", "kid": "kid_stderr", "precision": "", "recall": "", "distance": "stderr"}
"""Values that are averaged, and the field of each one's standard error."""


def over_seeds(found: Sequence[Measure]) -> Measure:
    """The means, and where there are several the standard errors of the means in the place of those within one set. ``samples`` stays that
    of one set, on which the bias depends."""
    first = found[0]
    if len(found) == 1:
        return first
    changed: dict[str, Any] = {}
    for name, error in MEANS.items():
        if hasattr(first, name):
            values = [getattr(one, name) for one in found]
            changed[name] = float(np.mean(values))
            if error:
                changed[error] = float(np.std(values, ddof=1) / math.sqrt(len(values)))
    return replace(first, **changed)
