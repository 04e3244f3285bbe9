"""What a per-frame score is read against: chance, and detectors that know the truth, but late."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def chance(truth_TC: Array) -> Array:
    """Scores ``[T, C]`` that know nothing: all the same. Their AP is the share of positives, their calibrated AP one half."""
    return np.zeros(np.shape(truth_TC))


def delayed(truth_TC: Array, boundaries: Array, chunks: int) -> Array:
    """Scores of a detector that is always right and always ``chunks`` late: what was true so many before, of the same video; nothing at its
    beginning. THUMOS' best published detectors score as one that is three late."""
    truth = np.asarray(truth_TC, dtype=np.float64)
    starts = np.repeat(np.asarray(boundaries)[:-1], np.diff(boundaries))
    source = np.arange(len(truth)) - chunks
    return np.where((source >= starts)[:, None], truth[np.maximum(source, 0)], 0.0)
