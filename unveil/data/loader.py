"""Batches of text: packs of training pieces with their noise, and held-out text in order.

A pack is a pure function of the recipe, the seed and its number in one global order; see ``unveil.data.ahead``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

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
from unveil.errors import UserError
from unveil.nn.packed import Packed
from unveil.text.vocabulary import Vocabulary

Array = np.ndarray[Any, Any]

BOUNDARIES = 32
"""``cu_seqlens`` is filled up to a multiple of this many entries, so that few shapes occur."""


class _Sample(NamedTuple):
    piece: Piece
    tokens: Array


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
        family: Noising,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        super().__init__(_Plan(prepared, config, seed, family, rank, world), config.workers)


class _Plan:
    """All that a worker needs to build any pack."""

    def __init__(self, prepared: Prepared, config: TextDataConfig, seed: int, family: Noising, rank: int, world: int) -> None:
        self.stores, self.weights = prepared.splits["train"], prepared.weights
        self.vocabulary = prepared.tokenizer.vocabulary
        self.config, self.seed, self.family, self.rank, self.world = config, seed, family, rank, world

    def planner(self) -> _Planner:
        return _Planner(self)

    def shape(self) -> State:
        """What a state must agree with."""
        c = self.config
        sizes = [[len(s), int(s.lengths.sum())] for s in self.stores]
        cutting = [c.context, c.packing_length, c.packing]
        return {"seed": self.seed, "cutting": cutting, "weights": list(self.weights), "sizes": sizes, "vocabulary": self.vocabulary.size}

    def sample(self, origin: Piece) -> _Sample:
        """The piece between its start and end tokens, as the family transforms it: int64."""
        tokens = _sequence(self.stores[origin.source], self.vocabulary, origin.document, origin.start, origin.stop, origin.ends)
        tokens = self.family.transform(tokens, generator(self.seed, origin.epoch, origin.sample_id, "transform"))
        if not SMALLEST <= len(tokens) <= self.config.context:
            raise ValueError(f"the family made {len(tokens)} tokens of a sequence: wanted {SMALLEST}..{self.config.context}")
        return _Sample(origin, tokens)

    def build(self, samples: Sequence[_Sample]) -> tuple[tuple[list[Array], list[int]], dict[str, Array]]:
        ordered = sorted(samples, key=lambda s: (len(s.tokens), s.piece.sample_id))
        draws = []
        for origin, tokens in ordered:
            rng = generator(self.seed, origin.epoch, origin.sample_id, "draw")
            draws.append(self.family.draw(origin.sample_id, origin.epoch, len(tokens), rng))
        noise = {name: np.concatenate([d[name] for d in draws]) for name in draws[0]}
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


def held_out(prepared: Prepared, config: TextDataConfig, split: Split, tokens: int = 0) -> Iterator[tuple[Packed, Tensor, Tensor]]:
    """Held-out text in file order, cut at phase 0 into windows that do not overlap.

    Yields ``(packed, content_T, source_bytes_N)``: ``content_T`` bool is True for tokens of the source (not start and end tokens);
    ``source_bytes_N`` int64 counts the bytes of the source behind each sequence. ``tokens`` limits the tokens (special ones
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
        for document, start, stop, ends, size in _cuts(store, config.context, byte_lengths):
            sequence = _sequence(store, vocabulary, document, start, stop, ends)
            if tokens and used and used + len(sequence) > tokens * weight:
                break
            used += len(sequence)
            yield from map(_scored, packer.add(len(sequence), _Window(sample_id, sequence, ends, size)))
            sample_id += 1
    yield from map(_scored, packer.flush())


class _Window(NamedTuple):
    sample_id: int
    tokens: Array
    ends: bool
    source_bytes: int


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


def _scored(windows: Sequence[_Window]) -> tuple[Packed, Tensor, Tensor]:
    content = []
    for window in windows:
        inside = np.ones(len(window.tokens), dtype=np.bool_)
        inside[0] = False
        inside[-1] = not window.ends
        content.append(inside)
    packed = _packed([w.tokens for w in windows], [w.sample_id for w in windows])
    return packed, torch.from_numpy(np.concatenate(content)), torch.tensor([w.source_bytes for w in windows], dtype=torch.int64)
