"""Steps of a score model (SEDD; Lou et al. 2024, arXiv 2310.16834): which token each place jumps to, all places at once.

The network gives log s_y, s_y = p_sigma(y) / p_sigma(x) for every token y that may stand in the place of x, 0 at y = x. ``change`` is the
total noise that a step takes away, sigma_t - sigma_s. M places, V vocabulary, N tokens of the chain. All is float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unveil.config import MaskedSamplerConfig
from unveil.data.noise import generator
from unveil.discrete.allowed import Model, check
from unveil.discrete.canvas import Canvas, MaskedState
from unveil.discrete.context import Whole
from unveil.discrete.level import MOST
from unveil.discrete.process import Schedule, sigma
from unveil.discrete.window import windows
from unveil.errors import UserError
from unveil.family import Request, Snapshot
from unveil.nn.packed import Packed
from unveil.text.proposals import inverse_cdf

Array = np.ndarray[Any, Any]
LogScores = Callable[[Any, Packed, Tensor], Tensor]
"""``(model, batch, sigma_N) -> log s [T, V]``, minus infinity for tokens that are not of the chain."""


@dataclass(frozen=True)
class Chain:
    """What a step needs to know of the noise: the tokens ``states_N`` it moves among and, of the absorbing chain, the mask it ends in."""

    states_N: Tensor
    mask: int | None = None

    def leap(self, log_s_MV: Tensor, tokens_M: Tensor, change: float) -> Tensor:
        """Probabilities of one tau-leap (section 4.1, eq. 19): delta_x + change x the reverse rates, negative ones cut off."""
        rate_MV = change * log_s_MV.exp() * (1.0 if self.mask is not None else 1.0 / len(self.states_N))
        rate_MV.scatter_(-1, tokens_M[:, None], 0.0)
        stay_M1 = (1.0 - rate_MV.sum(-1, keepdim=True)).clamp_min(0.0)
        return rate_MV.scatter(-1, tokens_M[:, None], stay_M1)

    def tweedie(self, log_s_MV: Tensor, tokens_M: Tensor, change: float) -> Tensor:
        """Probabilities of the analytic step (section 4.2, eqs. 20 and 21): exact for a place alone, given the exact scores.

        ``exp(-change Q) s`` times the forward transition from y to x, both of one place.
        """
        s_MV, kept = log_s_MV.exp(), float(np.exp(-change))
        if self.mask is not None:
            s_MV = s_MV / kept
            s_MV[:, self.mask] += (1.0 - 1.0 / kept) * log_s_MV.exp().sum(-1)
            s_MV[:, self.states_N] *= -np.expm1(-change)
            return s_MV.clamp_min(0.0)  # rounding leaves tiny negatives
        spread = -np.expm1(-change) / len(self.states_N)
        s_MV = s_MV / kept
        s_MV[:, self.states_N] -= spread / kept * log_s_MV.exp().sum(-1, keepdim=True)
        transition_MV = kept * F.one_hot(tokens_M, log_s_MV.shape[-1]).double()
        transition_MV[:, self.states_N] += spread
        return (s_MV * transition_MV).clamp_min(0.0)


@dataclass(frozen=True)
class ScoreSampler:
    """Tau-leaping or analytic steps from time 1 to 0, the last one always analytic, and without a mask left.

    What is given stays. A token's ``committed_at`` is the step of its last jump. Under the uniform chain what is unknown starts as a
    random token.

    Args:
        log_scores: the network's output at noise levels sigma, as ``LogScores`` says.
        chain: what the noise does.
        schedule: alpha(t), for the levels.
        mask: id of what is to be uncovered in a request.
        config: as ``MaskedSampler`` takes it. A stop string ends nothing early: no token is sure to stand before the end.

    Raises:
        UserError: a setting out of its range, or settings that do not go together (``discrete.allowed``).
    """

    log_scores: LogScores
    chain: Chain
    schedule: Schedule
    mask: int
    config: MaskedSamplerConfig

    def __post_init__(self) -> None:
        check(self.config, Model(uniform=self.chain.mask is None, score=True))

    def begin(self, requests: Sequence[Request], model: Any = None) -> MaskedState:
        """A row per request. Raises UserError where nothing is to be uncovered."""
        return MaskedState([self._canvas(i, request) for i, request in enumerate(requests)], len(requests), Whole())

    def _canvas(self, index: int, request: Request) -> Canvas:
        tokens = np.concatenate([np.asarray(request.tokens, dtype=np.int64), np.full(max(request.length, 0), self.mask)])
        hidden = tokens == self.mask
        if not hidden.any():
            raise UserError("infill", "no mask and no new tokens asked for", "put a mask where text is missing, or set a length")
        if self.chain.mask is None:
            states = self.chain.states_N.cpu().numpy()
            tokens[hidden] = generator(request.seed, 0, 0, "sampler start").choice(states, int(hidden.sum()))
        confidence = np.where(hidden, 0.0, 1.0).astype(np.float32)
        fresh = len(tokens) if hidden[: len(request.tokens)].any() else len(request.tokens)
        plan = windows(hidden, 0, self.config.steps)
        return Canvas(index, request.seed, tokens, np.where(hidden, -1, 0), confidence, plan, fresh)

    def levels(self, row: Canvas) -> tuple[float, float]:
        """The step's total noise before and after; after the last none is left, whatever the schedule says of time 0."""
        clock = row.clock(0)
        before, after = sigma(self.schedule, torch.tensor(clock.times, dtype=torch.float64)).clamp_max(MOST).tolist()
        return before, 0.0 if clock.last else after

    @torch.no_grad()
    def step(self, model: Any, state: MaskedState) -> Snapshot:
        """Every row jumps once; rows that are done leave the state."""
        rows = state.rows
        if not rows:
            return Snapshot(state.step, [])
        levels = [self.levels(row) for row in rows]
        batch = Packed.of([torch.from_numpy(row.tokens) for row in rows])
        log_s_TV = self.log_scores(model, batch, torch.tensor([before for before, _ in levels], dtype=torch.float64)).double().cpu()
        pieces = zip(rows, levels, batch.split(log_s_TV), strict=True)
        moved = [self._jump(row, before - after, log_s) for row, (before, after), log_s in pieces]
        state.step += 1
        state.rows = [row for row in moved if not row.final]
        return Snapshot(state.step, [row.row() for row in moved])

    def _jump(self, row: Canvas, change: float, log_s_TV: Tensor) -> Canvas:
        hidden_T = row.windows.window_T >= 0
        at = np.flatnonzero(hidden_T if self.chain.mask is None else hidden_T & (row.tokens == self.mask))
        last = row.clock(0).last
        old_M, index_M = torch.from_numpy(row.tokens[at]), torch.from_numpy(at)
        kind = self.chain.leap if self.config.commit == "tau-leaping" and not last else self.chain.tweedie
        p_MV = kind(log_s_TV[index_M], old_M, change)
        if last and self.chain.mask is not None:
            p_MV[:, self.chain.mask] = 0.0
        uniforms_M = torch.from_numpy(generator(row.seed, row.step, 0, "sampler").random(len(at)))
        new_M = inverse_cdf(p_MV.log(), uniforms_M)
        sure_M = p_MV.gather(-1, new_M[:, None]).squeeze(-1) / p_MV.sum(-1)
        tokens, committed_at, confidence = row.tokens.copy(), row.committed_at.copy(), row.confidence.copy()
        jumped_M = (new_M != old_M).numpy() | (last & (row.committed_at[at] < 0))
        tokens[at] = new_M.numpy()
        committed_at[at[jumped_M]], confidence[at[jumped_M]] = row.step + 1, sure_M.numpy()[jumped_M]
        counts: dict[str, Any] = {"evaluations": row.evaluations + 1, "computed": row.computed + len(tokens)}
        counts |= {"step": row.step + 1, "inside": row.inside + 1, "window": row.window + last}
        return replace(row, tokens=tokens, committed_at=committed_at, confidence=confidence, **counts)
