"""What padding costs and what packing leaves: useful tokens per second of training on paragraphs of very different lengths.

The paragraphs of WikiText-2's validation text in file order, by a BPE of 4096 tokens trained on the same text, cut into pieces of at
most 512 tokens. A few batches of 16 neighbours are taken, evenly over the file; both sides train on exactly those pieces.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import peer, setting
from benchmarks.measure import Block, Row, compare, fastest, rate, say
from unveil.config import SourceConfig, TokenizerConfig, TransformerConfig
from unveil.data.corpus import documents
from unveil.data.packing import count_pieces, pack, piece
from unveil.data.tokenizer import Tokenizer
from unveil.environment import device
from unveil.errors import UserError
from unveil.nn.packed import Packed

CONTEXT, PACK, BATCH = 512, 2048, 16
OWN = "unveil's network"
BATCHES = 12
"""In a block. So many waste on padding what the whole file does; fewer may waste a fifth more or less."""


def rows() -> list[Row]:
    batches = spread(batched(paragraphs(_file(), setting.VOCABULARY, CONTEXT), BATCH), BATCHES)
    return [padded(batches), ideal(batches)]


def paragraphs(path: Path, size: int, context: int) -> list[Tensor]:
    """Pieces of the text's paragraphs in file order, start and end tokens included, each at most ``context`` tokens."""
    texts = [d.data for d in documents(SourceConfig(kind="text", path=str(path), documents="paragraph"))]
    tokenizer = Tokenizer.train(TokenizerConfig(kind="bpe", vocabulary=size), texts)
    special, pieces = tokenizer.vocabulary, []
    for tokens in map(tokenizer.encode, texts):
        for index in range(int(count_pieces(len(tokens), True, 0, context))):
            start, stop = piece(len(tokens), True, 0, context, index)
            end = [special.end] if stop == len(tokens) else []
            pieces.append(torch.tensor([special.start, *tokens[start:stop].tolist(), *end]))
    return pieces


def batched(pieces: Sequence[Tensor], count: int) -> list[list[Tensor]]:
    return [list(pieces[i : i + count]) for i in range(0, len(pieces), count)]


def spread(batches: list[list[Tensor]], count: int) -> list[list[Tensor]]:
    """``count`` of the batches, evenly over the file; says how like the whole they are."""
    chosen = [batches[(2 * i + 1) * len(batches) // (2 * count)] for i in range(count)]
    whole, part = (_area(some) / useful(some) for some in (batches, chosen))
    say(f"padded / useful tokens: {part:.2f} in {count} batches measured, {whole:.2f} in all {len(batches)}")
    return chosen


def useful(batches: Sequence[Sequence[Tensor]]) -> int:
    return sum(len(s) for batch in batches for s in batch)


def _area(batches: Sequence[Sequence[Tensor]]) -> int:
    return sum(len(batch) * max(len(s) for s in batch) for batch in batches)


def packs(batches: Sequence[Sequence[Tensor]], capacity: int) -> list[Packed]:
    """The same pieces by best fit, each pack sorted by length as the loader does."""
    pieces = [s.to(device()) for batch in batches for s in batch]
    chosen = pack([len(s) for s in pieces], capacity)
    return [Packed.of(sorted((pieces[i] for i in indices), key=len)) for indices in chosen]


def equal(ragged: Sequence[Packed]) -> list[Packed]:
    """As many tokens with the same sum of squared lengths (so the same work in attention), but all sequences of one length: what
    raggedness would cost nothing at. Exact up to rounding the length and filling whole packs."""
    lengths = [n for p in ragged for n in p.lengths]
    length = round(sum(n * n for n in lengths) / sum(lengths))
    count = max(1, round(sum(lengths) / len(ragged) / length))
    tokens_T = torch.cat([p.tokens_T for p in ragged])
    per_pack = count * length
    return [Packed.of(list(tokens_T[at : at + per_pack].split(length))) for at in range(0, len(tokens_T) - per_pack + 1, per_pack)]


def padded(
    batches: list[list[Tensor]],
    model: TransformerConfig = setting.MODEL,
    size: int = setting.VOCABULARY,
    capacity: int = PACK,
    modes: Sequence[bool] = (False, True),
) -> Row:
    """Our packs against the fastest padded batches: the peer's with an attention mask, or our own network's."""
    ragged = packs(batches, capacity)

    def own(some: list[list[Tensor]], compiled: bool) -> Block:
        # Padding to the right needs no mask where attention is causal. That its loss counts padded tokens too costs no time.
        rectangles = [Packed.of(list(peer.padded(batch)[0])) for batch in some]
        return setting.block(setting.trainer(model, size, compiled), rectangles, useful(some))

    def theirs(some: list[list[Tensor]], precision: str, compiled: bool) -> Block:
        step = peer.trainer(model, size, precision, compiled, ragged=True)
        inputs = [(t, t.masked_fill(mask == 0, -100), mask) for t, mask in map(peer.padded, some)]

        def once() -> None:
            for tokens_BL, labels_BL, mask_BL in inputs:
                step(tokens_BL, labels_BL, mask_BL)

        return lambda: rate(once, useful(some))

    def build(name: str, some: list[list[Tensor]]) -> Block:
        who, precision, mode = name.split(", ")
        return own(some, mode == "compiled") if who == OWN else theirs(some, precision, mode == "compiled")

    names = [f"{OWN}, padded, {'compiled' if c else 'eager'}" for c in modes]
    names += [f"{peer.NAME}, {p}, {'compiled' if c else 'eager'}" for p in peer.PRECISIONS for c in modes]
    few = batches[len(batches) // 2 :][:1]
    say("padded: the fastest padded batches (on one of them)")
    best = fastest({name: lambda n=name: build(n, few) for name in names})  # type: ignore[misc]
    ours = setting.block(setting.trainer(model, size, modes[-1]), ragged, useful(batches))
    return compare(
        "padded",
        ours,
        build(best, batches),
        peer_name=best,
        unit="useful tokens/s",
        floor=setting.floor(model, size, _one(ragged)),
        warmup=1,
        pairs=5,
    )


def ideal(
    batches: list[list[Tensor]],
    model: TransformerConfig = setting.MODEL,
    size: int = setting.VOCABULARY,
    capacity: int = PACK,
    compiled: bool = True,
) -> Row:
    """Our packs against our own rate on equal lengths. The last packs, which a run never has to close half full, are left out."""
    ragged = [p for p in packs(batches, capacity) if len(p.tokens_T) >= 0.95 * capacity]
    even = equal(ragged)
    step = setting.trainer(model, size, compiled)
    return compare(
        "ideal",
        setting.block(step, ragged, sum(len(p.tokens_T) for p in ragged)),
        setting.block(step, even, sum(len(p.tokens_T) for p in even)),
        peer_name=f"unveil on packs of {len(even[0].lengths)} x {even[0].max_seqlen}",
        unit="useful tokens/s",
        floor=setting.floor(model, size, _one(ragged)),
    )


def _one(packs: Sequence[Packed]) -> Packed:
    """All packs as one: the FLOPs of a token depend on the lengths of all sequences."""
    return Packed.of([s for p in packs for s in p.split()])


def _file() -> Path:
    folder = Path(os.environ.get("UNVEIL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    path = folder / "wikitext2" / "valid.txt"
    if not path.is_file():
        raise UserError("UNVEIL_DATA", f"'{folder}' holds no wikitext2/valid.txt", "set it to the folder with the data sets")
    return path
