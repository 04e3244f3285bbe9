"""What a training step of block diffusion costs beside one of masked diffusion: the same network, text, and noise per token.

Block diffusion reads the text twice, noisy and clean, and its last layer wants only keys and values of the clean half. The ratio is the
rate of blocks over the rate of masks: 0.54 is a step 1.85 times as long.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks import setting
from benchmarks.measure import Row, compare
from unveil.config import BlockConfig, MaskedConfig, MaskedSamplerConfig, TransformerConfig
from unveil.discrete.family import Discrete
from unveil.environment import device
from unveil.family import Noise
from unveil.nn.packed import Packed

BLOCKS = (4, 16)
STEPS = 3


def rows() -> list[Row]:
    return [row(block, compiled) for compiled in (False, True) for block in BLOCKS]


def row(
    block: int,
    compiled: bool,
    model: TransformerConfig = setting.MODEL,
    size: int = setting.VOCABULARY,
    batch: int = 2,
    length: int = 1024,
    steps: int = STEPS,
) -> Row:
    """Both compiled, or both eager."""
    tokens_BL = torch.randint(0, size - 6, (batch, length), generator=torch.Generator().manual_seed(0)).to(device())
    pack = Packed.of(list(tokens_BL))
    ours, peer = (
        setting.block(setting.trainer(model, size, compiled, kind, drawn(kind, pack)), [pack], tokens_BL.numel(), steps)
        for kind in (family(model, size, BlockConfig(block=block)), family(model, size, MaskedConfig(random_length=0.0)))
    )
    mode = "compiled" if compiled else "eager"
    return compare(f"blocks of {block}, {mode}", ours, peer, peer_name=f"masked diffusion, {mode}", unit="tokens/s", floor=None)


def family(model: TransformerConfig, size: int, objective: Any) -> Discrete:
    return Discrete(setting.vocabulary(size), model, objective, MaskedSamplerConfig())


def drawn(kind: Discrete, pack: Packed) -> Noise:
    """The noise of a pack, as the loader draws it."""
    rng = np.random.default_rng(0)
    each = [kind.draw(i, 0, length, rng) for i, length in enumerate(pack.lengths)]
    return {name: torch.from_numpy(np.concatenate([one[name] for one in each])).to(device()) for name in each[0]}
