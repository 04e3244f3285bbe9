"""Who may attend to whom within a sequence: small objects with one predicate that dense masks, tiles and FlexAttention share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
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


@dataclass(frozen=True, eq=False)
class Annealed:
    """On the way from causal to bidirectional: what came before, and what comes after where an edge to it is open (DiffuLLaMA; Gong et al.
    2024, section 3.2).

    ``open_PP`` says for the query at row i and the key at column j of every P x P tile whether the edge is open; it repeats beyond P
    tokens, so that no mask grows with a sequence. As a tensor it is data: another pattern needs no other graph.
    """

    open_PP: Tensor

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        period = len(self.open_PP)
        return (q >= k) | self.open_PP[q % period, k % period]

    def to(self, device: torch.device | str) -> Annealed:
        return Annealed(self.open_PP.to(device))


@dataclass(frozen=True)
class BlockCausal:
    """Its own block of ``block`` tokens, whole, and every block before it (Arriola et al. 2025)."""

    block: int

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        return q // self.block >= k // self.block


@dataclass(frozen=True)
class BlockDiffusion:
    """A noisy and a clean copy of one sequence, read together (Arriola et al. 2025, section 3.2).

    A noisy token sees its own noisy block and the clean blocks before it; a clean token sees clean tokens alone, block-causally. So
    noise is never seen from outside its block.
    """

    block: int

    def allows(self, q: Tensor, k: Tensor, q_clean: Tensor | bool, k_clean: Tensor | bool) -> Tensor:
        """Boolean: may the query at position ``q`` of its copy see the key at position ``k`` of its own? Broadcasts."""
        own, behind = q // self.block == k // self.block, q // self.block > k // self.block
        return own & (q_clean == k_clean) | behind & torch.as_tensor(k_clean, device=k.device)
