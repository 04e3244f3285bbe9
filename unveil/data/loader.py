"""Batches of text: packs of training pieces with their noise, and held-out text in order.

A pack is a pure function of the recipe, the seed and its number in one global order; see ``unveil.data.ahead``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from unveil.config import TextDataConfig
from unveil.data.ahead import Ahead, Noising, State
from unveil.data.noise import generator
from unveil.data.packing import OPEN, SMALLEST, Packer
from unveil.data.shards import Prepared
from unveil.data.store import TokenStore
from unveil.data.stream import Piece, Stream
from unveil.data.tokenizer import Tokenizer
from unveil.nn.packed import Packed
from unveil.text.vocabulary import Vocabulary

Array = np.ndarray[Any, Any]

BOUNDARIES = 32
"""``cu_seqlens`` is filled up to a multiple of this many entries, so that few shapes occur."""


class Speaking(Noising, Protocol):
    """What a loader of text asks of a family besides: which part of a conversation is learned."""

    def converse(self, tokens: Array, spans: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """What training makes of a conversation whose answers begin and stop at ``spans`` ``[A, 2]``: its tokens, with the end tokens after
        it, and which of them are told (bool). The loss finds these in the noise as ``given``."""

    def answer(self, tokens: Array, spans: Array, index: int) -> tuple[Array, Array]:
        """Likewise, to score one answer."""

    @property
    def versions(self) -> int:
        """How often an answer of a pair is in a pack: as many as ``draw_answer`` gives."""

    def draw_answer(self, sample_id: int, epoch: int, given: Array, rng: np.random.Generator) -> list[dict[str, Array]]:
        """The noise of each version of an answer of a pair."""


class Sample(NamedTuple):
    piece: Piece
    sequences: list[tuple[Array, Array]]
    """Tokens, int64 ``[T]``, and which of them are told, bool ``[T]``; of a pair the preferred answer and the other one."""
    versions: int = 1
    """How often each is in the pack."""

    @property
    def length(self) -> int:
        return self.versions * sum(len(tokens) for tokens, _ in self.sequences)


class Loader(Ahead[Packed]):
    """Micro-batches ``(Packed, noise)`` without end, for one rank.

    ``noise`` holds what the family drew: per sequence ``[N]`` or per token ``[T]``. In a pack the sequences stand by length, then
    by sample id. ``config.workers`` processes build ahead.
    """

    def __init__(
        self,
        prepared: Prepared,
        config: TextDataConfig,
        seed: int,
        family: Speaking,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        super().__init__(Plan(prepared, config, seed, family, rank, world), config.workers)


class Plan:
    """All that a worker needs to build any pack."""

    def __init__(self, prepared: Prepared, config: TextDataConfig, seed: int, family: Speaking, rank: int, world: int) -> None:
        self.stores, self.weights = prepared.splits["train"], prepared.weights
        self.tokenizer = prepared.tokenizer
        self.config, self.seed, self.family, self.rank, self.world = config, seed, family, rank, world

    def planner(self) -> _Planner:
        return _Planner(self)

    def shape(self) -> State:
        """What a state must agree with."""
        c = self.config
        sizes = [[len(s), int(s.lengths.sum())] for s in self.stores]
        cutting = [c.context, c.packing_length, c.packing]
        vocabulary = self.tokenizer.vocabulary.size
        return {"seed": self.seed, "cutting": cutting, "weights": list(self.weights), "sizes": sizes, "vocabulary": vocabulary}

    def sample(self, origin: Piece) -> Sample:
        """The piece between its start and end tokens, as the family transforms it."""
        store, rng = self.stores[origin.source], generator(self.seed, origin.epoch, origin.sample_id, "transform")
        if not store.whole:
            tokens = sequence_of(store, self.tokenizer.vocabulary, origin.document, origin.start, origin.stop, origin.ends)
            tokens = self.family.transform(tokens, rng)
            sample = Sample(origin, [(tokens, np.zeros(len(tokens), dtype=np.bool_))])
        elif self._pairs(origin):
            both = (self.family.answer(*_side(store, self.tokenizer, origin.document, side), 0) for side in (0, 1))
            sample = Sample(origin, list(both), self.family.versions)
        else:
            sample = Sample(origin, [self.family.converse(*conversation(store, self.tokenizer, origin.document), rng)])
        for tokens, _ in sample.sequences:
            if not SMALLEST <= len(tokens) <= self.config.context:
                raise ValueError(f"the family made {len(tokens)} tokens of a sequence: wanted {SMALLEST}..{self.config.context}")
        return sample

    def build(self, samples: Sequence[Sample]) -> tuple[tuple[list[Array], list[int]], dict[str, Array]]:
        rows = [row for sample in samples for row in self._drawn(sample)]
        rows.sort(key=lambda row: (len(row[1]), row[0]))
        noise = {name: np.concatenate([drawn[name] for *_, drawn in rows]) for name in rows[0][2]}
        if "pair" in noise:
            noise["pair"] = np.unique(noise["pair"], return_inverse=True)[1]
        if not any(store.whole for store in self.stores):
            del noise["given"]
        return ([tokens for _, tokens, _ in rows], [sample_id for sample_id, *_ in rows]), noise

    def _drawn(self, sample: Sample) -> Iterator[tuple[int, Array, dict[str, Array]]]:
        """Sample id, tokens and noise of its sequences."""
        _, _, epoch, *_ = origin = sample.piece
        for side, (tokens, given) in enumerate(sample.sequences):
            if not self._pairs(origin):
                rng = generator(self.seed, epoch, origin.sample_id, "draw")
                drawn = self.family.draw(origin.sample_id, epoch, len(tokens), rng)
                yield origin.sample_id, tokens, {**drawn, "given": given}
                continue
            rng = generator(self.seed, epoch, origin.sample_id, f"draw of answer {side}")
            told = {"given": given, "chosen": np.array([side == 0]), "pair": np.array([origin.sample_id])}
            yield from (
                (origin.sample_id, tokens, {**told, **drawn}) for drawn in self.family.draw_answer(origin.sample_id, epoch, given, rng)
            )

    def _pairs(self, origin: Piece) -> bool:
        return self.config.sources[origin.source].kind == "preference"

    def finish(self, content: tuple[list[Array], list[int]]) -> Packed:
        return packed(*content)


class _Planner:
    """Lays the stream's pieces into packs. Its state names pieces, not tokens: those are made again from the store."""

    def __init__(self, plan: Plan) -> None:
        config = plan.config
        self._plan = plan
        self._stream = Stream(plan.stores, plan.weights, config.context, plan.seed)
        self._packer: Packer[Sample] = Packer(config.packing_length, OPEN[config.packing])
        self._finished: list[list[Sample]] = []

    def next(self) -> list[Sample]:
        while not self._finished:
            sample = self._plan.sample(next(self._stream))
            self._finished += self._packer.add(sample.length, sample)
        return self._finished.pop(0)

    def state(self) -> State:
        bins = [[b.order, [list(s.piece) for s in b.items]] for b in self._packer.bins]
        finished = [[list(s.piece) for s in pack] for pack in self._finished]
        return {"stream": self._stream.state(), "opened": self._packer.opened, "open": bins, "finished": finished}

    def restore(self, state: State) -> None:
        self._stream.restore(state["stream"])
        self._finished = [[self._plan.sample(Piece(*p)) for p in pack] for pack in state["finished"]]
        self._packer.restore(
            [(order, [(s.length, s) for s in (self._plan.sample(Piece(*p)) for p in pieces)]) for order, pieces in state["open"]],
            state["opened"],
        )


def sequence_of(store: TokenStore, vocabulary: Vocabulary, document: int, start: int, stop: int, ends: bool) -> Array:
    sequence = np.empty(1 + stop - start + ends, dtype=np.int64)
    sequence[0] = vocabulary.start
    sequence[1 : 1 + stop - start] = store.tokens(document)[start:stop]
    if ends:
        sequence[-1] = vocabulary.end
    return sequence


def conversation(store: TokenStore, tokenizer: Tokenizer, document: int) -> tuple[Array, Array]:
    """Its tokens as a prompt's begin, and where its answers begin and stop, turns' ends included: int64 ``[A, 2]``."""
    start = np.full(int(tokenizer.opens), tokenizer.vocabulary.start, dtype=np.int64)
    return np.concatenate([start, store.tokens(document).astype(np.int64)]), store.spans(document)[:, [0, 2]] + len(start)


def _side(store: TokenStore, tokenizer: Tokenizer, document: int, side: int) -> tuple[Array, Array]:
    """As ``_conversation``, of one of a pair's two answers behind their prompt."""
    tokens, spans = conversation(store, tokenizer, document)
    first, (start, stop) = spans[0, 0], spans[side]
    return np.concatenate([tokens[:first], tokens[start:stop]]), np.array([[first, first + stop - start]])


def packed(sequences: Sequence[Array], sample_ids: Sequence[int]) -> Packed:
    lengths = np.array([len(s) for s in sequences])
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    filled = np.full(-(-len(bounds) // BOUNDARIES) * BOUNDARIES, bounds[-1], dtype=np.int32)
    filled[: len(bounds)] = bounds
    positions = np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths)
    return Packed(
        torch.from_numpy(np.concatenate(sequences)),
        torch.from_numpy(filled),
        int(lengths.max()),
        torch.from_numpy(positions),
        torch.tensor(list(sample_ids), dtype=torch.int64),
    )
