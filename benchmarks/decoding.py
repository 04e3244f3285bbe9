"""New tokens per second of cached greedy decoding, the prompts' reading included: one request, and sixteen of different lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import peer, setting
from benchmarks.measure import Block, Row, compare, fastest, rate, say
from unveil.config import TransformerConfig
from unveil.environment import device
from unveil.family import Request
from unveil.training import precision

NEW = 128
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def rows() -> list[Row]:
    lengths = np.random.default_rng(0).permutation(np.linspace(16, 128, 16).astype(int)).tolist()
    return [row("generate batch 1", [64]), row("generate batch 16 ragged", lengths)]


def row(
    name: str,
    lengths: Sequence[int],
    model: TransformerConfig = setting.MODEL,
    size: int = setting.VOCABULARY,
    new: int = NEW,
    modes: Sequence[bool] = (False, True),
) -> Row:
    """Our sampler against ``generate`` with the same weights, in its fastest dtype and cache.

    Raises RuntimeError if the two do not write the same text in float32, but for near ties: then they are not the same network.
    """
    network, texts = weights(model, size), prompts(lengths, size)
    decode = decoder(network, model, size, texts, new)

    def generate(dtype: str, compiled: bool) -> Callable[[], Tensor]:
        theirs = peer.llama(model, size)
        peer.copy_weights(network, theirs)
        return peer.generator(theirs.to(DTYPES[dtype]), texts, new, compiled)

    def candidate(full: str) -> Block:
        dtype, mode = full.split(", ")
        work = generate(dtype, mode == "compiled static cache")
        return lambda: rate(work, len(texts) * new)

    same = agreement(decode(), generate("float32", False)())
    say(f"{name}: {same:.1%} of the new tokens are the peer's; its dtype and cache")
    if same < 0.9:
        raise RuntimeError(f"{name}: only {same:.1%} of the new tokens agree with the peer's")
    names = [f"{dtype}, {'compiled static cache' if c else 'eager dynamic cache'}" for dtype in DTYPES for c in modes]
    best = fastest({full: lambda f=full: candidate(f) for full in names})  # type: ignore[misc]
    return compare(
        name,
        lambda: rate(decode, len(texts) * new),
        candidate(best),
        peer_name=f"{peer.NAME} generate, {best}",
        unit="new tokens/s",
        floor=floor(network, len(texts)),
    )


@torch.no_grad()
def weights(model: TransformerConfig, size: int) -> Any:
    """Our network, with the special tokens' logits at 0: greedy decoding never reaches them, so no row ends early and what our
    sampler forbids does not matter."""
    network = setting.build(model, size).eval()
    network.head.weight[-6:] = 0
    network.compile_decoding()
    return network


def prompts(lengths: Sequence[int], size: int) -> list[Tensor]:
    """Random tokens behind a start token."""
    rng = torch.Generator().manual_seed(0)
    start = torch.tensor([setting.vocabulary(size).start])
    return [torch.cat([start, torch.randint(0, size - 6, (n - 1,), generator=rng)]) for n in lengths]


def decoder(network: Any, model: TransformerConfig, size: int, texts: Sequence[Tensor], new: int) -> Callable[[], Tensor]:
    """Our sampler from prompts to the last of ``new`` tokens; a call returns them, ``[B, new]``."""
    family = setting.family(model, size)
    requests = [Request(text.numpy(), new) for text in texts]

    def decode() -> Tensor:
        state = family.begin(network, requests)
        while state.live:
            snapshot = family.step(network, state)
        return torch.stack([torch.from_numpy(row.tokens[-new:].copy()) for row in snapshot.rows])

    return decode


def agreement(ours: Tensor, theirs: Tensor) -> float:
    """Share of equal tokens."""
    return float((ours == theirs.cpu()).float().mean())


def floor(network: Any, batch: int) -> float:
    """New tokens per second of steps that do nothing but multiply each weight matrix, of which the small batch makes reading weights
    the limit: the rate of one product with as many weights, in the faster dtype. Attention and prompts are left out."""
    matrices = sum(p.numel() for name, p in network.named_parameters() if p.dim() == 2 and not name.startswith("embedding"))
    width = network.config.width
    shape = matrices // width, batch, width
    threads = torch.get_num_threads()
    best = setting.undisturbed(lambda: max(precision.matmul_rate(*shape, dtype, str(device()), threads) for dtype in DTYPES.values()))
    return best / (2 * matrices)
