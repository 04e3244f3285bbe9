"""New tokens per second of diffusion decoding: what windows that commit by confidence, caches and blocks are worth.

On trained runs where the environment names them, ``UNVEIL_RUNS="masked=DIR,block=DIR,autoregressive=DIR"`` of one tokenizer: then each row
tells the quality beside the speed, in nats per token under the autoregressive run as the judge and as unigram entropy. Else on random
weights of the benchmarks' one size, whose confidence says nothing: there the number of tokens that a step commits is assumed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import setting
from benchmarks.llada import generate
from benchmarks.measure import Block, Row, compare
from unveil.config import MaskedSamplerConfig, NextTokenConfig, NextTokenSamplerConfig, TransformerConfig
from unveil.discrete.allowed import Model
from unveil.discrete.cached import Cached, Kept
from unveil.discrete.canvas import Canvas
from unveil.discrete.denoiser import Subs
from unveil.discrete.sampler import MaskedSampler
from unveil.environment import device
from unveil.errors import UserError
from unveil.family import Request
from unveil.nn.layout import Bidirectional, BlockCausal
from unveil.nn.packed import Packed
from unveil.nn.transformer import Transformer
from unveil.text.vocabulary import Vocabulary
from unveil.training import precision

NEW, PROMPT, WINDOW, BLOCK = 256, 32, 32, 8
ASSUMED = 4
"""Tokens a step of random weights commits: LLaDA-8B commits 3 to 5 at a threshold of 0.9 (Fast-dLLM, section 4)."""
UNIT = "new tokens/s"
KINDS = ("masked", "block", "autoregressive")


@dataclass(frozen=True)
class Subject:
    """A network that is timed."""

    network: Any
    vocabulary: Vocabulary
    block: int = 0
    trained: bool = False


def rows() -> list[Row]:
    runs = given()
    judge = runs.get("autoregressive")
    masked = runs.get("masked") or subject(setting.MODEL, setting.VOCABULARY)
    blocks = runs.get("block") or subject(setting.MODEL, setting.VOCABULARY, BLOCK)
    found = [dual_threshold(masked, batch, judge) for batch in (1, 8)]
    found += [exact_block_cache(blocks, batch, judge) for batch in (1, 8)]
    return [*found, against_autoregressive(blocks, judge)]


def given() -> dict[str, Subject]:
    """The runs that the environment names. Raises UserError."""
    from unveil.run import load
    from unveil.text_run import TextRun

    found = {}
    for part in filter(None, os.environ.get("UNVEIL_RUNS", "").split(",")):
        kind, _, path = part.partition("=")
        if kind not in KINDS or not path:
            raise UserError("UNVEIL_RUNS", f"got {part!r}", f"write KIND=DIR, KIND one of {', '.join(KINDS)}")
        run = load(path)
        if not isinstance(run, TextRun):
            raise UserError("UNVEIL_RUNS", f"{path} is no run of text", "name one")
        network = run.model.to(device()).eval()
        precision.apply(network, precision.compute_dtype("auto", device()))
        layout = getattr(network, "layout", None)
        found[kind] = Subject(network, run.tokenizer.vocabulary, layout.block if isinstance(layout, BlockCausal) else 0, True)
    return found


def subject(model: TransformerConfig, size: int, block: int = 0) -> Subject:
    torch.manual_seed(0)
    network = Transformer(model, size, BlockCausal(block) if block else Bidirectional()).to(device()).eval()
    precision.apply(network, precision.compute_dtype("auto", device()))
    return Subject(network, setting.vocabulary(size), block)


def prompts(vocabulary: Vocabulary, batch: int, length: int = PROMPT) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    start = torch.tensor([vocabulary.start])
    return [torch.cat([start, torch.randint(0, vocabulary.size - 6, (length - 1,), generator=random)]) for _ in range(batch)]


@dataclass(frozen=True)
class Decode:
    """Our sampler on a subject: a call returns the new tokens, ``[B, new]``."""

    subject: Subject
    config: MaskedSamplerConfig
    texts: Sequence[Tensor]
    prefilled_anew: bool = False

    def __call__(self) -> Tensor:
        s = self.subject
        ours = MaskedSampler(Subs.of(s.vocabulary), s.vocabulary.end, self.config, keep=(s.vocabulary.start,), traits=Model(s.block))
        requests = [Request(text.numpy(), self.config.length, seed) for seed, text in enumerate(self.texts)]
        state = ours.begin(requests, s.network)
        if self.prefilled_anew:
            state.context = Refilled("block", s.block, state.context.rows, state.context.store)
        last = {}
        while state.live:
            last |= {row.request: row for row in ours.step(s.network, state).rows}
        return torch.stack([torch.from_numpy(last[i].tokens[len(text) :]) for i, text in enumerate(self.texts)])


@dataclass
class Refilled(Cached):
    """The block cache of dLLM: whatever is finished is read again when a block opens."""

    def _span(self, row: Canvas, kept: Kept) -> tuple[int, int, int, int]:
        return super()._span(row, kept if kept.window == row.window else Kept(kept.slot))


def parallel(s: Subject, steps: int) -> dict[str, Any]:
    """The commit rule: by confidence where there is any."""
    return {"commit": "threshold", "threshold": 0.9} if s.trained else {"steps": steps}


def assumed(s: Subject) -> str:
    return "" if s.trained else f"; random weights, {ASSUMED} tokens a step assumed"


def dual_threshold(s: Subject, batch: int, judge: Subject | None, new: int = NEW, window: int = WINDOW, pairs: int = 5) -> Row:
    """Dual cache and threshold against the sampler that LLaDA publishes: one token a step, the whole canvas read at each."""
    texts = prompts(s.vocabulary, batch)
    config = MaskedSamplerConfig(
        length=new, window=window, cache="dual", temperature=0.0, end="forbid", **parallel(s, max(new // ASSUMED, -(-new // window)))
    )
    ours, subs = Decode(s, config, texts), Subs(s.vocabulary.mask, s.vocabulary.specials)

    def logits(x_BL: Tensor) -> Tensor:
        return subs.restrict(s.network.head(s.network(Packed.of(list(x_BL)).to(device())))).view(*x_BL.shape, -1).cpu()

    def plain() -> Tensor:
        return generate(logits, torch.stack(texts), new, new, window, s.vocabulary.mask)[0][:, -new:]

    return row(f"dual threshold, batch {batch}", ours, plain, "LLaDA's published algorithm" + assumed(s), judge, texts, pairs)


def exact_block_cache(s: Subject, batch: int, judge: Subject | None, new: int = NEW, pairs: int = 5) -> Row:
    """A finished block is read once, against reading all finished blocks again for each new one."""
    texts = prompts(s.vocabulary, batch)
    config = MaskedSamplerConfig(length=new, cache="block", temperature=0.0, end="forbid", **parallel(s, new // ASSUMED))
    ours, theirs = Decode(s, config, texts), Decode(s, config, texts, prefilled_anew=True)
    told = f"our sampler, finished blocks read again for each of {s.block}" + assumed(s)
    return row(f"exact block cache, batch {batch}", ours, theirs, told, judge, texts, pairs)


def against_autoregressive(s: Subject, judge: Subject | None, new: int = NEW, pairs: int = 5) -> Row:
    """Block diffusion with its cache at batch 1 against our cached autoregression, of the judge or of random weights of the same size."""
    texts = prompts(s.vocabulary, 1)
    config = MaskedSamplerConfig(length=new, cache="block", temperature=0.0, end="forbid", **parallel(s, new // ASSUMED))
    network = judge.network if judge else setting.build(s.network.config, s.vocabulary.size).eval()
    family = setting.Autoregressive(s.vocabulary, network.config, NextTokenConfig(), NextTokenSamplerConfig(temperature=0.0))

    def autoregressive() -> Tensor:
        state = family.begin(network, [Request(texts[0].numpy(), new)])
        while state.live:
            snapshot = family.step(network, state)
        return torch.from_numpy(snapshot.rows[0].tokens[len(texts[0]) :].copy())[None]

    told = "our cached autoregression" + assumed(s)
    return row(f"block {s.block} against autoregressive, batch 1", Decode(s, config, texts), autoregressive, told, judge, texts, pairs)


def row(
    name: str,
    ours: Callable[[], Tensor],
    theirs: Callable[[], Tensor],
    told: str,
    judge: Subject | None,
    texts: Sequence[Tensor],
    pairs: int,
) -> Row:
    if judge is not None:
        told += f"; ours {quality(ours(), texts, judge)}, theirs {quality(theirs(), texts, judge)}"
    return compare(name, timed(ours), timed(theirs), peer_name=told, unit=UNIT, floor=None, warmup=1, pairs=pairs)


def timed(work: Callable[[], Tensor]) -> Block:
    """Tokens that it wrote per second: a row may end early."""

    def block() -> float:
        start = time.perf_counter()
        made = work().numel()
        return made / (time.perf_counter() - start)

    return block


def quality(new_BN: Tensor, texts: Sequence[Tensor], judge: Subject) -> str:
    """Nats per new token under the judge, and the entropy of the tokens' own frequencies, by which repetition shows."""
    family = setting.Autoregressive(judge.vocabulary, judge.network.config, NextTokenConfig(), NextTokenSamplerConfig())
    batch = Packed.of([torch.cat([text, new]) for text, new in zip(texts, new_BN, strict=True)])
    counted_T = torch.cat([torch.arange(len(text) + len(new)) >= len(text) for text, new in zip(texts, new_BN, strict=True)])
    value_N, _ = family.log_likelihood(judge.network, batch.to(device()), 1, 0, counted_T.to(device()))
    frequency = np.bincount(new_BN.flatten().numpy()) / new_BN.numel()
    frequency = frequency[frequency > 0]
    entropy = float(-(frequency * np.log(frequency)).sum())
    return f"{-float(value_N.sum()) / new_BN.numel():.3f} nats a token at entropy {entropy:.2f}"
