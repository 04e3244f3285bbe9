"""The noise of a sampler: every draw is a pure function of (seed, number of the draw), whatever the batch, the device and the dtype.

It comes from torch's CPU generator, many draws of a sample at once and in float32: one by one they would cost more than the rest of a
solver's step. A float64 state gets the same noise, widened.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

BLOCK, DRAWS = 2**15, 32
"""Values and draws of a sample made at once, at most (but one draw). Constants: a draw must not depend on how many steps there are."""

_GOLDEN = 0x9E3779B9
"""2^32 / golden ratio, odd: the multiples of the first n integers are nowhere closer than about 2^32 / (2.2 n) to each other."""


def stream(seed: int, index: int) -> torch.Generator:
    """Number ``index`` of a seed's streams.

    The generator tells 2^32 streams apart. At one index seeds below 2^32 all have their own, and so do, at the first 100 indices together,
    seeds from any range of 10 million; the upper half of a larger seed picks another place to begin.
    """
    above = (seed >> 32) % 2**32
    return torch.Generator().manual_seed((seed + (index + above) * _GOLDEN) % 2**32)


def start(seed: int, shape: Sequence[int]) -> Tensor:
    """Where a sample begins: float32 standard normals of its shape."""
    return torch.empty(tuple(shape)).normal_(generator=stream(seed, 0))


class Noise:
    """The streams of the rows of a state, each at its own draw.

    Args:
        seeds: one per row.
        like: the state ``[B, *shape]``, whose dtype and device a draw gets.
    """

    def __init__(self, seeds: Sequence[int], like: Tensor) -> None:
        self.seeds, self.drawn = list(seeds), [0] * len(seeds)
        self._depth = max(1, min(DRAWS, BLOCK // max(like[0].numel(), 1)))
        self._held = [-1] * len(self.seeds)
        """Which block of its draws each row holds."""
        self._block = like.new_empty((len(self.seeds), 0, *like.shape[1:]))
        """``[B, depth, *shape]``, made at the first draw: a deterministic solver never needs it."""

    def draw(self) -> Tensor:
        """The next draw of every row, ``[B, *shape]``. Not to be written to."""
        places = [divmod(drawn, self._depth) for drawn in self.drawn]
        if stale := [row for row, (block, _) in enumerate(places) if block != self._held[row]]:
            self._fill(stale, [places[row][0] for row in stale])
        self.drawn = [drawn + 1 for drawn in self.drawn]
        first = places[0][1]
        if all(offset == first for _, offset in places):
            return self._block[:, first]
        return self._block[list(range(len(places))), [offset for _, offset in places]]

    def _fill(self, rows: Sequence[int], blocks: Sequence[int]) -> None:
        made = torch.empty((len(rows), self._depth, *self._block.shape[2:]))
        for place, (row, block) in enumerate(zip(rows, blocks, strict=True)):
            made[place].normal_(generator=stream(self.seeds[row], block + 1))
            self._held[row] = block
        # a new tensor always: draws handed out before are views of the old one
        if len(rows) == len(self.seeds):
            self._block = made.to(self._block)
        else:
            fresh = self._block.new_zeros((len(self.seeds), *made.shape[1:]))
            fresh[:, : self._block.shape[1]] = self._block
            fresh[list(rows)] = made.to(fresh)
            self._block = fresh

    def select(self, rows: Sequence[int]) -> Noise:
        """The streams of these rows, independent of this one's."""
        kept = copy(self)
        kept.seeds, kept.drawn, kept._held = ([values[row] for row in rows] for values in (self.seeds, self.drawn, self._held))
        kept._block = self._block[list(rows)]
        return kept

    def join(self, other: Noise) -> Noise:
        """The rows of both."""
        both = copy(self)
        both.seeds, both.drawn, both._held = self.seeds + other.seeds, self.drawn + other.drawn, self._held + other._held
        blocks = [self._block, other._block]
        if blocks[0].shape[1] != blocks[1].shape[1]:  # one side has made none yet: both make theirs again when they are asked for
            blocks = [block[:, :0] for block in blocks]
            both._held = [-1] * len(both.seeds)
        both._block = torch.cat(blocks)
        return both
