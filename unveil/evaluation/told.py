"""Log-likelihoods of some of a text's tokens given the others, many texts to a pack.

Noise belongs to a text's ``sample_id``: texts of one id, one length and the same told places meet the same masks, so that their scores
differ by what they say alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from unveil.data.packing import pack
from unveil.nn.packed import Packed

Ids = np.ndarray[Any, np.dtype[np.int64]]
Score = Callable[[Packed, torch.Tensor], torch.Tensor]
"""A pack and which of its tokens are told (bool ``[T]``) to the log-likelihood of the others, ``[N]``."""


class Told(NamedTuple):
    """A text, the start token first; which tokens are told, bool; and whose noise it meets."""

    tokens: Ids
    given: np.ndarray[Any, np.dtype[np.bool_]]
    sample_id: int

    @staticmethod
    def after(tokens: Ids, given: int, sample_id: int) -> Told:
        """The first ``given`` tokens are told."""
        return Told(tokens, np.arange(len(tokens)) < given, sample_id)


def log_likelihoods(texts: Sequence[Told], score: Score, capacity: int) -> list[float]:
    """In nats, in the order given; no pack has more than ``capacity`` tokens."""
    values = [0.0] * len(texts)
    for part in pack([len(text.tokens) for text in texts], capacity):
        chosen = [texts[i] for i in part]
        batch = Packed.of([torch.from_numpy(text.tokens) for text in chosen], [text.sample_id for text in chosen])
        given_T = torch.from_numpy(np.concatenate([text.given for text in chosen]))
        for i, value in zip(part, score(batch, given_T).tolist(), strict=True):
            values[i] = value
    return values
