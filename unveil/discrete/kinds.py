"""What discrete diffusion is trained on: a class for each objective, with its noise, its loss, its bound and its sampler.

``discrete.family`` knows them by the methods of ``Kind``. N sequences, T tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unveil.config import BlockConfig, MaskedConfig, MaskedSamplerConfig, ScoreConfig, TransformerConfig
from unveil.data.noise import stratified
from unveil.discrete.allowed import Model
from unveil.discrete.clip import Clip
from unveil.discrete.commit import JUMPS
from unveil.discrete.context import device
from unveil.discrete.denoiser import AbsorbRatio, Subs, UniformRatio
from unveil.discrete.jump import Chain, LogScores, ScoreSampler
from unveil.discrete.likelihood import bound
from unveil.discrete.objective import MaskedObjective
from unveil.discrete.process import SCHEDULES, Absorbing, Geometric, LogUniform, Schedule, Uniform, per_token
from unveil.discrete.reader import Reader
from unveil.discrete.sampler import MaskedSampler
from unveil.discrete.score import UniformObjective
from unveil.discrete.score import bound as uniform_bound
from unveil.discrete.stages import block_at, open_share, opened
from unveil.family import Noise, Term
from unveil.nn.layout import Bidirectional, BlockCausal, Layout
from unveil.nn.packed import Packed
from unveil.text.vocabulary import Vocabulary

Array = np.ndarray[Any, Any]
Stop = Callable[[Sequence[int]], bool]
Config = MaskedConfig | BlockConfig | ScoreConfig


class Kind(ABC):
    """One objective, with one time per sequence unless ``draw`` says otherwise."""

    layout: Layout
    """Of the network."""
    times: tuple[float, float]
    """Between which they are drawn."""
    objective: MaskedObjective | UniformObjective

    def __init__(self, vocabulary: Vocabulary, config: Config) -> None:
        self.vocabulary, self.keep, self.anneal = vocabulary, (vocabulary.start,), config.anneal
        self.stage: dict[str, float] = {}
        """What the training is at, to be measured beside its loss, where anything changes from step to step."""

    def progress(self, step: int, steps: int, seed: int) -> None:
        """As ``family.Staged``: the losses that follow are of this step. Bounds and samples are of the finished network at any."""
        if self.anneal:
            share = open_share(self.anneal, step, steps)
            self.stage = {"open edges": share}
            self.objective = replace(self.objective, read=replace(self.objective.read, layout=opened(share, step, seed)))

    def prepare(self, model: nn.Module) -> None:  # noqa: B027 - most have nothing to add
        """Add to the network what is saved beside it, if there is anything."""

    def draw(self, offset: float, sample_id: int, length: int, rng: np.random.Generator) -> dict[str, Array]:
        """``t``, the sequence's time, stratified over the samples of an epoch, which share ``offset`` in [0, 1); ``u``, a uniform per
        token."""
        low, high = self.times
        return {"t": np.array([low + (high - low) * stratified(offset, sample_id)]), "u": rng.random(length)}

    def targets(self, batch: Packed, noise: Noise) -> dict[str, float]:
        return self.objective.targets(batch, noise)

    def loss(self, model: nn.Module, batch: Packed, noise: Noise) -> dict[str, Term]:
        return self.objective.loss(model, batch, noise)

    @abstractmethod
    def bound(
        self, model: nn.Module, batch: Packed, draws: int, seed: int, counted_T: Tensor | None, given_T: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As ``Family.log_likelihood``; tokens where ``given_T`` (bool ``[T]``) are told, as a prompt is."""

    @abstractmethod
    def sampler(self, config: MaskedSamplerConfig, stop: Stop | None) -> MaskedSampler | ScoreSampler:
        """Raises UserError for settings that do not go together or with the network."""


class Masked(Kind):
    """Masked diffusion over whole sequences (LLaDA, MDLM)."""

    def __init__(self, vocabulary: Vocabulary, model: TransformerConfig, config: MaskedConfig) -> None:
        super().__init__(vocabulary, config)
        self.layout, self.times = Bidirectional(model.window), (config.t_min, config.t_max)
        self.schedule = trained = SCHEDULES[config.schedule]
        if config.times == "importance":
            low, high = self.schedule.mask_rate(torch.tensor(self.times, dtype=torch.float64)).tolist()
            trained, self.times = LogUniform(low, high), (0.0, 1.0)
        self.process, self.denoiser = Absorbing(trained, vocabulary.mask, self.keep), Subs.of(vocabulary)
        self.read = Reader(told=model.time_conditioning)
        self.objective = MaskedObjective(self.process, self.denoiser, config.weight, config.normalisation, self.read)

    def bound(
        self, model: nn.Module, batch: Packed, draws: int, seed: int, counted_T: Tensor | None, given_T: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return bound(model, batch, self.process, self.denoiser, draws, seed, counted_T, given_T=given_T, read=self.read)

    def sampler(self, config: MaskedSamplerConfig, stop: Stop | None) -> MaskedSampler:
        return MaskedSampler(self.denoiser, self.vocabulary.end, config, stop, self.keep, self.schedule, Model(told=self.read.told))


class Block(Kind):
    """Block diffusion (BD3-LM): every block has a time of its own, and sees what precedes it clean."""

    def __init__(self, vocabulary: Vocabulary, model: TransformerConfig, config: BlockConfig) -> None:
        super().__init__(vocabulary, config)
        self.config, self.layout, self.denoiser = config, BlockCausal(config.block), Subs.of(vocabulary)
        self.times = (0.0, 1.0) if config.clip else (config.t_min, config.t_max)
        self.objectives = {size: self._objective(size) for size in (*config.growth, config.block)}
        self.size, self.objective = config.block, self.objectives[config.block]
        self.process, self.read = self.objective.process, self.objective.read

    def _objective(self, size: int) -> MaskedObjective:
        """Of blocks of ``size`` tokens; those of 1 are always masked, which leaves nothing to chance."""
        config = self.config
        process = Absorbing(SCHEDULES["linear" if config.clip or size == 1 else config.schedule], self.vocabulary.mask, self.keep)
        read = Reader(block=size)
        return MaskedObjective(process, self.denoiser, config.weight, config.normalisation, read, measures=not config.clip)

    def prepare(self, model: nn.Module) -> None:
        """With ``clip`` the search for the best interval."""
        if self.config.clip:
            model.add_module("clip", Clip(self.config.block, self.config.t_min, self.config.t_max, self.config.weight == "bound"))

    def draw(self, offset: float, sample_id: int, length: int, rng: np.random.Generator) -> dict[str, Array]:
        """``t``, the time of each token's block, and ``u``, a uniform per token; ``t N`` likewise for each block of ``growth``.

        A sequence's n blocks take the n cells of an even partition in random order, all at the same place in their cell, which moves by the
        golden ratio from sample to sample: so times are stratified over all blocks of a step, and each is uniform.
        """
        place, config = stratified(offset, sample_id), self.config
        drawn = {"t": self._times(place, length, config.block, rng), "u": rng.random(length)}
        return drawn | {f"t {size}": self._times(place, length, size, rng) for size in config.growth}

    def _times(self, place: float, length: int, size: int, rng: np.random.Generator) -> Array:
        low, high = (1.0, 1.0) if size == 1 and not self.config.clip else self.times
        blocks = -(-length // size)
        cells = (rng.permutation(blocks) + place) / blocks
        return (low + (high - low) * cells)[np.arange(length) // size]

    def progress(self, step: int, steps: int, seed: int) -> None:
        config = self.config
        if config.growth:
            self.size = block_at(config.growth, config.block, config.growth_share, step, steps)
            self.stage, self.objective = {"block": float(self.size)}, self.objectives[self.size]

    def targets(self, batch: Packed, noise: Noise) -> dict[str, float]:
        return self.objective.targets(batch, self._timed(noise))

    def loss(self, model: nn.Module, batch: Packed, noise: Noise) -> dict[str, Term]:
        if (clip := self._clip(model)) is not None:
            if model.training:
                clip.advance()
            noise = {**noise, "t": clip.rates(noise["t"])}
        return self.objective.loss(model, batch, self._timed(noise))

    def _timed(self, noise: Noise) -> Noise:
        """With the times of the blocks that are trained."""
        return noise if self.size == self.config.block else {**noise, "t": noise[f"t {self.size}"]}

    def bound(
        self, model: nn.Module, batch: Packed, draws: int, seed: int, counted_T: Tensor | None, given_T: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Over all times, clipped or not; the search watches."""
        clip = self._clip(model)
        observe = None if clip is None else clip.observe
        return bound(model, batch, self.process, self.denoiser, draws, seed, counted_T, given_T=given_T, read=self.read, observe=observe)

    def sampler(self, config: MaskedSamplerConfig, stop: Stop | None) -> MaskedSampler:
        traits = Model(block=self.config.block)
        return MaskedSampler(self.denoiser, self.vocabulary.end, config, stop, self.keep, self.process.schedule, traits)

    def _clip(self, model: nn.Module) -> Clip | None:
        clip = getattr(model, "clip", None)
        return clip if isinstance(clip, Clip) else None


class AbsorbScore(Kind):
    """Score entropy under the absorbing chain (SEDD)."""

    def __init__(self, vocabulary: Vocabulary, model: TransformerConfig, config: ScoreConfig) -> None:
        super().__init__(vocabulary, config)
        self.layout, self.times = Bidirectional(model.window), (config.t_min, config.t_max)
        self.process, self.ratio = Absorbing(_schedule(config), vocabulary.mask, self.keep), AbsorbRatio.over(vocabulary)
        self.read = Reader(told=model.time_conditioning)
        self.objective = MaskedObjective(self.process, self.ratio, "bound", "token", self.read)

    def bound(
        self, model: nn.Module, batch: Packed, draws: int, seed: int, counted_T: Tensor | None, given_T: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return bound(model, batch, self.process, self.ratio, draws, seed, counted_T, given_T=given_T, read=self.read)

    def sampler(self, config: MaskedSamplerConfig, stop: Stop | None) -> MaskedSampler | ScoreSampler:
        """Jumps, or, as the scores of a place in proportion are probabilities, the rules for masks."""
        if config.commit in JUMPS:
            chain = Chain(torch.tensor(states(self.vocabulary)), self.vocabulary.mask)
            return ScoreSampler(_log_scores(self.read, self.ratio), chain, self.process.schedule, self.vocabulary.mask, config)
        schedule, traits = self.process.schedule, Model(score=True, told=self.read.told)
        return MaskedSampler(self.ratio, self.vocabulary.end, config, stop, self.keep, schedule, traits)


class UniformScore(Kind):
    """Score entropy under the uniform chain over the data tokens and the end token (SEDD)."""

    def __init__(self, vocabulary: Vocabulary, model: TransformerConfig, config: ScoreConfig) -> None:
        super().__init__(vocabulary, config)
        self.layout, self.times = Bidirectional(model.window), (config.t_min, config.t_max)
        self.process = Uniform(_schedule(config), states(vocabulary), self.keep)
        self.ratio = UniformRatio(Subs.of(vocabulary))
        self.read = Reader(told=model.time_conditioning)
        self.objective: UniformObjective = UniformObjective(self.process, self.ratio, self.read)

    def bound(
        self, model: nn.Module, batch: Packed, draws: int, seed: int, counted_T: Tensor | None, given_T: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return uniform_bound(replace(self.objective, read=self.read), model, batch, draws, seed, counted_T, given_T)

    def sampler(self, config: MaskedSamplerConfig, stop: Stop | None) -> ScoreSampler:
        chain = Chain(torch.tensor(self.process.states))
        return ScoreSampler(_log_scores(self.read, self.ratio), chain, self.process.schedule, self.vocabulary.mask, config)


def states(vocabulary: Vocabulary) -> tuple[int, ...]:
    """Ids that data consist of: all but the special ones, and the end."""
    never = Subs.of(vocabulary).never
    return tuple(i for i in range(vocabulary.size) if i not in never)


def kind_of(vocabulary: Vocabulary, model: TransformerConfig, config: Config) -> Kind:
    """The kind of an ``objective`` section."""
    if isinstance(config, ScoreConfig):
        return (AbsorbScore if config.chain == "absorb" else UniformScore)(vocabulary, model, config)
    return Block(vocabulary, model, config) if isinstance(config, BlockConfig) else Masked(vocabulary, model, config)


def _schedule(config: ScoreConfig) -> Schedule:
    return Geometric(config.sigma_min, config.sigma_max) if config.schedule == "geometric" else SCHEDULES[config.schedule]


def _log_scores(read: Reader, ratio: AbsorbRatio | UniformRatio) -> LogScores:
    """log s ``[T, V]`` of a pack at noise levels sigma ``[N]``."""

    def scores(model: Any, batch: Packed, sigma_N: Tensor) -> Tensor:
        batch = batch.to(device(model))
        sigma_T = per_token(batch, sigma_N.to(batch.tokens_T.device))
        return ratio.log_scores(model.head(read(model, batch, batch.tokens_T, sigma_T)), batch.tokens_T, sigma_T)

    return scores
