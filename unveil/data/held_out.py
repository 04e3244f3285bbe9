"""Held-out text in order, to be scored: windows of documents, answers of conversations, pairs of answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unveil.config import TextDataConfig
from unveil.data.loader import Plan, Sample, Speaking, conversation, packed, sequence_of
from unveil.data.packing import OPEN, Packer, count_pieces, piece
from unveil.data.shards import Prepared
from unveil.data.split import Split
from unveil.data.store import TokenStore
from unveil.data.stream import Piece
from unveil.data.tokenizer import Tokenizer
from unveil.errors import UserError
from unveil.nn.packed import Packed
from unveil.text.vocabulary import Vocabulary

Array = np.ndarray[Any, Any]


class Scored(NamedTuple):
    """Held-out text."""

    packed: Packed
    content_T: Tensor
    """Which tokens are of the source, bool."""
    source_bytes_N: Tensor
    """The bytes that they stand for, int64."""
    given_T: Tensor | None = None
    """Which tokens are told, bool; None where none is."""


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
    for store, weight, source in zip(prepared.splits[split], prepared.weights, config.sources, strict=True):
        used = 0
        if store.whole:
            assert family is not None
            windows = _asked(store, prepared.tokenizer, family, source.kind == "preference")
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


def held_out_pairs(
    prepared: Prepared, config: TextDataConfig, split: Split, tokens: int, seed: int, family: Speaking
) -> Iterator[tuple[Packed, dict[str, Tensor]]]:
    """Held-out pairs in file order, with the same noise whenever they are drawn; about ``tokens`` tokens at the most, 0 takes all."""
    plan = Plan(replace(prepared, splits={**prepared.splits, "train": prepared.splits[split]}), config, seed, family, 0, 1)
    packer: Packer[Sample] = Packer(config.packing_length, OPEN["next-fit"])
    places = [(source, i) for source, store in enumerate(plan.stores) for i in range(len(store))]
    packs: list[list[Sample]] = []
    used = 0
    for sample_id, (source, i) in enumerate(places):
        sample = plan.sample(Piece(sample_id, source, 0, i, 0, int(plan.stores[source].lengths[i]), True))
        if tokens and used and used + sample.length > tokens:
            break
        used += sample.length
        packs += packer.add(sample.length, sample)
    for pack in packs + packer.flush():
        content, noise = plan.build(pack)
        yield plan.finish(content), {name: torch.from_numpy(values) for name, values in noise.items()}


class _Window(NamedTuple):
    tokens: Array
    content: Array
    source_bytes: int
    given: Array | None = None
    sample_id: int = 0


def _read(store: TokenStore, vocabulary: Vocabulary, context: int, byte_lengths: Array | None) -> Iterator[_Window]:
    for document, start, stop, ends, size in _cuts(store, context, byte_lengths):
        sequence = sequence_of(store, vocabulary, document, start, stop, ends)
        content = np.ones(len(sequence), dtype=np.bool_)
        content[0], content[-1] = False, not ends
        yield _Window(sequence, content, size)


def _asked(store: TokenStore, tokenizer: Tokenizer, family: Speaking, pairs: bool) -> Iterator[_Window]:
    """Of a pair the preferred answer alone."""
    for document in range(len(store)):
        tokens, spans = conversation(store, tokenizer, document)
        for index, (_, end, _, size) in enumerate(store.spans(document)[: 1 if pairs else None].tolist()):
            sequence, given = family.answer(tokens, spans[:1] if pairs else spans, index)
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
    batch = packed([w.tokens for w in windows], [w.sample_id for w in windows])
    given = None
    if any(w.given is not None for w in windows):
        told = [np.zeros(len(w.tokens), dtype=np.bool_) if w.given is None else w.given for w in windows]
        given = torch.from_numpy(np.concatenate(told))
    size_N = torch.tensor([w.source_bytes for w in windows], dtype=torch.int64)
    return Scored(batch, torch.from_numpy(np.concatenate([w.content for w in windows])), size_N, given)
