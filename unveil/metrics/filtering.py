"""What can be known of a hidden Markov chain from its past: the forward filter, with all of the past or the last chunks of it.

No detector can rank chunks better than by these probabilities; see Rabiner 1989, section III.A. Shape letters as in
``unveil.data.chain``, and K chunks ahead.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from unveil.data.chain import Chain

Array = np.ndarray[Any, Any]

ROWS = 2400
"""Windows filtered at a time."""


def forward_filter(chain: Chain, features_BTF: Array, horizon: int = 0) -> Array:
    """p(class at t + k | chunks 0 to t), float64 ``[B, T, 1 + K, C]``: the ceiling of every online detector."""
    evidence_BTS, readout = chain.evidence(features_BTF), chain.readout(horizon)
    before = np.broadcast_to(chain.stationary_S, evidence_BTS[:, 0].shape)
    told = np.empty((*evidence_BTS.shape[:2], *readout.shape[1:]))
    for t in range(evidence_BTS.shape[1]):
        now = _normalised(before * evidence_BTS[:, t])
        told[:, t] = np.tensordot(now, readout, 1)
        before = now @ chain.transition_SS
    return told


def windowed_filter(chain: Chain, features_BTF: Array, steps: int, horizon: int = 0) -> Array:
    """p(class at t + k | the last ``steps`` chunks up to t), float64 ``[B, T, 1 + K, C]``; with ``steps`` 1 the single-chunk optimum.

    Before its window the observer knows the stationary distribution, which a step without evidence leaves as it is.
    """
    readout, told = chain.readout(horizon), []
    for x_TF in np.asarray(features_BTF):
        evidence_TS = chain.evidence(x_TF)
        padded = np.concatenate([np.ones((steps - 1, evidence_TS.shape[1])), evidence_TS])
        for start in range(0, len(x_TF), ROWS):
            stop = min(start + ROWS, len(x_TF))
            before = np.broadcast_to(chain.stationary_S, (stop - start, evidence_TS.shape[1]))
            for j in range(steps):
                now = _normalised(before * padded[start + j : stop + j])
                before = now @ chain.transition_SS
            told.append(np.tensordot(now, readout, 1))
    return np.concatenate(told).reshape(*np.shape(features_BTF)[:2], *readout.shape[1:])


def _normalised(weights: Array) -> Array:
    return weights / weights.sum(-1, keepdims=True)
