"""How text is uncovered: one engine for every masked model.

A step asks the network about the open masks of every live row in one pass, scores them (``order``), commits some (``commit``), covers
some again (``remask``) and opens the next window where one is done (``window``). What a row becomes depends on its request alone: all
decisions are made per row, in float64, with ties to the lowest index, and a row's random numbers are keyed by its seed and its own step.
So it is the same alone, in any batch, and after ``select`` and ``join``.

B rows, T tokens, M masks asked about, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unveil.config import MaskedSamplerConfig
from unveil.data.noise import generator
from unveil.discrete.allowed import Model, check, check_cache
from unveil.discrete.cached import Cached
from unveil.discrete.canvas import Canvas, MaskedState
from unveil.discrete.commit import chosen, revealed
from unveil.discrete.context import Context, Reading, Whole
from unveil.discrete.denoiser import Subs
from unveil.discrete.guidance import guided, unconditional
from unveil.discrete.level import Level
from unveil.discrete.order import ORDERS, Proposals, first, waiting
from unveil.discrete.process import Linear, Schedule
from unveil.discrete.propose import propose
from unveil.discrete.remask import doubted, rates
from unveil.discrete.window import windows
from unveil.errors import UserError
from unveil.family import Request, Snapshot

Array = np.ndarray[Any, Any]
LINEAR, FULL = Linear(), Model()
SILENT = generator(0, 0, 0, "nobody draws from this")
"""In the place of a row's random numbers, where its settings ask for none: making them takes longer than all else a row needs."""


@dataclass(frozen=True)
class Ask:
    """What a row wants to know in a step: ``at`` are places, ``score`` their order where it does not depend on the answer; ``take`` if all
    of them are committed whatever it is."""

    at: Array
    score: Array | None = None
    take: bool = False


@dataclass(frozen=True)
class MaskedSampler:
    """Proposal x order x commit rule x window x cache, remasking and guidance over the proposals of a masked model.

    Args:
        denoiser: which ids are no data.
        end: id of the end token, which ``config.end`` has rules for.
        config: ``config.length`` and ``config.stop`` are the caller's to put into requests and ``stop``.
        stop: new tokens of a continuation, up to the first mask, to whether the text ends there; such a row leaves early.
        keep: ids that are never masked (the start token).
        schedule: of the masks, for the rules that go by time.
        traits: of the network and its chain.

    Raises:
        UserError: a setting out of its range, or settings that do not go together (``discrete.allowed``).
    """

    denoiser: Subs
    end: int
    config: MaskedSamplerConfig
    stop: Callable[[Sequence[int]], bool] | None = None
    keep: tuple[int, ...] = ()
    schedule: Schedule = LINEAR
    traits: Model = FULL

    def __post_init__(self) -> None:
        check(self.config, self.traits)

    def begin(self, requests: Sequence[Request], model: Any = None) -> MaskedState:
        """A row per request: its tokens and ``length`` masks after them. ``model`` is asked whether it can have the cache.

        Raises:
            UserError: nothing to uncover (an infill without a mask), fewer steps than windows, a window that the context cannot hold, or
                a cache that the model cannot have.
        """
        check_cache(self.config, model)
        rows = [self._canvas(i, request) for i, request in enumerate(requests)]
        return MaskedState(rows, len(rows), self._context(rows, model))

    def _context(self, rows: Sequence[Canvas], model: Any) -> Context:
        if self.config.cache == "none":
            level = Level(self.schedule, self.config.commit, self.denoiser.mask, self.keep) if self.traits.told else None
            return Whole(self.traits.block, self.config.context, level)
        return Cached.of(self.config.cache, self.traits.block, model, [len(row.tokens) for row in rows])

    def _canvas(self, index: int, request: Request) -> Canvas:
        given = np.asarray(request.tokens, dtype=np.int64)
        tokens = np.concatenate([given, np.full(max(request.length, 0), self.denoiser.mask)])
        hidden = tokens == self.denoiser.mask
        if not hidden.any():
            raise UserError("infill", "no mask and no new tokens asked for", "put a mask where text is missing, or set a length")
        plan = windows(hidden, self.config.window, self.config.steps, self.traits.block)
        widest = max(end - at for at, end in zip(plan.first, plan.end, strict=True))
        if self.config.context and widest > self.config.context:
            raise UserError(
                "sampler.context", f"got {self.config.context}, a window spans {widest} tokens", "take a smaller window or more context"
            )
        fresh = len(tokens) if hidden[: len(given)].any() else len(given)
        if request.negative is not None and fresh == len(tokens):
            raise UserError("sampler.negative", "given with an infill", "guidance by another prompt is for continuations: leave it out")
        confidence = np.where(hidden, 0.0, 1.0).astype(np.float32)
        return Canvas(index, request.seed, tokens, np.where(hidden, -1, 0), confidence, plan, fresh, request.negative)

    @torch.no_grad()
    def step(self, model: Any, state: MaskedState) -> Snapshot:
        """Every row moves on by one step; rows that are done leave the state."""
        if not state.rows:
            return Snapshot(state.step, [])
        drawn = self._drawn
        noise = [generator(row.seed, row.step, 0, "sampler") if drawn else SILENT for row in state.rows]
        asks = [self._ask(row, rng) for row, rng in zip(state.rows, noise, strict=True)]
        read, proposals = self._proposals(model, state, asks, noise)
        costs = zip(read.computed_B, read.reused_B, strict=True)
        moved = [self._move(*each) for each in zip(state.rows, asks, proposals, noise, costs, strict=True)]
        state.step += 1
        kept = [i for i, row in enumerate(moved) if not row.final]
        state.context = state.context if len(kept) == len(moved) else state.context.select(kept)
        state.rows = [moved[i] for i in kept]
        return Snapshot(state.step, [row.row() for row in moved])

    @cached_property
    def _drawn(self) -> bool:
        config = self.config
        return config.temperature > 0 or config.order == "random" or config.remask == "remdm"  # the blind rules want a random order

    @cached_property
    def _allowed(self) -> Subs:
        forbidden = (self.end,) if self.config.end == "forbid" else ()
        return replace(self.denoiser, never=(*self.denoiser.never, *forbidden))

    def _ask(self, row: Canvas, rng: np.random.Generator) -> Ask:
        """Where the row's choice is random the network is asked about what will be committed, and where that is nothing, not at all."""
        open_M, config = row.open_M, self.config
        clock = row.clock(len(open_M))
        if config.commit == "first-hitting":
            return Ask(open_M[first(rng.random(len(open_M)), 1)], take=True)
        if config.commit == "ancestral":
            return Ask(open_M[revealed(rng.random(len(open_M)), self._rates(row)[0])], take=True)
        if config.order != "random":
            return Ask(open_M)
        score_M = rng.random(len(open_M))
        if config.commit == "quota" and config.end != "last":
            return Ask(open_M[first(score_M, clock.due)], take=True)
        return Ask(open_M, score_M)

    def _rates(self, row: Canvas) -> tuple[float, float]:
        """Probabilities to uncover a mask and to cover a token again in this step of an ancestral sampler."""
        clock = row.clock(0)
        mask_t, mask_s = self.schedule.mask_rate(torch.tensor(clock.times, dtype=torch.float64)).tolist()
        mask_s = 0.0 if clock.last else mask_s  # whatever noise a schedule leaves at time 0
        return rates(mask_t, mask_s, self.config.remask_rate if self.config.remask == "remdm" else 0.0)

    def _proposals(
        self, model: Any, state: MaskedState, asks: Sequence[Ask], noise: Sequence[np.random.Generator]
    ) -> tuple[Reading, list[Proposals]]:
        counts = [len(ask.at) for ask in asks]
        nothing = [0] * len(counts)
        if not any(counts):
            return Reading(torch.empty(0), nothing, nothing), [Proposals(*[np.zeros(0)] * 5) for _ in counts]
        read, logits_MV = self._logits(model, state, [ask.at for ask in asks])
        logits_MV = self._allowed.restrict(logits_MV.double())
        at_random = self.config.temperature > 0
        uniforms_M = np.concatenate([rng.random(n) for rng, n in zip(noise, counts, strict=True)]) if at_random else np.zeros(0)
        proposals = propose(logits_MV, self.config, uniforms_M, counts)
        return read, [p.last(p.tokens_M == self.end) for p in proposals] if self.config.end == "last" else proposals

    def _logits(self, model: Any, state: MaskedState, places: list[Array]) -> tuple[Reading, Tensor]:
        rows, strength = state.rows, self.config.guidance
        if not strength:
            read = state.context.read(model, rows, places)
            return read, model.head(read.hidden_MD)
        twins, shifted = [], []
        for row, at in zip(rows, places, strict=True):
            tokens, shift = unconditional(row, self.denoiser.mask, self.keep)
            twins.append(replace(row, tokens=tokens))
            shifted.append(at + shift)
        both = state.context.read(model, rows + twins, places + shifted)
        conditional_MV, unconditional_MV = model.head(both.hidden_MD).double().chunk(2)
        computed = [a + b for a, b in zip(both.computed_B[: len(rows)], both.computed_B[len(rows) :], strict=True)]
        return Reading(both.hidden_MD, computed, [0] * len(rows)), guided(conditional_MV, unconditional_MV, strength)

    def _move(self, row: Canvas, ask: Ask, p: Proposals, rng: np.random.Generator, cost: tuple[int, int]) -> Canvas:
        """The row with what this step commits and covers again; ``cost`` is the tokens computed and reused."""
        config, chosen_M = self.config, np.arange(len(ask.at))
        if not ask.take:
            score_M = ORDERS[config.order](p) if ask.score is None else waiting(ask.score, p)
            chosen_M = chosen(score_M, p, row.clock(len(ask.at)), config)
        at = ask.at[chosen_M]
        tokens, committed_at, confidence = row.tokens.copy(), row.committed_at.copy(), row.confidence.copy()
        tokens[at], committed_at[at], confidence[at] = p.tokens_M[chosen_M], row.step + 1, p.probability_M[chosen_M]
        counts: dict[str, Any] = {"step": row.step + 1, "inside": row.inside + 1}
        counts["evaluations"] = row.evaluations + ((2 if config.guidance else 1) if cost[0] else 0)
        counts |= {"computed": row.computed + cost[0], "reused": row.reused + cost[1]}
        now = replace(row, tokens=tokens, committed_at=committed_at, confidence=confidence, **counts)
        now = self._covered(row, now, rng)
        over = now.inside >= row.windows.steps[row.window] if config.remask == "remdm" else not len(now.open_M)
        return self._stopped(row, replace(now, window=row.window + 1, inside=0) if over else now)

    def _covered(self, before: Canvas, now: Canvas, rng: np.random.Generator) -> Canvas:
        """The row with what its remasking covers again, of the tokens it had committed before this step."""
        if self.config.remask == "none":
            return now
        old_T = before.inside_T & (before.committed_at > 0)
        if self.config.remask == "remdm":
            at = np.flatnonzero(old_T)
            at = at[revealed(rng.random(len(at)), self._rates(before)[1])]
            return _cover(now, at, self.denoiser.mask)
        steps = before.windows.steps[before.window], before.windows.masks[before.window]
        if now.inside >= min(steps) or not len(now.open_M):
            return now  # the last step leaves no mask
        returned = np.zeros_like(old_T) if before.returned is None else before.returned
        at = doubted(before.confidence, old_T & ~returned, self.config.remask_below)
        returned = returned.copy()
        returned[at] = True
        return replace(_cover(now, at, self.denoiser.mask), returned=returned)

    def _stopped(self, before: Canvas, now: Canvas) -> Canvas:
        """The row, marked as stopped where its text without a gap grew over a stop string, or where a window before the last is done and
        holds an end token: what follows it is never shown."""
        if self.stop is None and now.window == before.window:
            return now
        known, grown = before.without_gap(), now.without_gap()
        fresh = now.tokens[now.fresh :].tolist()
        stopped = self.stop is not None and any(self.stop(fresh[:n]) for n in range(known + 1, grown + 1))
        return replace(now, stopped=stopped or (now.window > before.window and self.end in fresh[:grown]))


def _cover(row: Canvas, at: Array, mask: int) -> Canvas:
    tokens, committed_at, confidence = row.tokens.copy(), row.committed_at.copy(), row.confidence.copy()
    tokens[at], committed_at[at], confidence[at] = mask, -1, 0.0
    return replace(row, tokens=tokens, committed_at=committed_at, confidence=confidence)
