"""What a sampler that speculates keeps of the rows it has read: caches of the trunk and of the depths that draft.

B rows, K depths, D width. A row of which the trunk has read L tokens is about to get token L. Depth k at place i wants token i + k, so a
draft leaves its last places behind with tokens that may fall: the next draft goes over a window of places again, from the first that
any depth saw with a draft. N = 2 K places are enough for K - 1 such, for the token drawn and for K drafts that stood.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unveil.nn import mtp
from unveil.nn.kv_cache import KVCache
from unveil.nn.packed import Packed


@dataclass
class Drafting:
    model: Any
    depths: int
    cache: KVCache
    """Of the trunk; ``lengths`` are the L."""
    ahead: KVCache
    """Of the depths, a layer for each; ``lengths`` are the first places of the window."""
    state_BND: Tensor
    """The trunk's states at the places of the window, from L on without meaning."""

    @staticmethod
    def read(model: Any, prompts: Sequence[Tensor], capacity: int, depths: int) -> tuple[Drafting, Tensor]:
        """Read all prompts in one pack; the hidden states ``[B, D]`` of their last tokens, too."""
        batch, rows = Packed.of(prompts), range(len(prompts))
        cache, ahead = model.new_cache(len(prompts), capacity), model.new_cache(len(prompts), capacity, depths)
        states = model.prefill_states(batch, cache, rows)
        mtp.prefill(model, batch, states, ahead, rows, depths)
        ahead.lengths = [max(0, n - depths) for n in batch.lengths]
        first_B = batch.cu_seqlens[:-1].long()
        window_BN = (first_B + _column(ahead.lengths, first_B))[:, None] + torch.arange(2 * depths, device=first_B.device)
        state_BND = mtp.carried(model, states)[window_BN.clamp(max=batch.size - 1)]
        return Drafting(model, depths, cache, ahead, state_BND), states[1][batch.cu_seqlens[1:].long() - 1]

    def draft(self, tokens_BL: np.ndarray[Any, Any], choose: Callable[[Tensor, int], Tensor]) -> Tensor:
        """The K tokens behind token L, ``[B, K]``.

        Args:
            tokens_BL: the rows, token L of each among them.
            choose: from hidden states ``[B, D]``, ready for the head, and the number of the draft (from 0) to the token drafted.
        """
        model, count = self.model, self.state_BND.shape[1]
        starts_B, lengths_B = np.array(self.ahead.lengths), np.array(self.cache.lengths)
        places = np.minimum(starts_B[:, None] + np.arange(1, count + self.depths + 1), tokens_BL.shape[1] - 1)
        strip = torch.from_numpy(tokens_BL[np.arange(len(places))[:, None], places]).to(self.state_BND.device)
        rows, last_B = torch.arange(len(strip), device=strip.device), torch.from_numpy(lengths_B - starts_B - 1).to(strip.device)
        state_BND, drafts = self.state_BND, []
        for number in range(self.depths):
            states = mtp.draft(model, number, state_BND, strip[:, number : number + count], self.ahead)
            drafts.append(choose(states[1][rows, last_B], number))
            if number + 1 < self.depths:
                strip[rows, last_B + number + 1] = drafts[-1]
                state_BND = mtp.carried(model, states)
        return torch.stack(drafts, dim=1)

    def extend(self, tokens_BM: Tensor) -> tuple[Tensor, Tensor]:
        """The trunk reads token L and the drafts: what ``cut`` wants of them, and their hidden states ``[B, K + 1, D]``."""
        states = self.model.extend(tokens_BM, self.cache)
        return mtp.carried(self.model, states), states[1]

    def cut(self, carried_BMD: Tensor, drafts_B: Sequence[int]) -> None:
        """Of what was just read token L and so many drafts stay."""
        read_B = [n - carried_BMD.shape[1] for n in self.cache.lengths]
        self.cache.cut([n + 1 + drafts for n, drafts in zip(read_B, drafts_B, strict=True)])
        before_B, self.ahead.lengths = self.ahead.lengths, [max(0, n + 1 - self.depths) for n in read_B]
        if self.depths == 1:  # the window is what was just read
            self.state_BND = carried_BMD
            return
        known = self.state_BND.shape[1]
        places_BN = _column(self.ahead.lengths, carried_BMD)[:, None] + torch.arange(known, device=carried_BMD.device)
        new_BN = places_BN - _column(read_B, carried_BMD)[:, None]
        index_BN = torch.where(new_BN < 0, places_BN - _column(before_B, carried_BMD)[:, None], known + new_BN)
        both_BXD = torch.cat((self.state_BND, carried_BMD), dim=1)
        index_BN = index_BN.clamp(max=both_BXD.shape[1] - 1)
        self.state_BND = both_BXD.gather(1, index_BN[..., None].expand(-1, -1, both_BXD.shape[2]))

    def select(self, rows: Sequence[int]) -> Drafting:
        index = torch.tensor(list(rows), dtype=torch.int64, device=self.state_BND.device)
        return replace(self, cache=self.cache.select(rows), ahead=self.ahead.select(rows), state_BND=self.state_BND[index])

    def join(self, other: Drafting) -> Drafting:
        state_BND = torch.cat((self.state_BND, other.state_BND))
        return replace(self, cache=self.cache.join(other.cache), ahead=self.ahead.join(other.ahead), state_BND=state_BND)


def _column(values: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=like.device)
