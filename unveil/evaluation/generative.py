"""How good samples are, read by another model: perplexity under an autoregressive judge, and the unigram entropy that must stand beside it.

A text of one word repeated has a low perplexity; its entropy tells it from a good one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unveil.family import Family
from unveil.nn.packed import Packed

BATCH = 16
"""Texts that the judge reads at once."""


@torch.no_grad()
def perplexity(judge: Family, model: nn.Module, texts: Sequence[Tensor], end: int) -> float:
    """exp of the mean cost in nats of a token of the texts, each after its first token and up to its first end token.

    Args:
        judge, model: a family that computes log p exactly, and its network.
        texts: 1-D int64, the start token first.
        end: what ends a text; the end token itself is not counted.

    Returns:
        The perplexity; NaN where no text has a token.
    """
    nats, tokens = 0.0, 0
    cut = [text for text in (_until(text, end) for text in texts) if len(text) > 1]
    device = next(model.parameters()).device
    for i in range(0, len(cut), BATCH):
        part = cut[i : i + BATCH]
        log_N, _ = judge.log_likelihood(model, Packed.of(part).to(device), 1, 0)
        nats -= float(log_N.sum())
        tokens += sum(len(text) - 1 for text in part)
    return math.exp(nats / tokens) if tokens else math.nan


def unigram_entropy(texts: Sequence[Tensor], end: int) -> float:
    """Mean over texts of the entropy, in nats, of the tokens that each holds; NaN where no text has a token."""
    values = []
    for text in texts:
        counts = torch.unique(_until(text, end)[1:], return_counts=True)[1].double()
        if len(counts):
            share = counts / counts.sum()
            values.append(float(-(share * share.log()).sum()))
    return sum(values) / len(values) if values else math.nan


def _until(text: Tensor, end: int) -> Tensor:
    """The text before its first end token; where start and end are one, the first token is the start."""
    at = (text[1:] == end).nonzero()
    return text[: int(at[0]) + 1] if len(at) else text
