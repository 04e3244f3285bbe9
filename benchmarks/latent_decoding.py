"""New tokens per second of absorbed decoding behind a context of 2,048 tokens, against `transformers`, which expands its cache anew at each
step; the reading of the context is left out on both sides. And the cache beside one of as many plain heads."""

from __future__ import annotations

import copy
import time
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor

from benchmarks import setting
from benchmarks.decoding import DTYPES, agreement
from benchmarks.experts_training import deepseek
from benchmarks.measure import Row, compare, fastest, say
from unveil.config import ExpertsConfig, LatentConfig, TransformerConfig
from unveil.family import Request
from unveil.interop import deepseek as layout
from unveil.interop.state import exported
from unveil.training import precision

LATENT = LatentConfig(width=128, plain=32, rotary=32, value=32)
MODEL = TransformerConfig(width=512, depth=8, heads=16, hidden=1408, latent=LATENT)
CONTEXT, NEW = 2048, 24


def rows() -> list[Row]:
    values = MODEL.latent.width + MODEL.latent.rotary, 2 * MODEL.heads * MODEL.latent.value
    say(f"cache: {values[0]} values a token and layer, {values[1]} of as many plain heads: {values[1] / values[0]:.1f} times as many")
    return [row(f"context {CONTEXT}, batch {batch}", batch) for batch in (1, 8)]


def row(name: str, batch: int, model: TransformerConfig = MODEL, context: int = CONTEXT, new: int = NEW, compiled: bool = True) -> Row:
    """Our sampler against ``generate`` with the same weights, each in its faster dtype.

    Raises RuntimeError if the two do not write the same text in float32, but for near ties.
    """
    network = weights(model)
    prompts_BL = torch.randint(0, setting.VOCABULARY - 6, (batch, context), generator=torch.Generator().manual_seed(0))
    given = network, model, prompts_BL, new
    same = agreement(Ours(*given, "float32", False).texts(), Theirs(*given, "float32").texts())
    say(f"{name}: {same:.1%} of the new tokens are the peer's")
    if same < 0.9:
        raise RuntimeError(f"{name}: only {same:.1%} of the new tokens agree with the peer's")
    best = fastest({dtype: partial(Theirs, *given, dtype) for dtype in DTYPES}, rounds=2)
    ours = fastest({dtype: partial(Ours, *given, dtype, compiled) for dtype in DTYPES}, rounds=2)
    return compare(
        f"{name}, {ours}",
        Ours(*given, ours, compiled),
        Theirs(*given, best),
        peer_name=f"transformers {transformers.__version__} generate, {best}",
        unit="new tokens/s",
        floor=floor(network, batch, context, ours),
        pairs=5,
    )


@torch.no_grad()
def weights(model: TransformerConfig) -> Any:
    """Our network, whose greedy decoding never reaches a special token."""
    network = setting.build(model, setting.VOCABULARY).eval()
    network.head.weight[-6:] = 0
    return network


class Ours:
    """A block: the time of all steps but the first, which reads the context."""

    def __init__(self, network: Any, model: TransformerConfig, prompts_BL: Tensor, new: int, dtype: str, compiled: bool) -> None:
        self.network, self.new = copy.deepcopy(network), new
        precision.apply(self.network.to(DTYPES[dtype]), DTYPES[dtype])
        if compiled:
            self.network.compile_decoding()
        self.family = setting.family(model, setting.VOCABULARY)
        self.requests = [Request(prompt.numpy(), new) for prompt in prompts_BL]

    def __call__(self) -> float:
        return self._run()[1]

    def texts(self) -> Tensor:
        return self._run()[0]

    def _run(self) -> tuple[Tensor, float]:
        state = self.family.begin(self.network, self.requests)
        snapshot = self.family.step(self.network, state)
        start = time.perf_counter()
        while state.live:
            snapshot = self.family.step(self.network, state)
        rate = len(self.requests) * (self.new - 1) / (time.perf_counter() - start)
        return torch.stack([torch.from_numpy(row.tokens[-self.new :].copy()) for row in snapshot.rows]), rate


class Theirs:
    """The same of ``generate``, by when it hands out each token."""

    def __init__(self, network: Any, model: TransformerConfig, prompts_BL: Tensor, new: int, dtype: str) -> None:
        self.network, self.prompts_BL, self.new = peer(network, model).to(DTYPES[dtype]).eval(), prompts_BL, new

    def __call__(self) -> float:
        return self._run()[1]

    def texts(self) -> Tensor:
        return self._run()[0]

    def _run(self) -> tuple[Tensor, float]:
        clock = Clock()
        options: dict[str, Any] = {"do_sample": False, "max_new_tokens": self.new, "use_cache": True, "streamer": clock}
        out_BL = self.network.generate(self.prompts_BL, attention_mask=torch.ones_like(self.prompts_BL), **options)
        _, first, *_, last = clock.at
        return out_BL[:, self.prompts_BL.shape[1] :], len(out_BL) * (self.new - 1) / (last - first)


class Clock(transformers.generation.streamers.BaseStreamer):  # type: ignore[misc, name-defined]
    """When the prompt and each token after it came."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def put(self, value: Tensor) -> None:
        self.at.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left over."""


@torch.no_grad()
def peer(network: Any, model: TransformerConfig) -> Any:
    """``DeepseekV3ForCausalLM`` without experts, with our weights."""
    plain = TransformerConfig(**{**vars(model), "experts": ExpertsConfig(dense=model.depth, routed=2)})
    theirs = deepseek(plain, setting.VOCABULARY)
    theirs.load_state_dict({name: tensor.float() for name, tensor in exported(network, layout.parts(model, interleaved=False)).items()})
    return theirs


def floor(network: Any, batch: int, context: int, dtype: str) -> float:
    """New tokens per second of steps that only read: the weights once, each row's cache once, at the bandwidth of a large copy."""
    matrices = sum(p.numel() for name, p in network.named_parameters() if p.dim() == 2 and not name.startswith("embedding"))
    cache = batch * context * network.config.depth * (network.config.latent.width + network.config.latent.rotary)
    source = torch.ones(1 << 25)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        source.sum()
        times.append(time.perf_counter() - start)
    bandwidth = source.nbytes / min(times)
    return batch * bandwidth / (DTYPES[dtype].itemsize * (matrices + cache))
