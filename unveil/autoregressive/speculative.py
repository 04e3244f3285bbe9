"""Self-speculation: the depths of multi-token prediction draft tokens, and one pass of the trunk over them says which stand.

Each step draws a row's next token, as without drafts, and then commits the drafts behind it that stand: 1 to K + 1 tokens for one pass.
Lossless: what is written has the law of the trunk alone, and at temperature 0 it is the same text (DeepSeek-V3, section 5.4.3; the rule is
``verify``). A row's randomness belongs to its seed and to the places of its tokens, so neighbours change nothing here either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from unveil.autoregressive.drafting import Drafting
from unveil.autoregressive.sampler import Array, Canvases, NextTokenSampler, Rows, State, probability
from unveil.autoregressive.verify import most_probable, verify
from unveil.data.noise import generator
from unveil.errors import UserError
from unveil.family import Request, Row, Snapshot
from unveil.text.proposals import propose


@dataclass(frozen=True)
class Ledger(Rows):
    """What drafting came to, and the uniforms that it takes beside those of ``Canvases``."""

    evaluations_B: Array
    """Passes of the trunk, the prompt's among them."""
    tested_BK: Array
    """By depth, the drafts before which all others stood."""
    stood_BK: Array
    drafting_BL: Array
    judging_BL: Array

    @staticmethod
    def of(requests: Sequence[Request], canvases: Canvases, depths: int) -> Ledger:
        none = np.zeros((len(requests), depths), dtype=np.int64)
        # drafts may reach beyond the last token
        drafting, judging = (np.zeros((len(requests), canvases.tokens_BL.shape[1] + depths)) for _ in range(2))
        for row, request in enumerate(requests):
            places = slice(canvases.prompt_B[row], canvases.limit_B[row])
            drafting[row, places] = generator(request.seed, 0, 0, "draft").random(request.length)
            judging[row, places] = generator(request.seed, 0, 0, "judge").random(request.length)
        return Ledger(np.ones(len(requests), dtype=np.int64), none, none.copy(), drafting, judging)

    def told(self) -> list[dict[str, Any]]:
        """Of each row, what its ``Row`` says of this."""
        drafts = np.stack((self.tested_BK, self.stood_BK), axis=2).tolist()
        return [{"evaluations": n, "drafts": tuple(map(tuple, each))} for n, each in zip(self.evaluations_B.tolist(), drafts, strict=True)]

    def add(self, stood_B: Array) -> None:
        depth = np.arange(self.tested_BK.shape[1])
        self.evaluations_B[:] += 1
        self.tested_BK[:] += depth <= stood_B[:, None]
        self.stood_BK[:] += depth < stood_B[:, None]


@dataclass(kw_only=True)
class SpeculativeState(State):
    """``context`` is a ``Drafting``; ``next_BV`` are the logits of what each row's next token is drawn from."""

    next_BV: Tensor
    ledger: Ledger

    def keep(self, rows: Sequence[int]) -> None:
        super().keep(rows)
        self.next_BV = self.next_BV[torch.as_tensor(rows, dtype=torch.int64, device=self.next_BV.device)]
        self.ledger = self.ledger.select(rows)

    def join(self, other: Any) -> SpeculativeState:
        next_BV, ledger = torch.cat([self.next_BV, other.next_BV]), self.ledger.join(other.ledger)
        return SpeculativeState(**vars(super().join(other)), next_BV=next_BV, ledger=ledger)


class SpeculativeSampler(NextTokenSampler):
    """``NextTokenSampler`` with ``config.speculate`` drafts a step, for a ``Transformer`` with as many depths."""

    @torch.no_grad()
    def begin(self, model: nn.Module, requests: Sequence[Request]) -> SpeculativeState:
        """As of ``NextTokenSampler``. Raises UserError too where the model has too few depths."""
        drafts, depths = self.config.speculate, len(getattr(model, "mtp", ()))
        if drafts > depths:
            raise UserError("sampler.speculate", f"got {drafts}, the model has {depths} depths that draft", f"take at most {depths}")
        state: Any = super().begin(model, requests)
        ledger = Ledger.of(requests, state.canvases, drafts)
        return SpeculativeState(**vars(state), next_BV=propose(state.logits_BV, self.config, state.seen_BV), ledger=ledger)

    def _read(self, model: Any, prompts: Sequence[Array], capacity: int, device: torch.device) -> tuple[Any, Tensor]:
        tokens = [torch.as_tensor(p, dtype=torch.int64, device=device) for p in prompts]
        return Drafting.read(model, tokens, capacity + self.config.speculate, self.config.speculate)

    @torch.no_grad()
    def step(self, model: nn.Module, state: SpeculativeState) -> Snapshot:  # type: ignore[override]
        """The next token of every row and the drafts behind it that stand; rows leave the state with the token that ends them."""
        state.steps += 1
        if not state.live:
            return Snapshot(state.steps, [])
        canvases = state.canvases
        tokens_B = self._pick(state.next_BV, canvases.uniforms_BL[np.arange(state.live), canvases.length_B])
        confidence_B = probability(state.logits_BV, tokens_B)
        ended_B = self._commit(state, tokens_B[:, None], confidence_B[:, None], np.ones(state.live, dtype=np.int64))
        done: list[Row] = []
        if ended_B.any():
            done = [row for row in state.canvases.rows(ended_B, state.ledger.told()) if row.final]
            live = np.flatnonzero(~ended_B).tolist()
            state.keep(live)
            tokens_B = tokens_B[live]
        if not state.live:
            return Snapshot(state.steps, done)
        ended_B = self._speculate(model, state, tokens_B)
        snapshot = Snapshot(state.steps, done + state.canvases.rows(ended_B, state.ledger.told()))
        if ended_B.any():
            state.keep(np.flatnonzero(~ended_B).tolist())
        return snapshot

    def _speculate(self, model: Any, state: SpeculativeState, tokens_B: Tensor) -> Array:
        """Draft behind ``tokens_B``, the newest of each row, verify, and commit what stands; which rows that ends."""
        context, canvases, greedy = cast(Drafting, state.context), state.canvases, self.config.temperature == 0
        places_BK = canvases.length_B[:, None] + np.arange(self.config.speculate)
        draws_BK = np.take_along_axis(state.ledger.drafting_BL, places_BK, axis=1)
        seen, proposals = [_with(state.seen_BV, tokens_B)], []

        def choose(hidden_BD: Tensor, number: int) -> Tensor:
            proposals.append(propose(self._logits(model, hidden_BD), self.config, seen[-1]))
            drafts_B = self._pick(proposals[-1], draws_BK[:, number])
            seen.append(_with(seen[-1], drafts_B))
            return drafts_B

        drafts_BK = context.draft(canvases.tokens_BL, choose)
        carried_BMD, hidden_BMD = context.extend(torch.cat((tokens_B[:, None], drafts_BK), dim=1))
        logits_BMV = self._logits(model, hidden_BMD)
        seen_BMV = None if state.seen_BV is None else torch.stack(seen, dim=1)  # type: ignore[arg-type]
        p_BMV = propose(logits_BMV, self.config, seen_BMV)
        if greedy:
            count_B, state.next_BV = most_probable(p_BMV, drafts_BK)
        else:
            uniforms_BK = np.take_along_axis(state.ledger.judging_BL, places_BK, axis=1)
            judges = torch.from_numpy(uniforms_BK).to(drafts_BK.device)
            count_B, state.next_BV = verify(p_BMV, torch.stack(proposals, dim=1), drafts_BK, judges)
        stood_B = count_B.cpu().numpy()
        ended_B = self._commit(state, drafts_BK, probability(logits_BMV[:, :-1], drafts_BK), stood_B)
        state.ledger.add(stood_B)
        context.cut(carried_BMD, stood_B.tolist())
        rows = torch.arange(len(count_B), device=count_B.device)
        state.logits_BV = logits_BMV[rows, count_B]
        state.seen_BV = None if seen_BMV is None else seen_BMV[rows, count_B]
        return ended_B

    def _commit(self, state: SpeculativeState, tokens_BN: Tensor, confidence_BN: Tensor, counts_B: Array) -> Array:
        """Append the first ``counts_B`` tokens of each row, or fewer where one ends it; which rows end."""
        canvases = state.canvases
        counts_B = np.minimum(counts_B, canvases.limit_B - canvases.length_B)
        canvases.write(tokens_BN.cpu().numpy(), confidence_BN.cpu().numpy(), counts_B, state.ledger.evaluations_B)
        ended_B = np.zeros(len(counts_B), dtype=bool)
        for row, count in enumerate(counts_B.tolist()):
            tokens, prompt, limit = canvases.tokens_BL[row], canvases.prompt_B[row], canvases.limit_B[row]
            for n in range(canvases.length_B[row] + 1, canvases.length_B[row] + count + 1):
                canvases.length_B[row] = n
                if tokens[n - 1] == self.vocabulary.end or n == limit or (self.stop is not None and self.stop(tokens[prompt:n])):
                    ended_B[row] = True
                    break
        return ended_B


def _with(seen_BV: Tensor | None, tokens_B: Tensor) -> Tensor | None:
    return None if seen_BV is None else seen_BV.scatter(1, tokens_B[:, None], True)


def acceptance(rows: Sequence[Row]) -> list[float]:
    """Share of the drafts that stood, by how far ahead they were; 0 where none was put to the test."""
    totals = np.sum([row.drafts for row in rows if row.drafts], axis=0)
    return [float(stood / max(tested, 1)) for tested, stood in totals]
