"""Batches of text: packs of training pieces with their noise, and held-out text in order.

A pack is a pure function of the recipe, the seed and its number in one global order; see ``unveil.data.ahead``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from unveil.config import TextDataConfig
from unveil.data.ahead import Ahead, Noising, State
from unveil.data.noise import generator
from unveil.data.packing import OPEN, SMALLEST, Packer, count_pieces, piece
from unveil.data.shards import Prepared
from unveil.data.split import Split
from unveil.data.store import TokenStore
from unveil.data.stream import Piece, Stream
from unveil.data.tokenizer import Tokenizer
from unveil.errors import UserError
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


class _Sample(NamedTuple):
    piece: Piece
    tokens: Array
    given: Array
    """Which tokens are told and not learned, bool ``[T]``."""


class Scored(NamedTuple):
    """Held-out text."""

    packed: Packed
    content_T: Tensor
    """Which tokens are of the source, bool."""
    source_bytes_N: Tensor
    """The bytes that they stand for, int64."""
    given_T: Tensor | None = None
    """Which tokens are told, bool; None where none is."""


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
        super().__init__(_Plan(prepared, config, seed, family, rank, world), config.workers)


class _Plan:
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

    def sample(self, origin: Piece) -> _Sample:
        """The piece between its start and end tokens, as the family transforms it: int64."""
        store, rng = self.stores[origin.source], generator(self.seed, origin.epoch, origin.sample_id, "transform")
        if store.whole:
            tokens, given = self.family.converse(*_conversation(store, self.tokenizer, origin.document), rng)
        else:
            tokens = _sequence(store, self.tokenizer.vocabulary, origin.document, origin.start, origin.stop, origin.ends)
            tokens = self.family.transform(tokens, rng)
            given = np.zeros(len(tokens), dtype=np.bool_)
        if not SMALLEST <= len(tokens) <= self.config.context:
            raise ValueError(f"the family made {len(tokens)} tokens of a sequence: wanted {SMALLEST}..{self.config.context}")
        return _Sample(origin, tokens, given)

    def build(self, samples: Sequence[_Sample]) -> tuple[tuple[list[Array], list[int]], dict[str, Array]]:
        ordered = sorted(samples, key=lambda s: (len(s.tokens), s.piece.sample_id))
        draws = []
        for origin, tokens, _ in ordered:
            rng = generator(self.seed, origin.epoch, origin.sample_id, "draw")
            draws.append(self.family.draw(origin.sample_id, origin.epoch, len(tokens), rng))
        noise = {name: np.concatenate([d[name] for d in draws]) for name in draws[0]}
        if any(store.whole for store in self.stores):
            noise["given"] = np.concatenate([s.given for s in ordered])
        return ([s.tokens for s in ordered], [s.piece.sample_id for s in ordered]), noise

    def finish(self, content: tuple[list[Array], list[int]]) -> Packed:
        return _packed(*content)


class _Planner:
    """Lays the stream's pieces into packs. Its state names pieces, not tokens: those are made again from the store."""

    def __init__(self, plan: _Plan) -> None:
        config = plan.config
        self._plan = plan
        self._stream = Stream(plan.stores, plan.weights, config.context, plan.seed)
        self._packer: Packer[_Sample] = Packer(config.packing_length, OPEN[config.packing])
        self._finished: list[list[_Sample]] = []

    def next(self) -> list[_Sample]:
        while not self._finished:
            sample = self._plan.sample(next(self._stream))
            self._finished += self._packer.add(len(sample.tokens), sample)
        return self._finished.pop(0)

    def state(self) -> State:
        bins = [[b.order, [list(s.piece) for s in b.items]] for b in self._packer.bins]
        finished = [[list(s.piece) for s in pack] for pack in self._finished]
        return {"stream": self._stream.state(), "opened": self._packer.opened, "open": bins, "finished": finished}

    def restore(self, state: State) -> None:
        self._stream.restore(state["stream"])
        self._finished = [[self._plan.sample(Piece(*p)) for p in pack] for pack in state["finished"]]
        self._packer.restore(
            [(order, [(len(s.tokens), s) for s in (self._plan.sample(Piece(*p)) for p in pieces)]) for order, pieces in state["open"]],
            state["opened"],
        )


def _sequence(store: TokenStore, vocabulary: Vocabulary, document: int, start: int, stop: int, ends: bool) -> Array:
    sequence = np.empty(1 + stop - start + ends, dtype=np.int64)
    sequence[0] = vocabulary.start
    sequence[1 : 1 + stop - start] = store.tokens(document)[start:stop]
    if ends:
        sequence[-1] = vocabulary.end
    return sequence


def _conversation(store: TokenStore, tokenizer: Tokenizer, document: int) -> tuple[Array, Array]:
    """Its tokens as a prompt's begin, and where its answers begin and stop, turns' ends included: int64 ``[A, 2]``."""
    start = np.full(int(tokenizer.opens), tokenizer.vocabulary.start, dtype=np.int64)
    return np.concatenate([start, store.tokens(document).astype(np.int64)]), store.spans(document)[:, [0, 2]] + len(start)


def _packed(sequences: Sequence[Array], sample_ids: Sequence[int]) -> Packed:
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


def held_out(prepared: Prepared, config: TextDataConfig, split: Split, tokens: int = 0, family: Speaking | None = None) -> Iterator[Scored]:
    """Held-out text in file order, cut at phase 0 into windows that do not overlap; a conversation gives a sequence for each answer, in
    which the message is the content and all before it is told, as ``family`` lays it out.

    Start and end tokens and what ends a turn are no content. ``tokens`` limits the tokens (special ones
    included), shared by the sources as in the mixture; 0 takes all. Sequences stay in order, packed by next-fit; sample ids count
    from 0. Raises UserError where nothing is held out.
    """
    vocabulary, byte_lengths = prepared.tokenizer.vocabulary, prepared.tokenizer.byte_lengths()
    if not any(len(store) for store in prepared.splits[split]):
        raise UserError(f"data.{split}", "nothing is held out", "set it above 0")
    packer: Packer[_Window] = Packer(config.packing_length, OPEN["next-fit"])
    sample_id = 0
    for store, weight in zip(prepared.splits[split], prepared.weights, strict=True):
        used = 0
        if store.whole:
            assert family is not None
            windows = _asked(store, prepared.tokenizer, family)
        else:
            windows = _read(store, vocabulary, config.context, byte_lengths)
        for window in windows:
            length = len(window.tokens)
            if tokens and used and used + length > tokens * weight:
                break
            used += length
            yield from map(_scored, packer.add(length, window._replace(sample_id=sample_id)))
            sample_id += 1
    yield from map(_scored, packer.flush())


class _Window(NamedTuple):
    tokens: Array
    content: Array
    source_bytes: int
    given: Array | None = None
    sample_id: int = 0


def _read(store: TokenStore, vocabulary: Vocabulary, context: int, byte_lengths: Array | None) -> Iterator[_Window]:
    for document, start, stop, ends, size in _cuts(store, context, byte_lengths):
        sequence = _sequence(store, vocabulary, document, start, stop, ends)
        content = np.ones(len(sequence), dtype=np.bool_)
        content[0], content[-1] = False, not ends
        yield _Window(sequence, content, size)


def _asked(store: TokenStore, tokenizer: Tokenizer, family: Speaking) -> Iterator[_Window]:
    for document in range(len(store)):
        tokens, spans = _conversation(store, tokenizer, document)
        for index, (_, end, _, size) in enumerate(store.spans(document).tolist()):
            sequence, given = family.answer(tokens, spans, index)
            content = ~given
            content[end + tokenizer.opens :] = False
            yield _Window(sequence, content, size, given)


def _cuts(store: TokenStore, context: int, byte_lengths: Array | None) -> Iterator[tuple[int, int, int, bool, int]]:
    """Document, start, stop, whether it ends there, and its bytes, for every window. A document's windows share all its bytes: where
    ids do not stand for bytes, in proportion to their tokens."""
    for document, count in enumerate(count_pieces(store.lengths, store.ends, 0, context)):
        length, ends, left = int(store.lengths[document]), bool(store.ends[document]), int(store.source_bytes[document])
        for index in range(count):
            start, stop = piece(length, ends, 0, context, index)
            if stop == length:
                size = left
            elif byte_lengths is None:
                size = round(left * (stop - start) / (length - start))
            else:
                size = min(left, int(byte_lengths[store.tokens(document)[start:stop]].sum()))
            left -= size
            yield document, start, stop, ends and stop == length, size


def _scored(windows: Sequence[_Window]) -> Scored:
    packed = _packed([w.tokens for w in windows], [w.sample_id for w in windows])
    given = None
    if any(w.given is not None for w in windows):
        told = [np.zeros(len(w.tokens), dtype=np.bool_) if w.given is None else w.given for w in windows]
        given = torch.from_numpy(np.concatenate(told))
    size_N = torch.tensor([w.source_bytes for w in windows], dtype=torch.int64)
    return Scored(packed, torch.from_numpy(np.concatenate([w.content for w in windows])), size_N, given)
