"""Fill-in-the-middle (Bavarian et al. 2022, arXiv 2207.14255) in prefix-suffix-middle order.

A document is split at two points and its middle moved to the end, so that a model that reads left to right learns to write what is missing:

    start <|prefix|> prefix <|suffix|> suffix <|middle|> middle end
"""

from __future__ import annotations

from typing import Any

import numpy as np

from unveil.text.vocabulary import Vocabulary

Tokens = np.ndarray[Any, np.dtype[np.int64]]

SHORTEST = 16
"""Sequences of fewer tokens stay as they are: the sentinels would take too large a share of them."""


def rearrange(tokens: Tokens, vocabulary: Vocabulary, rate: float, rng: np.random.Generator) -> Tokens:
    """With probability ``rate`` the sequence ``start document [end]`` in infill order, else as it is; never longer than it was.

    The two points are uniform over the gaps of the document, ends included. The document gives its last three tokens for the sentinels,
    and a fourth where no end token was there: the middle must be seen to end even where the document goes on.

    Raises ValueError for a sequence that does not begin with the start token.
    """
    if not len(tokens) or tokens[0] != vocabulary.start:
        raise ValueError("a sequence begins with the start token")
    if rng.random() >= rate or len(tokens) < SHORTEST:
        return tokens
    document = tokens[1 : len(tokens) - 4]
    first, second = sorted(rng.integers(0, len(document) + 1, size=2).tolist())
    question = prompt(document[:first], document[second:], vocabulary)
    return np.concatenate([question, document[first:second], [vocabulary.end]]).astype(tokens.dtype)


def prompt(prefix: Tokens, suffix: Tokens, vocabulary: Vocabulary) -> Tokens:
    """What a model continues with the tokens between ``prefix`` and ``suffix``, and then the end token."""
    v = vocabulary
    return np.concatenate([[v.start, v.prefix], prefix, [v.suffix], suffix, [v.middle]]).astype(np.int64)


def parts(tokens: Tokens, vocabulary: Vocabulary) -> tuple[Tokens, Tokens, Tokens]:
    """Prefix, middle and suffix, as in the document, of a sequence in infill order; the middle stops at the end token, if there is one.

    Raises ValueError for a sequence without each sentinel once and in order.
    """
    sentinels = (vocabulary.prefix, vocabulary.suffix, vocabulary.middle)
    found = [np.flatnonzero(tokens == sentinel) for sentinel in sentinels]
    if any(len(f) != 1 for f in found) or not (at := [int(f[0]) for f in found]) == sorted(at):
        raise ValueError("a sequence in infill order has the prefix, suffix and middle tokens once each and in this order")
    ends = np.flatnonzero(tokens[at[2] :] == vocabulary.end)
    stop = at[2] + int(ends[0]) if len(ends) else len(tokens)
    return tokens[at[0] + 1 : at[1]], tokens[at[2] + 1 : stop], tokens[at[1] + 1 : at[2]]
