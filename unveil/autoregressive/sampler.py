"""Token after token: rows of different lengths grow together, each as if it were alone.

A row's randomness is a stream of uniforms of its own, one per new token, keyed by its seed: neither its neighbours nor the step at which it
joined them change what it becomes. B rows, V vocabulary, L tokens of the longest row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from unveil.autoregressive.context import Context, read
from unveil.config import NextTokenSamplerConfig
from unveil.data.noise import generator
from unveil.errors import UserError
from unveil.family import Request, Row, Snapshot
from unveil.text.proposals import check, forbid, inverse_cdf, propose
from unveil.text.vocabulary import Vocabulary

Array = np.ndarray[Any, Any]
Stop = Callable[[Array], bool]
"""Whether a row ends after its new tokens so far, the prompt not among them; asked after each one."""


class Rows:
    """Arrays with an entry per row, by name."""

    def select(self, rows: Sequence[int]) -> Self:
        index = np.asarray(rows, dtype=np.int64)
        return type(self)(*(getattr(self, f.name)[index] for f in fields(self)))  # type: ignore[arg-type]

    def join(self, other: Self) -> Self:
        return type(self)(*(_stack(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Canvases(Rows):
    """The rows on the host. A row is only ever appended to, so the parts of it that snapshots show need no copy."""

    request_B: Array
    prompt_B: Array
    """Tokens given."""
    length_B: Array
    """Tokens so far, the given ones included."""
    limit_B: Array
    """Length at which the row ends."""
    tokens_BL: Array
    committed_BL: Array
    confidence_BL: Array
    uniforms_BL: Array
    """What draws the token at each place."""

    @staticmethod
    def of(requests: Sequence[Request]) -> Canvases:
        prompts = np.array([len(r.tokens) for r in requests])
        limits = prompts + np.array([r.length for r in requests])
        place = np.arange(limits.max())
        tokens, uniforms = np.zeros((len(requests), len(place)), dtype=np.int64), np.zeros((len(requests), len(place)))
        for row, request in enumerate(requests):
            tokens[row, : prompts[row]] = request.tokens
            uniforms[row, prompts[row] : limits[row]] = generator(request.seed, 0, 0, "sample").random(request.length)
        committed = np.maximum(place + 1 - prompts[:, None], 0)
        confidence = np.ones(tokens.shape, dtype=np.float32)
        return Canvases(np.arange(len(requests)), prompts, prompts.copy(), limits, tokens, committed, confidence, uniforms)

    def append(self, tokens_B: Array, confidence_B: Array) -> None:
        places = np.arange(len(tokens_B)), self.length_B
        self.tokens_BL[places] = tokens_B
        self.confidence_BL[places] = confidence_B
        self.length_B[:] += 1

    def write(self, tokens_BN: Array, confidence_BN: Array, counts_B: Array, steps_B: Array) -> None:
        """The first ``counts_B`` of some tokens behind each row, said to be committed at ``steps_B``; ``length_B`` is the caller's."""
        rows, at = np.nonzero(np.arange(tokens_BN.shape[1]) < counts_B[:, None])
        places = rows, self.length_B[rows] + at
        self.tokens_BL[places], self.confidence_BL[places] = tokens_BN[rows, at], confidence_BN[rows, at]
        self.committed_BL[places] = steps_B[rows]

    def rows(self, final_B: Array, told: Sequence[Mapping[str, Any]] = ()) -> list[Row]:
        """``told``: further fields of each."""
        arrays = [a.view() for a in (self.tokens_BL, self.committed_BL, self.confidence_BL)]
        for array in arrays:
            array.flags.writeable = False  # a snapshot's reader must not change what later ones show
        tokens, committed, confidence = arrays
        numbers = zip(self.request_B.tolist(), self.length_B.tolist(), final_B.tolist(), strict=True)
        beside = told or [{}] * len(final_B)
        return [
            Row(number, tokens[b, :n], committed[b, :n], confidence[b, :n], final, **beside[b])
            for b, (number, n, final) in enumerate(numbers)
        ]


@dataclass
class State:
    """The rows between two steps. ``logits_BV`` are those of each row's next token."""

    canvases: Canvases
    context: Context
    logits_BV: Tensor
    seen_BV: Tensor | None
    """Which tokens occur in a row, where the repetition penalty asks for it."""
    begun: int
    """Requests so far; a joined state's are numbered on from here."""
    steps: int = 0

    @property
    def live(self) -> int:
        return len(self.canvases.request_B)

    def select(self, rows: Sequence[int]) -> State:
        """These rows, in this order; they and the rows of this state go on independently."""
        kept = replace(self)
        kept.keep(rows)
        return kept

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows."""
        index = torch.as_tensor(rows, dtype=torch.int64, device=self.logits_BV.device)
        self.canvases, self.context = self.canvases.select(rows), self.context.select(rows)
        self.logits_BV = self.logits_BV[index]
        self.seen_BV = None if self.seen_BV is None else self.seen_BV[index]

    def join(self, other: State) -> State:
        """This state's rows and then the other's, whose requests are numbered on; independent of both."""
        moved = replace(other.canvases, request_B=other.canvases.request_B + self.begun)
        seen = None if self.seen_BV is None or other.seen_BV is None else torch.cat([self.seen_BV, other.seen_BV])
        logits = torch.cat([self.logits_BV, other.logits_BV])
        steps = max(self.steps, other.steps)
        return State(self.canvases.join(moved), self.context.join(other.context), logits, seen, self.begun + other.begun, steps)


class NextTokenSampler:
    """Draws continuations from a causal network.

    Args:
        vocabulary: the end token ends a row; the other special tokens are never drawn.
        config: how a token is drawn. Raises UserError for a setting outside its range.
        stop: ends a row early.
    """

    def __init__(self, vocabulary: Vocabulary, config: NextTokenSamplerConfig, stop: Stop | None = None) -> None:
        check(config)
        self.vocabulary, self.config, self.stop = vocabulary, config, stop
        self._never = torch.tensor([i for i in vocabulary.specials if i != vocabulary.end], dtype=torch.int64)

    @torch.no_grad()
    def begin(self, model: nn.Module, requests: Sequence[Request]) -> State:
        """Read the prompts, all in one pack. The model is one that ``next_token_loss`` takes, in eval mode.

        Raises UserError for a request of no new tokens, ValueError for no requests or a prompt without even a start token.
        """
        if not requests or any(len(r.tokens) == 0 for r in requests):
            raise ValueError("a state needs a request, and a request at least the start token")
        shortest = min(r.length for r in requests)
        if shortest < 1:
            raise UserError("sampler.length", f"got {shortest}", "ask for at least one new token")
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        canvases = Canvases.of(requests)
        context, hidden_BD = self._read(model, [r.tokens for r in requests], int(canvases.limit_B.max()), device)
        logits_BV = self._logits(model, hidden_BD)
        seen_BV = None
        if self.config.repetition_penalty != 1:
            seen_BV = torch.zeros(logits_BV.shape, dtype=torch.bool, device=device)
            for row, request in enumerate(requests):
                seen_BV[row, torch.as_tensor(request.tokens, device=device)] = True
        return State(canvases, context, logits_BV, seen_BV, begun=len(requests))

    @torch.no_grad()
    def step(self, model: nn.Module, state: State) -> Snapshot:
        """One token more in every row; the rows it ends leave the state, and the network reads what the others got."""
        state.steps += 1
        if not state.live:
            return Snapshot(state.steps, [])
        canvases = state.canvases
        tokens_B, confidence_B = self._draw(state)
        tokens = tokens_B.cpu().numpy()
        canvases.append(tokens, confidence_B.cpu().numpy())
        final_B = (tokens == self.vocabulary.end) | (canvases.length_B == canvases.limit_B)
        if self.stop is not None:
            new = (row[p:n] for row, p, n in zip(canvases.tokens_BL, canvases.prompt_B, canvases.length_B, strict=True))
            final_B |= np.fromiter(map(self.stop, new), dtype=bool, count=len(final_B))
        snapshot = Snapshot(state.steps, canvases.rows(final_B, _costs(state)))
        if final_B.any():
            live = np.flatnonzero(~final_B).tolist()
            state.keep(live)
            tokens_B = tokens_B[live]
        if state.live:
            if state.seen_BV is not None:
                state.seen_BV.scatter_(1, tokens_B[:, None], True)
            state.logits_BV = self._logits(model, state.context.append(tokens_B))
        return snapshot

    def _read(self, model: Any, prompts: Sequence[Array], capacity: int, device: torch.device) -> tuple[Context, Tensor]:
        return read(model, prompts, capacity, device)

    def _logits(self, model: Any, hidden_BD: Tensor) -> Tensor:
        logits_BV = model.head(hidden_BD)
        self._never = self._never.to(logits_BV.device)
        return forbid(logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32)), self._never)

    def _draw(self, state: State) -> tuple[Tensor, Tensor]:
        """The next tokens ``[B]`` and their probabilities under the model itself, before temperature, penalty and truncation."""
        logits_BV, canvases = state.logits_BV, state.canvases
        proposed_BV = propose(logits_BV, self.config, state.seen_BV)
        tokens_B = self._pick(proposed_BV, canvases.uniforms_BL[np.arange(state.live), canvases.length_B])
        return tokens_B, probability(logits_BV, tokens_B)

    def _pick(self, proposed_BV: Tensor, uniforms_B: Array) -> Tensor:
        if self.config.temperature == 0:
            return proposed_BV.argmax(-1)
        return inverse_cdf(proposed_BV, torch.from_numpy(uniforms_B).to(proposed_BV.device))


def probability(logits_BV: Tensor, tokens_B: Tensor) -> Tensor:
    """Of one token in each row."""
    return logits_BV.softmax(-1).gather(-1, tokens_B[..., None]).squeeze(-1)


def _costs(state: State) -> list[dict[str, int]]:
    """What each row took so far: a pass over its prompt, which gives the first new token, and one for every further token."""
    sizes = zip(state.canvases.prompt_B.tolist(), state.canvases.length_B.tolist(), strict=True)
    told = [(length - given, *state.context.cost(given, length - given)) for given, length in sizes]
    return [{"evaluations": new, "computed": computed, "reused": reused} for new, computed, reused in told]


def _stack(above: Array, below: Array) -> Array:
    """The rows of both; the shorter ones are filled with zeros, which nobody reads before they are written."""
    if above.ndim == 2:
        width = max(above.shape[1], below.shape[1])
        above, below = (np.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in (above, below))
    return np.concatenate([above, below])
