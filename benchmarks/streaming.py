"""Chunks per second of a stream, at OadTR's own size: 3,072 features, width 1,024, 8 chunks ahead.

The peer of the exact mode is the plain window model in float32, called with the last 64 chunks at each step, which is what public code
does. 32 streams at once are measured against the same stream one by one, the cached mode against the exact one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import setting
from benchmarks.measure import Block, Row, compare, rate, say
from unveil.config_streams import CausalConfig, OadTRConfig
from unveil.data.clips import Clips
from unveil.environment import device
from unveil.streams.causal import CausalDetector
from unveil.streams.detector import scored
from unveil.streams.oadtr import RELEASED, OadTR
from unveil.streams.streaming import Streamer
from unveil.training import precision

EXACT = replace(RELEASED, features=3072, classes=22, ignored=(21,))
CACHED = CausalConfig(features=3072, classes=22, ignored=(21,))
STREAMS = 32
CHUNKS = 20
"""Of a block."""


def rows() -> list[Row]:
    return [exact(torch.float32), exact(torch.bfloat16), together(), cached(), cached(futures=False)]


def exact(dtype: torch.dtype, model: OadTRConfig = EXACT, chunks: int = CHUNKS, pairs: int = 7) -> Row:
    """Against the window model in float32. Raises RuntimeError if in float32 the two do not compute the same."""
    network = build(OadTR, model)
    streamer, difference = filled(network, model.steps, dtype), disagreement(network, model, dtype)
    name = str(dtype).removeprefix("torch.")
    say(f"exact {name}: scores differ from the window model's in float32 by {difference:.1e} at the most; {latency(streamer)}")
    if dtype == torch.float32 and difference > 1e-5:
        raise RuntimeError(f"exact: scores differ by {difference:.1e} from the window model's")
    return compare(
        f"exact {name}, 1 stream",
        pushes(streamer, chunks),
        windows(network, model, chunks),
        peer_name="the same network on the last 64 chunks at each step, float32",
        unit="chunks/s",
        floor=floor(streamer, dtype),
        pairs=pairs,
    )


def together(model: OadTRConfig = EXACT, streams: int = STREAMS, chunks: int = CHUNKS, pairs: int = 7) -> Row:
    """Many streams in a push, against one, both bfloat16."""
    network, dtype = build(OadTR, model), torch.bfloat16
    many, one = filled(network, model.steps, dtype, streams), filled(network, model.steps, dtype)
    return compare(
        f"exact bfloat16, {streams} streams at once",
        pushes(many, max(1, chunks // streams)),
        pushes(one, chunks),
        peer_name="one by one",
        unit="chunks/s",
        floor=floor(many, dtype),
        pairs=pairs,
    )


def cached(futures: bool = True, model: CausalConfig = CACHED, against: OadTRConfig = EXACT, chunks: int = CHUNKS, pairs: int = 7) -> Row:
    """The causal network against the exact mode with all its futures, both float32."""
    streamer = filled(build(CausalDetector, model), model.steps, torch.float32, futures=futures)
    peer = filled(build(OadTR, against), against.steps, torch.float32)
    name = f"cached float32, {'all chunks ahead' if futures else 'the present alone'}"
    say(f"{name}: {latency(streamer)}")
    return compare(
        name,
        pushes(streamer, chunks),
        pushes(peer, chunks),
        peer_name="exact mode with all chunks ahead, float32",
        unit="chunks/s",
        floor=floor(streamer, torch.float32),
        pairs=pairs,
    )


def build(kind: Callable[[Any], Any], model: Any) -> Any:
    torch.manual_seed(0)
    return kind(model).to(device()).eval()


def chunk(model: Any, streams: int = 1) -> Tensor:
    return torch.randn(streams, model.features, generator=torch.Generator().manual_seed(0)).to(device())


def filled(network: Any, steps: int, dtype: torch.dtype, streams: int = 1, futures: bool = True) -> Streamer:
    """Streams that have a whole window behind them: what had been before would be cheaper."""
    streamer = Streamer(network, streams, dtype=dtype, futures=futures)
    streamer.push(range(streams), chunk(network.settings, streams))
    state = streamer.state_dict()
    streamer.load_state_dict({**state, "seen": [steps] * streams})
    return streamer


def pushes(streamer: Streamer, chunks: int) -> Block:
    streams = list(streamer.open)
    x = chunk(streamer.network.settings, len(streams))
    return lambda: rate(lambda: streamer.push(streams, x), len(streams), chunks)


def windows(network: Any, model: OadTRConfig, chunks: int) -> Block:
    """The window model, called at each step."""
    batch = window(model)

    @torch.no_grad()
    def step() -> None:
        network(batch)

    return lambda: rate(step, 1, chunks)


def window(model: OadTRConfig) -> Clips:
    """A full history, every chunk another."""
    features = torch.randn(model.steps, model.features, generator=torch.Generator().manual_seed(1))
    none = torch.zeros(1, dtype=torch.int64)
    return Clips.of([features], none, none.expand(1, model.horizon)).to(device())


@torch.no_grad()
def disagreement(network: Any, model: OadTRConfig, dtype: torch.dtype) -> float:
    """Largest difference of a probability, of the present or ahead, at the end of a full window."""
    batch, streamer = window(model), Streamer(network, dtype=dtype)
    for x_F in batch.features_TF:
        scores = streamer.push([0], x_F[None])
    expected = (scored(logits, model.ignored).softmax(-1) for logits in network(batch))
    return max(float((ours - theirs).abs().max()) for ours, theirs in zip(scores, expected, strict=True))


def latency(streamer: Streamer, count: int = 40) -> str:
    """Percentiles of single pushes."""
    streams = list(streamer.open)
    x, times = chunk(streamer.network.settings, len(streams)), []
    for _ in range(count):
        start = time.perf_counter()
        streamer.push(streams, x)
        times.append(1000 * (time.perf_counter() - start))
    cuts = statistics.quantiles(times[count // 4 :], n=100, method="inclusive")
    return f"latency p50 {cuts[49]:.1f}, p95 {cuts[94]:.1f}, p99 {cuts[98]:.1f} ms"


def floor(streamer: Streamer, dtype: torch.dtype) -> float:
    """Chunks per second of a push that does nothing but its matrix products at the machine's best rate, and reads each weight once:
    the slower of the two. Reading is a product of as many weights with one vector."""
    streams = list(streamer.open)
    x = chunk(streamer.network.settings, len(streams))
    with FlopCounterMode(display=False) as counter:
        streamer.push(streams, x)
    decoder = getattr(streamer.stepper, "decoder", None)
    used = [
        p
        for n, p in streamer.network.named_parameters()
        if p.dim() == 2 and (decoder is not None or not n.startswith(("decoder", "future")))
    ]
    read, width = sum(p.numel() for p in used), streamer.network.settings.width
    threads = torch.get_num_threads()
    peak = setting.undisturbed(lambda: precision.peak_flops(dtype, device()))
    reading = setting.undisturbed(lambda: precision.matmul_rate(read // width, 1, width, dtype, str(device()), threads))
    return len(streams) / max(counter.get_total_flops() / peak, 2 * read / reading)
