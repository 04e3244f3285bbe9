"""Covering again what was committed, so that a sampler can change its mind. Only tokens that it uncovered itself, in the open window."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def rates(mask_t: float, mask_s: float, strength: float) -> tuple[float, float]:
    """An ancestral step that covers again (ReMDM; Wang et al. 2025, arXiv 2503.00307, eqs. 3 and 6).

    A token is covered with probability sigma = ``strength`` x its greatest value, min(1, (1 - alpha_s) / alpha_t); a mask is uncovered with
    (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t). The share of masks at time s is 1 - alpha_s whatever sigma is.

    Args:
        mask_t, mask_s: 1 - alpha at the step's two times, mask_t > 0.

    Returns:
        The probabilities to uncover a mask and to cover a token.
    """
    clean_t, clean_s = 1.0 - mask_t, 1.0 - mask_s
    sigma = strength * min(1.0, mask_s / clean_t if clean_t > 0 else 1.0)
    return min(max((clean_s - (1.0 - sigma) * clean_t) / mask_t, 0.0), 1.0), sigma


def doubted(confidence_T: Array, may_T: Array, below: float) -> Array:
    """Tokens whose probability when they were committed was under ``below``, of those that may be covered again."""
    return np.flatnonzero(may_T & (confidence_T < below))
