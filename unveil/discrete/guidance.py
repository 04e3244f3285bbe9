"""Classifier-free guidance for text: the same canvas read a second time without what it is to be guided by.

Unsupervised (Nie et al. 2024, arXiv 2410.18514, section 3.3; LLaDA, appendix A.2): what was given is masked, so any masked model serves.
Prompted: another prompt stands in its place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from unveil.discrete.canvas import Canvas

Array = np.ndarray[Any, Any]


def unconditional(row: Canvas, mask: int, keep: tuple[int, ...]) -> tuple[Array, int]:
    """The row's second canvas, and how far to the right of their places in the first its uncovered tokens stand.

    ``keep`` are ids that are never masked (the start token).
    """
    if row.negative is None:
        return np.where((row.committed_at == 0) & ~np.isin(row.tokens, keep), mask, row.tokens), 0
    return np.concatenate([row.negative, row.tokens[row.fresh :]]), len(row.negative) - row.fresh


def guided(conditional_MV: Tensor, unconditional_MV: Tensor, strength: float) -> Tensor:
    """``u + (1 + w)(c - u)`` on logits: w = 0 is c, w = -1 would be u."""
    return unconditional_MV + (1.0 + strength) * (conditional_MV - unconditional_MV)
