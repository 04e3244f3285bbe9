"""The trained runs that decoding is measured on, and what they are asked: openings and gaps of text that none of them has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import say
from unveil import corpora
from unveil import recipe as recipes
from unveil.data.held_out import held_out
from unveil.errors import UserError
from unveil.families import family
from unveil.family import Request
from unveil.nn.packed import Packed
from unveil.run import load, train
from unveil.text_run import TextRun

KINDS = {
    "masked": ("shakespeare-llada", ()),
    "block": ("bd3-8-shakespeare", ()),
    "autoregressive": ("shakespeare-ar", ()),
    "judge": ("shakespeare-ar", (("seed", 1), ("model.width", 160))),
}
"""Recipe and settings; the judge is another autoregressive network, so that none judges itself."""
CONTEXT, OPENING, NEW = 320, 32, 256
AROUND, GAP = 128, 6
"""Tokens of a text with a gap, and of the gap."""


@dataclass(frozen=True)
class Runs:
    by_kind: dict[str, TextRun]
    openings: list[Any]
    """int64, the start token first."""
    gaps: list[tuple[Any, Any]]
    """A text with masks in the middle, and what they hide."""

    @property
    def vocabulary(self) -> Any:
        return self.by_kind["masked"].tokenizer.vocabulary

    def requests(self, count: int) -> list[Request]:
        return [Request(opening, NEW, seed) for seed, opening in enumerate(self.openings[:count])]


def gathered(folder: Path, data: str, minutes: float, texts: int) -> Runs:
    """The runs in a folder; what is missing is trained on ``data`` and kept there. Raises UserError."""
    found = {}
    for kind, (name, settings) in KINDS.items():
        place = folder / kind
        if not (place / "final").is_dir():
            if not data:
                raise UserError("--runs", f"{place} is no finished run", "name a corpus with --data, to train it")
            say(f"training {name} for {minutes:g} minutes into {place}")
            chosen = [("data.sources", [{"kind": "text", "path": str(Path(data).resolve())}]), ("data.context", CONTEXT)]
            train(recipes.with_overrides(recipes.load(name), [*chosen, ("training.minutes", minutes), *settings]), place)
        run = load(str(place))
        if not isinstance(run, TextRun):
            raise UserError("--runs", f"{place} is no run of text", "name a folder of runs of text")
        run.model.eval()
        found[kind] = run
    if len({run.tokenizer.digest() for run in found.values()}) > 1:
        raise UserError("--runs", f"the runs in {folder} have different tokenizers", "train them on one corpus")
    stream = _unseen(found["masked"])
    vocabulary = found["masked"].tokenizer.vocabulary
    starts = np.linspace(0, len(stream) - AROUND, texts).astype(int)
    openings = [np.concatenate([[vocabulary.start], stream[at : at + OPENING - 1]]) for at in starts]
    gaps = [_gap(np.concatenate([[vocabulary.start], stream[at : at + AROUND - 1]]), vocabulary.mask) for at in starts]
    return Runs(found, openings, gaps)


def _unseen(run: TextRun) -> Any:
    """The test part, without its special tokens."""
    prepared = corpora.prepared(run.recipe.data, shown=False)
    batches = held_out(prepared, run.recipe.data, "test")
    return np.concatenate([packed.tokens_T[content_T].numpy() for packed, content_T, *_ in batches])


def _gap(text: Any, mask: int) -> tuple[Any, Any]:
    hidden = slice(len(text) // 2, len(text) // 2 + GAP)
    opened = text.copy()
    opened[hidden] = mask
    return opened, text[hidden].copy()


def uncovered(run: TextRun, config: Any, requests: Sequence[Request], batch: int) -> list[Any]:
    """The finished rows of all requests, ``batch`` of them at a time, in their order."""
    kind = family(replace(run.recipe, sampler=config), run.tokenizer.vocabulary)
    rows = []
    for at in range(0, len(requests), batch):
        state, last = kind.begin(run.model, requests[at : at + batch]), {}
        while state.live:
            last |= {row.request: row for row in kind.step(run.model, state).rows}  # type: ignore[arg-type]
        rows += [last[i] for i in range(len(last))]
    return rows


def judged(runs: Runs, texts: Sequence[Any], batch: int = 16) -> Any:
    """Nats per new token of each text under the judge, float64 ``[N]``."""
    run = runs.by_kind["judge"]
    kind, nats = family(run.recipe, run.tokenizer.vocabulary), []
    for at in range(0, len(texts), batch):
        part = [torch.tensor(text) for text in texts[at : at + batch]]
        counted_T = torch.cat([torch.arange(len(text)) >= OPENING for text in part])
        value_N, _ = kind.log_likelihood(run.model, Packed.of(part), 1, 0, counted_T)
        nats += [-float(value) / (len(text) - OPENING) for value, text in zip(value_N, part, strict=True)]
    return np.array(nats)
