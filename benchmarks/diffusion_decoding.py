"""New tokens per second of diffusion decoding: what windows that commit by confidence, caches and blocks are worth.

On trained runs with ``--runs FOLDER`` (``masked``, ``block``, ``autoregressive``, ``judge``; missing ones are trained on ``--data FILE``):
then a table beside the rows tells speed and quality of many settings, over ``--texts`` openings, and ``--plot`` draws them. Else on random
weights of the benchmarks' one size, whose confidence says nothing: there the number of tokens that a step commits is assumed.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import decoding_quality, dllm, setting
from benchmarks.decoding_runs import NEW, OPENING, Runs, gathered
from benchmarks.llada import generate
from benchmarks.measure import Block, Row, compare, say
from unveil.config import MaskedSamplerConfig, NextTokenConfig, NextTokenSamplerConfig, TransformerConfig
from unveil.discrete.allowed import Model
from unveil.discrete.denoiser import Subs
from unveil.discrete.sampler import MaskedSampler
from unveil.environment import device
from unveil.family import Request
from unveil.nn.layout import Bidirectional, BlockCausal
from unveil.nn.packed import Packed
from unveil.nn.transformer import Transformer
from unveil.text.vocabulary import Vocabulary

WINDOW, BLOCK = 32, 8
ASSUMED = 4
"""Tokens a step of random weights commits: LLaDA-8B commits 3 to 5 at a threshold of 0.9 (Fast-dLLM, section 4)."""
UNIT = "new tokens/s"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--runs", type=Path, help="folder of trained runs")
    parser.add_argument("--data", default="", help="text to train what is missing there on")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training, each run")
    parser.add_argument("--texts", type=int, default=2000, help="openings that quality is measured on")
    parser.add_argument("--threshold", type=float, default=0.9, help="of the rows on trained runs")
    parser.add_argument("--plot", type=Path, help="draw quality against speed into this PNG or SVG")
    parser.add_argument("--eager", action="store_true", help="compile neither side at batch 1")


@dataclass(frozen=True)
class Subject:
    """A network that is timed, and the openings it goes on from."""

    network: Any
    vocabulary: Vocabulary
    openings: Sequence[Tensor]
    block: int = 0
    threshold: float | None = None
    """Of a trained network; random weights commit ``ASSUMED`` tokens a step."""

    def commits(self, new: int) -> dict[str, Any]:
        if self.threshold is None:
            return {"steps": new // ASSUMED}
        return {"commit": "threshold", "threshold": self.threshold}

    @property
    def told(self) -> str:
        return f"; random weights, {ASSUMED} tokens a step assumed" if self.threshold is None else f"; threshold {self.threshold:g}"


def rows(given: Namespace | None = None) -> list[Row]:
    return _rows(given, None if given is None or given.runs is None else _runs(given))


def details(given: Namespace) -> Any:
    """Speed beside quality, of many settings; None on random weights."""
    if given.runs is None:
        return None
    found = decoding_quality.points(_runs(given), decoding_quality.settings(), given.texts)
    for kind in ("masked", "block"):
        best = decoding_quality.fastest(found, kind)
        say(f"fastest that keeps the quality, {kind}: {'none' if best is None else best.name}")
    if given.plot is not None:
        decoding_quality.plot(found, given.plot)
    return [asdict(point) for point in found]


def _runs(given: Namespace) -> Runs:
    return gathered(given.runs, given.data, given.minutes, given.texts)


def _rows(given: Namespace | None, runs: Runs | None) -> list[Row]:
    compiled = given is None or not given.eager
    if runs is None:
        full, blocks = (random(setting.MODEL, setting.VOCABULARY, block) for block in (0, BLOCK))
        causal = setting.build(setting.MODEL, setting.VOCABULARY).eval()
        causal.compute_dtype = torch.float32
    else:
        full, blocks, causal = trained(runs, "masked", given), trained(runs, "block", given), runs.by_kind["autoregressive"].model
    found = [dual_threshold(full, batch) for batch in (1, 8)] + [exact_block_cache(blocks, 8)]
    if compiled:  # both sides of what follows, where a pass over a few tokens is mostly its overhead
        for network in (blocks.network, causal):
            network.compile_decoding()
    return [*found, exact_block_cache(blocks, 1), against_autoregressive(blocks, causal)]


def random(model: TransformerConfig, size: int, block: int = 0, prompt: int = OPENING) -> Subject:
    """In float32, in which small batches are read fastest on a CPU: weights are not cast at each use."""
    torch.manual_seed(0)
    network = Transformer(model, size, BlockCausal(block) if block else Bidirectional()).to(device()).eval()
    vocabulary, draw = setting.vocabulary(size), torch.Generator().manual_seed(0)
    start = torch.tensor([vocabulary.start])
    openings = [torch.cat([start, torch.randint(0, size - 6, (prompt - 1,), generator=draw)]) for _ in range(8)]
    return Subject(network, vocabulary, openings, block)


def trained(runs: Runs, kind: str, given: Any) -> Subject:
    network: Any = runs.by_kind[kind].model
    block = network.layout.block if isinstance(network.layout, BlockCausal) else 0
    return Subject(network, runs.vocabulary, [torch.from_numpy(text) for text in runs.openings], block, given.threshold)


@dataclass(frozen=True)
class Decode:
    """Our sampler on a subject: a call returns the new tokens, ``[B, new]``."""

    subject: Subject
    config: MaskedSamplerConfig
    batch: int

    def __call__(self) -> Tensor:
        s, texts = self.subject, self.subject.openings[: self.batch]
        ours = MaskedSampler(Subs.of(s.vocabulary), s.vocabulary.end, self.config, keep=(s.vocabulary.start,), traits=Model(s.block))
        state, last = ours.begin([Request(text.numpy(), self.config.length, seed) for seed, text in enumerate(texts)], s.network), {}
        while state.live:
            last |= {row.request: row for row in ours.step(s.network, state).rows}
        return torch.stack([torch.from_numpy(last[i].tokens[len(text) :]) for i, text in enumerate(texts)])


def _greedy(new: int, **settings: Any) -> MaskedSamplerConfig:
    return MaskedSamplerConfig(length=new, temperature=0.0, end="forbid", **settings)


def dual_threshold(s: Subject, batch: int, new: int = NEW, window: int = WINDOW, pairs: int = 5) -> Row:
    """Dual cache and threshold against the sampler that LLaDA publishes (one token a step, the whole canvas read at each)."""
    commits = s.commits(new) if s.threshold is not None else {"steps": max(new // ASSUMED, -(-new // window))}
    ours = Decode(s, _greedy(new, window=window, cache="dual", **commits), batch)
    subs, prompt_BP = Subs(s.vocabulary.mask, s.vocabulary.specials), torch.stack(list(s.openings[:batch]))

    def logits(x_BL: Tensor) -> Tensor:
        return subs.restrict(s.network.head(s.network(Packed.of(list(x_BL)).to(device())))).view(*x_BL.shape, -1).cpu()

    def plain() -> Tensor:
        return generate(logits, prompt_BP, new, new, window, s.vocabulary.mask)[0][:, -new:]

    return _row(f"dual threshold, batch {batch}", ours, plain, "LLaDA's published algorithm" + s.told, pairs)


def exact_block_cache(s: Subject, batch: int, new: int = NEW, pairs: int = 5) -> Row:
    """A finished block is read once, against reading the whole text again for each block, as dLLM does."""
    ours = Decode(s, _greedy(new, cache="block", **s.commits(new)), batch)
    subs, prompt_BP = Subs(s.vocabulary.mask, s.vocabulary.specials), torch.stack(list(s.openings[:batch]))
    commits = dllm.quota(s.block, -(-s.block // ASSUMED)) if s.threshold is None else dllm.threshold(s.threshold)

    def again() -> Tensor:
        return dllm.generate(s.network, subs.restrict, prompt_BP, new, s.block, s.vocabulary.mask, commits)[0][:, -new:]

    told = f"dLLM's order of work, the text read again for each block of {s.block}" + s.told
    return _row(f"exact block cache, batch {batch}", ours, again, told, pairs)


def against_autoregressive(s: Subject, causal: Any, new: int = NEW, pairs: int = 5) -> Row:
    """Block diffusion with its cache at batch 1 against our cached autoregression, of a network of the same size."""
    ours = Decode(s, _greedy(new, cache="block", **s.commits(new)), 1)
    family = setting.Autoregressive(s.vocabulary, causal.config, NextTokenConfig(), NextTokenSamplerConfig(temperature=0.0))

    def autoregressive() -> Tensor:
        state = family.begin(causal, [Request(s.openings[0].numpy(), new)])
        while state.live:
            snapshot = family.step(causal, state)
        return torch.from_numpy(snapshot.rows[0].tokens[len(s.openings[0]) :].copy())[None]

    return _row(f"block {s.block} against autoregressive, batch 1", ours, autoregressive, "our cached autoregression" + s.told, pairs)


def _row(name: str, ours: Callable[[], Tensor], theirs: Callable[[], Tensor], told: str, pairs: int) -> Row:
    row = compare(name, timed(ours), timed(theirs), peer_name=told, unit=UNIT, floor=None, warmup=1, pairs=pairs)
    say(f"{name}: {row.ours:,.0f} against {row.peer:,.0f} tokens/s, {row.ratio:.2f} ({row.spread:.2f})")
    return row


def timed(work: Callable[[], Tensor]) -> Block:
    """Tokens that it wrote per second: a row may end early."""

    def block() -> float:
        start = time.perf_counter()
        made = work().numel()
        return made / (time.perf_counter() - start)

    return block
