"""The ids a text family needs to know of its tokenizer, and nothing more: no torch, no text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Vocabulary:
    """Number of token ids and the ids of the six special tokens.

    size: ids run over 0 .. size-1, specials included.
    start: begins every sequence and is never noised. end: follows the last token of a document.
    mask: the absorbing state of masked diffusion. prefix, suffix, middle: the sentinels of fill-in-the-middle (Bavarian et al. 2022).

    Raises ValueError when the six ids are not distinct or lie outside 0 .. size-1.
    """

    size: int
    start: int
    end: int
    mask: int
    prefix: int
    suffix: int
    middle: int

    def __post_init__(self) -> None:
        if len(set(self.specials)) != 6 or min(self.specials) < 0 or max(self.specials) >= self.size:
            raise ValueError(f"the six special ids must be distinct and lie in 0..{self.size - 1}, got {self.specials}")

    @property
    def specials(self) -> tuple[int, int, int, int, int, int]:
        return (self.start, self.end, self.mask, self.prefix, self.suffix, self.middle)
