"""New tokens per second of decoding with drafts of multi-token prediction against plain cached decoding of the same network.

On a trained run, ``UNVEIL_RUNS="mtp=DIR"`` (of ``unveil train mtp-python``, say): whether drafts stand is a matter of training. Prompts are
the beginnings of its held-out documents. The plain side takes its fastest dtype, eager or compiled, and the drafting side the same.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.decoding import DTYPES
from benchmarks.measure import Block, Row, compare, fastest, rate, say
from unveil.autoregressive.sampler import NextTokenSampler
from unveil.autoregressive.speculative import SpeculativeSampler, acceptance
from unveil.config import NextTokenSamplerConfig
from unveil.data.loader import held_out
from unveil.data.shards import prepare
from unveil.environment import device
from unveil.errors import UserError
from unveil.family import Request
from unveil.family import Row as Text
from unveil.text.vocabulary import Vocabulary
from unveil.training import precision

PROMPT, NEW, PROMPTS = 32, 192, 8
GREEDY, DRAWN = NextTokenSamplerConfig(temperature=0.0, length=NEW), NextTokenSamplerConfig(length=NEW)


@dataclass(frozen=True)
class Subject:
    """A network that drafts, and what it is to go on from."""

    network: Any
    vocabulary: Vocabulary
    prompts: Sequence[np.ndarray[Any, Any]]


def rows() -> list[Row]:
    subject = given()
    cases = [("greedy, batch 1", GREEDY, 1), (f"greedy, batch {PROMPTS}", GREEDY, PROMPTS), ("drawn, batch 1", DRAWN, 1)]
    return [row(name, subject, config, batch) for name, config, batch in cases]


def given() -> Subject:
    """The run that the environment names. Raises UserError."""
    from unveil.run import load
    from unveil.text_run import TextRun

    kind, _, path = os.environ.get("UNVEIL_RUNS", "").partition("=")
    if kind != "mtp" or not path:
        raise UserError("UNVEIL_RUNS", f"got '{kind}'", "write mtp=DIR, the run of a recipe with model.mtp.depths, as mtp-python")
    run = load(path)
    if not isinstance(run, TextRun) or not run.recipe.model.mtp.depths:
        raise UserError("UNVEIL_RUNS", f"{path} is no run of text with model.mtp.depths", "train mtp-python")
    texts = (text for batch, *_ in held_out(prepare(run.recipe.data), run.recipe.data, "validation", 0) for text in batch.split())
    prompts = [text[:PROMPT].numpy() for text in texts if len(text) >= PROMPT + NEW][:PROMPTS]
    return Subject(run.model.to(device()).eval(), run.tokenizer.vocabulary, prompts)


def row(
    name: str, subject: Subject, config: NextTokenSamplerConfig, batch: int, modes: Sequence[bool] = (False, True), rounds: int = 4
) -> Row:
    """Plain decoding in each of ``DTYPES``, eager and, by ``modes``, compiled; the drafting side in the best of these."""
    requests = [Request(p, config.length, seed) for seed, p in enumerate(subject.prompts)]
    groups = [requests[i : i + batch] for i in range(0, len(requests), batch)]
    depths = len(subject.network.mtp)

    def writer(full: str, drafts: int) -> Callable[[], list[Text]]:
        dtype, mode = full.split(", ")
        network = copy.deepcopy(subject.network)
        precision.apply(network.to(DTYPES[dtype]), DTYPES[dtype])
        if mode == "compiled":
            network.compile_decoding()
        return lambda: [text for group in groups for text in write(network, subject.vocabulary, replace(config, speculate=drafts), group)]

    def block(work: Callable[[], list[Text]]) -> Block:
        amount = written(work())  # the same each time
        return lambda: rate(work, amount)

    names = [f"{dtype}, {'compiled' if mode else 'eager'}" for dtype in DTYPES for mode in modes]
    best = fastest({full: lambda f=full: block(writer(f, 0)) for full in names}, rounds)  # type: ignore[misc]
    plain, drafting = writer(best, 0), writer(best, depths)
    texts, drafted = plain(), drafting()
    shares = ", ".join(f"{share:.1%}" for share in acceptance(drafted))
    passes = sum(text.evaluations for text in drafted)
    say(f"{name}: {written(drafted) / passes:.3f} tokens for one pass of the trunk; drafts accepted, by depth: {shares}")
    if config.temperature == 0:
        same = np.mean([np.array_equal(a.tokens, b.tokens) for a, b in zip(texts, drafted, strict=True)])
        say(f"{name}: {same:.0%} of the texts are those of plain decoding, word for word")
    ours, peer = block(drafting), block(plain)
    return compare(name, ours, peer, peer_name=f"plain cached decoding, {best}", unit="new tokens/s", floor=None)


def write(network: Any, vocabulary: Vocabulary, config: NextTokenSamplerConfig, requests: Sequence[Request]) -> list[Text]:
    """The texts of some requests, written together."""
    sampler = (SpeculativeSampler if config.speculate else NextTokenSampler)(vocabulary, config)
    state: Any = sampler.begin(network, requests)
    done: dict[int, Text] = {}
    while state.live:
        done |= {text.request: text for text in sampler.step(network, state).rows if text.final}
    return [done[i] for i in range(len(requests))]


def written(texts: Sequence[Text]) -> int:
    """New tokens."""
    return sum(int((text.committed_at > 0).sum()) for text in texts)
