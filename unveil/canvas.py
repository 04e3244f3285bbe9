"""Text to what a family uncovers: a prompt to go on from, or a text with gaps to fill."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from unveil.autoregressive import infill as fim
from unveil.config import AutoregressiveRecipe, DiscreteRecipe, TextRecipe
from unveil.data.tokenizer import Tokenizer
from unveil.errors import UserError
from unveil.family import Request
from unveil.text.vocabulary import Vocabulary

Ids = np.ndarray[Any, np.dtype[np.int64]]
GAP = re.compile(r"<mask(?::(\d+))?>")
GAP_TOKENS = 16
"""Tokens of a gap written as ``<mask>`` for a family that must know the number."""


@dataclass(frozen=True)
class Canvas:
    """A request, and the reading order of its tokens, where that is not the order in which the family sees them."""

    request: Request
    infill: bool = False
    reading: Callable[[int], Ids] = np.arange
    """Number of tokens so far to the places to be read, in order."""

    @property
    def given(self) -> int:
        return len(self.request.tokens)


def prompted(text: str, recipe: TextRecipe, tokenizer: Tokenizer, seed: int) -> Canvas:
    """Go on from ``text`` by ``sampler.length`` tokens. Raises UserError where both do not fit into the context."""
    tokens = tokenizer.opened(text)
    _fits("prompt", len(tokens), recipe.sampler.length, recipe)
    return Canvas(Request(tokens, recipe.sampler.length, seed))


def filled(text: str, recipe: TextRecipe, tokenizer: Tokenizer, seed: int) -> Canvas:
    """Fill the gaps of ``text``, written ``<mask>`` or ``<mask:12>`` for one of 12 tokens.

    A masked model fills any number of gaps, exactly as long as they are; an autoregressive one fills a single gap by
    fill-in-the-middle, the number being the most it may write. Raises UserError for a text without a gap or of more than the family
    can fill, and where it does not fit into the context.
    """
    texts, sizes = GAP.split(text)[::2], [int(n) if n else None for n in GAP.findall(text)]
    if not sizes:
        raise UserError("infill", "no gap in the text", "write <mask> where text is missing, or <mask:12> for 12 tokens")
    if 0 in sizes:
        raise UserError("infill", "got <mask:0>", "ask for at least one token")
    if isinstance(recipe, AutoregressiveRecipe):
        return _middle([tokenizer.encode(piece) for piece in texts], sizes, recipe, tokenizer.vocabulary, seed)
    v = tokenizer.vocabulary
    parts: list[Any] = [tokenizer.opened(texts[0])]
    for size, piece in zip(sizes, texts[1:], strict=True):
        parts += [np.full(size or GAP_TOKENS, v.mask), tokenizer.encode(piece)]
    tokens = np.concatenate(parts).astype(np.int64)
    _fits("infill", len(tokens), 0, recipe)
    return Canvas(Request(tokens, 0, seed), infill=True)


def _middle(pieces: list[Ids], sizes: list[int | None], recipe: AutoregressiveRecipe, v: Vocabulary, seed: int) -> Canvas:
    if len(sizes) > 1:
        raise UserError("infill", f"{len(sizes)} gaps, an autoregressive model fills one", "ask for one at a time, or use a discrete run")
    if not recipe.objective.fim_rate:
        raise UserError("infill", "this model was trained with objective.fim_rate = 0", "train with 0.1, or use a discrete run")
    prefix, suffix = pieces
    tokens, length = fim.prompt(prefix, suffix, v), sizes[0] or recipe.sampler.length
    _fits("infill", len(tokens), length, recipe)
    before = np.arange(len(prefix)) + 2  # start and the prefix sentinel come first
    after = np.arange(len(suffix)) + 3 + len(prefix)

    def reading(count: int) -> Ids:
        return np.concatenate([before, np.arange(len(tokens), count), after])

    return Canvas(Request(tokens, length, seed), infill=True, reading=reading)


def _fits(field: str, given: int, length: int, recipe: TextRecipe) -> None:
    context = recipe.data.context
    if isinstance(recipe, DiscreteRecipe) and (sliding := recipe.sampler.context):
        if sliding > context:
            raise UserError("sampler.context", f"got {sliding}, the model's context is {context}", f"take at most {context}")
        return
    if given + length <= context:
        return
    room = context - given
    problem = f"{given} tokens" + (f" and {length} new ones" if length else "") + f", the model's context is {context}"
    raise UserError(field, problem, f"shorten it, or take --sampler.length {room}" if length and room > 0 else "shorten it")
