"""Masked diffusion as a family: the contract of ``unveil.family`` kept by process, denoiser, objective, sampler and likelihood."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from unveil.config import MaskedConfig, MaskedSamplerConfig, TransformerConfig
from unveil.data.noise import generator, stratified
from unveil.discrete.denoiser import Subs
from unveil.discrete.likelihood import bound
from unveil.discrete.objective import BUCKETS, MaskedObjective, curve
from unveil.discrete.process import SCHEDULES, Absorbing
from unveil.discrete.sampler import MaskedSampler, MaskedState
from unveil.errors import UserError
from unveil.family import Curve, Noise, Request, Snapshot, Term, View
from unveil.nn.layout import Bidirectional
from unveil.nn.packed import Packed
from unveil.nn.transformer import Transformer
from unveil.text.vocabulary import Vocabulary

Array = np.ndarray[Any, Any]


class Masked:
    """Masked diffusion over tokens (LLaDA, MDLM): a bidirectional transformer without a time input.

    Args:
        vocabulary: ids of the special tokens; the start token is never noised.
        model, objective, sampler: sections of the recipe.
        stop: ends a continuation early, as ``text.stop`` does; see ``MaskedSampler``.
        seed: of the offset of the stratified times, shared by all samples of an epoch.

    Raises:
        UserError: times outside 0 <= t_min < t_max <= 1, a ``random_length`` that is no share, a sampler setting below 0.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        model: TransformerConfig,
        objective: MaskedConfig,
        sampler: MaskedSamplerConfig,
        stop: Callable[[Sequence[int]], bool] | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 <= objective.t_min < objective.t_max <= 1:
            raise UserError("objective.t_min", f"got times from {objective.t_min} to {objective.t_max}", "keep 0 <= t_min < t_max <= 1")
        if not 0 <= objective.random_length <= 1:
            raise UserError("objective.random_length", f"got {objective.random_length}", "choose a share from 0 to 1")
        self.vocabulary, self.model, self.config, self.seed = vocabulary, model, objective, seed
        self.process = Absorbing(SCHEDULES[objective.schedule], vocabulary.mask, (vocabulary.start,))
        self.denoiser = Subs.of(vocabulary)
        self.objective = MaskedObjective(self.process, self.denoiser, objective.weight, objective.normalisation)
        self.sampler = MaskedSampler(self.denoiser, vocabulary.end, sampler, stop)

    def build(self) -> nn.Module:
        return Transformer(self.model, self.vocabulary.size, Bidirectional(self.model.window))

    def transform(self, tokens: Array, rng: np.random.Generator) -> Array:
        """With probability ``random_length`` the start token and the first U{1..n} of the n tokens after it (LLaDA, section 2.2)."""
        if len(tokens) < 2 or rng.random() >= self.config.random_length:
            return tokens
        return tokens[: 1 + rng.integers(1, len(tokens))]

    def draw(self, sample_id: int, epoch: int, length: int, rng: np.random.Generator) -> dict[str, Array]:
        """``t``, the sequence's time in [t_min, t_max], stratified over the samples of the epoch, and ``u``, a uniform per token."""
        shared = generator(self.seed, epoch, 0, "time").random()
        t = self.config.t_min + (self.config.t_max - self.config.t_min) * stratified(shared, sample_id)
        return {"t": np.array([t]), "u": rng.random(length)}

    def targets(self, batch: Packed, noise: Noise) -> dict[str, float]:
        return self.objective.targets(batch, noise)

    def loss(self, model: nn.Module, batch: Packed, noise: Noise) -> dict[str, Term]:
        return self.objective.loss(model, batch, noise)

    def begin(self, model: nn.Module, requests: Sequence[Request]) -> MaskedState:
        return self.sampler.begin(requests)

    def step(self, model: nn.Module, state: MaskedState) -> Snapshot:
        return self.sampler.step(model, state)

    def log_likelihood(
        self, model: nn.Module, batch: Packed, draws: int, seed: int, counted_T: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """A lower bound, by the exact-l estimator; see ``likelihood.bound``."""
        return bound(model, batch, self.process, self.denoiser, draws, seed, counted_T)

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
