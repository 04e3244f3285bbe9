"""The ids a text family needs to know of its tokenizer, and nothing more: no torch, no text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Vocabulary:
    """Number of token ids and the ids of the special tokens, -1 for one that a foreign tokenizer does not have.

    size: ids run over 0 .. size-1, specials included.
    start: begins every sequence and is never noised. end: follows the last token of a document.
    mask: the absorbing state of masked diffusion. prefix, suffix, middle: the sentinels of fill-in-the-middle (Bavarian et al. 2022).

    Raises ValueError when the ids are not distinct (but start and end, which are one token in GPT-2) or lie outside 0 .. size-1.
    """

    size: int
    start: int
    end: int
    mask: int
    prefix: int
    suffix: int
    middle: int

    def __post_init__(self) -> None:
        given = [i for i in (self.end, self.mask, self.prefix, self.suffix, self.middle) if i != -1]
        given += [self.start] if self.start not in (-1, self.end) else []
        if len(set(given)) != len(given) or min(given, default=0) < 0 or max(given, default=0) >= self.size:
            raise ValueError(f"the special ids must be distinct and lie in 0..{self.size - 1}, got {self.specials}")

    @property
    def specials(self) -> tuple[int, ...]:
        """Those that there are, each once."""
        ids = (self.start, self.end, self.mask, self.prefix, self.suffix, self.middle)
        return tuple(dict.fromkeys(i for i in ids if i != -1))
