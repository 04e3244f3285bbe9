"""Discrete diffusion as a family: the contract of ``unveil.family`` kept by a kind of objective and its sampler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unveil import experts
from unveil.config import BlockConfig, MaskedConfig, MaskedSamplerConfig, ScoreConfig, TransformerConfig
from unveil.data.noise import generator
from unveil.discrete.canvas import MaskedState
from unveil.discrete.kinds import kind_of
from unveil.discrete.objective import BUCKETS, curve
from unveil.errors import UserError
from unveil.family import Curve, Noise, Request, Snapshot, Term, View
from unveil.nn.packed import Packed
from unveil.nn.transformer import Transformer
from unveil.text.conversation import answered
from unveil.text.vocabulary import Vocabulary

Array = np.ndarray[Any, Any]


class Discrete:
    """Discrete diffusion over tokens: masked (LLaDA, MDLM), in blocks (BD3-LM), or by scores (SEDD).

    Args:
        vocabulary: ids of the special tokens; the start token is never noised.
        model, objective, sampler: sections of the recipe.
        stop: ends a continuation early, as ``text.stop`` does; see ``MaskedSampler``.
        seed: of the offset of the stratified times, shared by all samples of an epoch.

    Raises:
        UserError: times outside 0 <= t_min < t_max <= 1, a ``random_length`` that is no share, settings of the sampler that do not go
            together or with the objective.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        model: TransformerConfig,
        objective: MaskedConfig | BlockConfig | ScoreConfig,
        sampler: MaskedSamplerConfig,
        stop: Callable[[Sequence[int]], bool] | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 <= objective.t_min < objective.t_max <= 1:
            raise UserError("objective.t_min", f"got times from {objective.t_min} to {objective.t_max}", "keep 0 <= t_min < t_max <= 1")
        if not 0 <= objective.random_length <= 1:
            raise UserError("objective.random_length", f"got {objective.random_length}", "choose a share from 0 to 1")
        self.vocabulary, self.model, self.config, self.seed = vocabulary, model, objective, seed
        self.kind = kind_of(vocabulary, model, objective)
        self.sampler = self.kind.sampler(sampler, stop)

    def build(self) -> nn.Module:
        model = Transformer(self.model, self.vocabulary.size, self.kind.layout)
        self.kind.prepare(model)
        return model

    def transform(self, tokens: Array, rng: np.random.Generator) -> Array:
        """With probability ``random_length`` the start token and the first U{1..n} of the n tokens after it (LLaDA, section 2.2); what
        ends with its document, with more end tokens up to ``end_padding``."""
        if len(tokens) >= 2 and rng.random() < self.config.random_length:
            return tokens[: 1 + rng.integers(1, len(tokens))]
        missing = self.config.end_padding - len(tokens)
        if missing <= 0 or tokens[-1] != self.vocabulary.end:
            return tokens
        return np.concatenate([tokens, np.full(missing, self.vocabulary.end, dtype=tokens.dtype)])

    def converse(self, tokens: Array, spans: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """One answer is learned, drawn anew in every epoch, and the conversation ends with it: it would see what follows (LLaDA, section
        2.3). The number of its end tokens is drawn up to what ``end_padding`` leaves, so that no length of the canvas is strange."""
        index = int(rng.integers(len(spans)))
        ends = 1 + int(rng.integers(self._ends(spans[index])))
        return answered(tokens, spans[index : index + 1], self.vocabulary.end, ends)

    def answer(self, tokens: Array, spans: Array, index: int) -> tuple[Array, Array]:
        """A conversation up to one of its answers, which is learned, with the end tokens after it: one, or up to ``end_padding``."""
        return answered(tokens, spans[index : index + 1], self.vocabulary.end, self._ends(spans[index]))

    def _ends(self, span: Array) -> int:
        return max(1, self.config.end_padding - int(span[1]))

    def draw(self, sample_id: int, epoch: int, length: int, rng: np.random.Generator) -> dict[str, Array]:
        """``t``, of the sequence or of every token, and ``u``, a uniform per token; see ``Kind.draw``."""
        return self.kind.draw(generator(self.seed, epoch, 0, "time").random(), sample_id, length, rng)

    def progress(self, step: int, steps: int) -> None:
        """How far attention is annealed, or blocks have grown, in this step."""
        self.kind.progress(step, steps, self.seed)

    def targets(self, batch: Packed, noise: Noise) -> dict[str, float]:
        return {**self.kind.targets(batch, noise), **experts.targets(self.model, batch), **dict.fromkeys(self.kind.stage, 1.0)}

    def loss(self, model: nn.Module, batch: Packed, noise: Noise) -> dict[str, Term]:
        stage = {name: Term(torch.full((), value, device=batch.tokens_T.device), 0.0) for name, value in self.kind.stage.items()}
        return {**self.kind.loss(model, batch, noise), **experts.terms(model, batch), **stage}

    def begin(self, model: nn.Module, requests: Sequence[Request]) -> MaskedState:
        return self.sampler.begin(requests, model)

    def step(self, model: nn.Module, state: MaskedState) -> Snapshot:
        return self.sampler.step(model, state)

    def log_likelihood(
        self, model: nn.Module, batch: Packed, draws: int, seed: int, counted_T: Tensor | None = None, given_T: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """A lower bound, see ``likelihood.bound`` and ``score.bound``; of blocks of 1 it is log p itself. Given the tokens of
        ``given_T`` (bool ``[T]``), if there are any."""
        return self.kind.bound(model, batch, draws, seed, counted_T, given_T)

    def views(self, run: Any) -> list[View]:
        """Cross-entropy against t, averaged over the first and the last fifth of the run's ``metrics`` rows."""
        rows: list[Mapping[str, float]] = [row for row in run.metrics if any(value == value for value in curve(row))]
        if not rows:
            return []
        fifth = max(1, len(rows) // 5)
        early, late = (np.array([curve(row) for row in part]) for part in (rows[:fifth], rows[-fifth:]))
        centres = [(i + 0.5) / BUCKETS for i in range(BUCKETS)]
        lines = {"first fifth of training": _mean(early), "last fifth of training": _mean(late)}
        return [Curve("Cross-entropy of masked tokens by time", centres, lines, "t", "nats per masked token")]


def _mean(values: Array) -> list[float]:
    """Column means without the missing values; nan where a column has none."""
    known = ~np.isnan(values)
    sums, counts = np.where(known, values, 0.0).sum(0), known.sum(0)
    return [float(s / n) if n else float("nan") for s, n in zip(sums, counts, strict=True)]
