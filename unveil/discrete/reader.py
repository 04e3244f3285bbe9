"""How a network reads noisy text in training and when it is scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unveil.nn.block_diffusion import two_stream
from unveil.nn.layout import Annealed
from unveil.nn.packed import Packed


@dataclass(frozen=True)
class Reader:
    """Hidden states of noisy text.

    block: tokens of a block that sees itself noisy and what precedes it clean (BD3-LM); 0 where the noisy text alone is read.
    told: the network is given the total noise sigma.
    layout: in place of the network's own, while attention is annealed.
    """

    block: int = 0
    told: bool = False
    layout: Annealed | None = None

    def __call__(self, model: Any, noisy: Packed, clean_T: Tensor, sigma_T: Tensor) -> Tensor:
        """``[T, D]``. ``clean_T`` are the tokens without noise, ``sigma_T`` the total noise at each."""
        if self.block:
            return two_stream(model, noisy, clean_T, self.block)
        if self.layout is not None:
            return model(noisy, sigma_T.float() if self.told else None, self.layout.to(noisy.tokens_T.device))
        return model(noisy, sigma_T.float()) if self.told else model(noisy)


WHOLE = Reader()
"""The noisy text alone, and nothing told."""
