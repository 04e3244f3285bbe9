"""How text is uncovered: propose a token for every mask, commit the few that come first in the order, repeat (LLaDA, algorithm 5).

Rows of different lengths go through the network end to end in one pack. A row's randomness depends on its seed and its own step
alone, so it is the same alone, in any batch and after any split or join.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unveil.config import MaskedSamplerConfig
from unveil.data.noise import generator
from unveil.discrete.denoiser import Subs
from unveil.errors import UserError
from unveil.family import Request, Row, Snapshot
from unveil.nn.packed import Packed
from unveil.text.proposals import draw, forbid

Array = np.ndarray[Any, Any]


def quota(masks: int, steps: int) -> list[int]:
    """Tokens to commit at each of ``steps``: masks // steps, and one more in the first masks % steps. Sums to ``masks``."""
    each, more = divmod(masks, steps)
    return [each + (step < more) for step in range(steps)]


def schedule(masks: int, steps: int, window: int) -> list[tuple[int, int]]:
    """One ``(reach, quota)`` per step: the first ``reach`` masks of the row are open to it, and it commits ``quota`` of them.

    Masks are cut left to right into windows of ``window`` (0: one window), the last maybe shorter, and the steps are shared out over the
    windows. ``steps`` 0 means one per mask. No step goes by without a commit: a window takes at most as many as it has masks.

    Raises:
        UserError: fewer steps than windows.
    """
    starts = range(0, masks, window or max(masks, 1))
    if steps and steps < len(starts):
        raise UserError(
            "sampler.steps",
            f"got {steps} steps for {len(starts)} windows of {window} tokens",
            f"take at least {len(starts)} steps or a window of at least {-(-masks // steps)}",
        )
    plan = []
    for start, share in zip(starts, quota(steps or masks, max(len(starts), 1)), strict=False):
        reach = min(start + (window or masks), masks)
        inside = reach - start
        plan += [(reach, n) for n in quota(inside, min(share, inside) if steps else inside)]
    return plan


@dataclass(frozen=True)
class Canvas:
    """One row: everything its further course depends on. Arrays are replaced, never written to."""

    request: int
    seed: int
    tokens: Array
    committed_at: Array
    confidence: Array
    ordinal: Array
    """Masks to the left of each position when the row began."""
    plan: Sequence[tuple[int, int]]
    fresh: int
    """Where new text begins that a stop string may end; the canvas' length where masks lie between given tokens."""
    step: int = 0
    stopped: bool = False

    @property
    def final(self) -> bool:
        return self.stopped or self.step == len(self.plan)

    def row(self) -> Row:
        return Row(self.request, self.tokens.copy(), self.committed_at.copy(), self.confidence.copy(), self.final)


@dataclass
class MaskedState:
    """The live rows. ``begun`` counts the requests so far: ``join`` numbers those of the other state after these."""

    rows: list[Canvas]
    begun: int
    step: int = 0

    @property
    def live(self) -> int:
        return len(self.rows)

    def select(self, rows: Sequence[int]) -> MaskedState:
        return replace(self, rows=[self.rows[row] for row in rows])

    def join(self, other: MaskedState) -> MaskedState:
        renumbered = [replace(row, request=row.request + self.begun) for row in other.rows]
        return MaskedState(self.rows + renumbered, self.begun + other.begun, max(self.step, other.step))


@dataclass(frozen=True)
class MaskedSampler:
    """Order x quota x window over the proposals of a masked model.

    Args:
        denoiser: which ids are no data.
        end: id of the end token, which ``config.end`` has rules for.
        config: ``config.length`` and ``config.stop`` are the caller's to put into requests and ``stop``.
        stop: new tokens of a continuation, up to the first mask, to whether the text ends there; such a row leaves early.

    Raises:
        UserError: a negative number of steps, window or temperature.
    """

    denoiser: Subs
    end: int
    config: MaskedSamplerConfig
    stop: Callable[[Sequence[int]], bool] | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "window", "temperature"):
            if not (value := getattr(self.config, name)) >= 0:
                raise UserError(f"sampler.{name}", f"got {value}", "choose 0 or more")

    def begin(self, requests: Sequence[Request]) -> MaskedState:
        """A row per request: its tokens and ``length`` masks after them.

        Raises:
            UserError: nothing to uncover (an infill without a mask), or fewer steps than windows.
        """
        return MaskedState([self._canvas(i, request) for i, request in enumerate(requests)], len(requests))

    def _canvas(self, index: int, request: Request) -> Canvas:
        given = np.asarray(request.tokens, dtype=np.int64)
        tokens = np.concatenate([given, np.full(max(request.length, 0), self.denoiser.mask)])
        hidden = tokens == self.denoiser.mask
        if not hidden.any():
            raise UserError("infill", "no mask and no new tokens asked for", "put a mask where text is missing, or set a length")
        return Canvas(
            index,
            request.seed,
            tokens,
            np.where(hidden, -1, 0),
            np.where(hidden, 0.0, 1.0).astype(np.float32),
            np.cumsum(hidden) - hidden,
            schedule(int(hidden.sum()), self.config.steps, self.config.window),
            len(tokens) if hidden[: len(given)].any() else len(given),
        )

    @torch.no_grad()
    def step(self, model: Any, state: MaskedState) -> Snapshot:
        """Every row commits its quota for this step; rows that are done leave the state. Committed tokens are never revisited."""
        rows = state.rows
        if not rows:
            return Snapshot(state.step, [])
        bounds = np.cumsum([0] + [len(row.tokens) for row in rows])
        row_T = np.repeat(np.arange(len(rows)), np.diff(bounds))
        tokens_T, committed_T, confidence_T, ordinal_T = (
            np.concatenate([getattr(row, name) for row in rows]) for name in ("tokens", "committed_at", "confidence", "ordinal")
        )
        reach_B, quota_B = np.array([row.plan[row.step] for row in rows]).T
        step_B = np.array([row.step for row in rows]) + 1
        open_M = np.flatnonzero((committed_T < 0) & (ordinal_T < reach_B[row_T]))
        noise = [generator(row.seed, row.step, 0, "sampler") for row in rows]
        counts = np.bincount(row_T[open_M], minlength=len(rows)).tolist()

        random = self.config.order == "random"
        score_M = np.concatenate([rng.random(n) for rng, n in zip(noise, counts, strict=True)]) if random else np.zeros(len(open_M))
        if random and self.config.end != "last":  # the order does not depend on the proposals: only those that will be committed are made
            open_M = open_M[_first(score_M, row_T[open_M], quota_B)]
            score_M, counts = np.zeros(len(open_M)), quota_B.tolist()

        hidden_TD = model(Packed.of([torch.from_numpy(row.tokens) for row in rows]).to(_device(model)))
        index_M = torch.from_numpy(open_M).to(hidden_TD.device)
        logits_MV = self.denoiser.restrict(model.head(hidden_TD.index_select(0, index_M))).double()
        if self.config.end == "forbid":
            logits_MV = forbid(logits_MV, torch.tensor([self.end], device=logits_MV.device))
        ids_M = draw(logits_MV, self.config.temperature, self._uniforms(noise, counts, logits_MV))
        # untempered, and in float64: rounding makes ties, and ties change the order
        probability_M = logits_MV.gather(-1, ids_M[:, None]).squeeze(-1).sub(logits_MV.logsumexp(-1)).exp().cpu().numpy()
        proposed_M = ids_M.cpu().numpy()

        if not random:
            score_M = probability_M
        if self.config.end == "last":
            score_M = np.where(proposed_M == self.end, -np.inf, score_M)
        chosen = _first(score_M, row_T[open_M], quota_B)
        at = open_M[chosen]
        tokens_T[at], committed_T[at], confidence_T[at] = proposed_M[chosen], step_B[row_T[at]], probability_M[chosen]

        parts = [np.split(values_T, bounds[1:-1]) for values_T in (tokens_T, committed_T, confidence_T)]
        state.step += 1
        moved = [
            self._stopped(row, replace(row, tokens=t, committed_at=c, confidence=p, step=row.step + 1))
            for row, t, c, p in zip(rows, *parts, strict=True)
        ]
        state.rows = [row for row in moved if not row.final]
        return Snapshot(state.step, [row.row() for row in moved])

    def _uniforms(self, noise: Sequence[np.random.Generator], counts: Sequence[int], logits_MV: Tensor) -> Tensor:
        """The uniforms behind the Gumbel noise; none are drawn at temperature 0."""
        if self.config.temperature == 0:
            return logits_MV.new_empty(0)
        parts = [rng.random((n, logits_MV.shape[-1])) for rng, n in zip(noise, counts, strict=True)]
        return torch.from_numpy(np.concatenate(parts)).to(logits_MV.device)

    def _stopped(self, before: Canvas, now: Canvas) -> Canvas:
        """The row, marked as stopped where its text without a gap grew over a stop string."""
        if self.stop is None:
            return now
        known, grown = (_without_gap(canvas) for canvas in (before, now))
        fresh = now.tokens[now.fresh :].tolist()
        return replace(now, stopped=any(self.stop(fresh[:n]) for n in range(known + 1, grown + 1)))


def _first(score_M: Array, row_M: Array, quota_B: Array) -> Array:
    """Indices of each row's ``quota`` largest scores, ties to the lowest index; ascending. ``row_M`` is ascending."""
    order = np.lexsort((-score_M, row_M))
    rank = np.arange(len(order)) - np.searchsorted(row_M, row_M)  # row_M stays as it is under the sort by row
    return np.sort(order[rank < quota_B[row_M]])


def _without_gap(canvas: Canvas) -> int:
    """Fresh tokens before the first one that is still covered."""
    covered = canvas.committed_at[canvas.fresh :] < 0
    return int(covered.argmax()) if covered.any() else len(covered)


def _device(model: torch.nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))
