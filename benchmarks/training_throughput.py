"""Tokens per second of a whole training step on batches of equal sequences: 8 x 256 tokens, no padding on either side."""

from __future__ import annotations

import torch

from benchmarks import peer, setting
from benchmarks.measure import Block, Row, compare, fastest, rate, say
from unveil.config import TransformerConfig
from unveil.environment import device
from unveil.nn.packed import Packed

STEPS = 4
"""Steps of a block: a second or two."""


def rows() -> list[Row]:
    return [row("compiled", True), row("eager", False)]


def row(
    name: str, compiled: bool, model: TransformerConfig = setting.MODEL, size: int = setting.VOCABULARY, batch: int = 8, length: int = 256
) -> Row:
    """Both compiled, or both eager; the peer in its fastest precision."""
    tokens_BL = torch.randint(0, size - 6, (batch, length), generator=torch.Generator().manual_seed(0)).to(device())
    mode = "compiled" if compiled else "eager"

    def candidate(precision: str, steps: int = 2) -> Block:
        step = peer.trainer(model, size, precision, compiled)
        return lambda: rate(lambda: step(tokens_BL, tokens_BL), tokens_BL.numel(), steps)

    say(f"{name}: the peer's precision")
    best = fastest({precision: lambda p=precision: candidate(p) for precision in peer.PRECISIONS})  # type: ignore[misc]
    pack = Packed.of(list(tokens_BL))
    ours = setting.block(setting.trainer(model, size, compiled), [pack], tokens_BL.numel(), STEPS)
    return compare(
        name,
        ours,
        candidate(best, STEPS),
        peer_name=f"{peer.NAME}, {best}, {mode}",
        unit="tokens/s",
        floor=setting.floor(model, size, pack),
    )
