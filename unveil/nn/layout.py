"""Who may attend to whom within a sequence: small objects with one predicate that dense masks, tiles and FlexAttention share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Layout(Protocol):
    """A rule over positions of one sequence; sequences never see each other."""

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        """Boolean: may the query at position ``q`` see the key at position ``k``? Broadcasts."""


@dataclass(frozen=True)
class Causal:
    """Itself and what came before; with ``window`` at most that many tokens before."""

    window: int = 0

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        seen = q >= k
        return seen & (q - k <= self.window) if self.window else seen


@dataclass(frozen=True)
class Bidirectional:
    """The whole sequence; with ``window`` at most that many tokens on either side."""

    window: int = 0

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        near = (q - k).abs()
        return near <= self.window if self.window else near >= 0


@dataclass(frozen=True)
class BlockCausal:
    """Its own block of ``block`` tokens, whole, and every block before it (Arriola et al. 2025)."""

    block: int

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        return q // self.block >= k // self.block
