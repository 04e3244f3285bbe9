"""Online action detection as a family: the contract of ``unveil.family`` kept by the networks, the objective and the steppers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unveil.config_streams import CausalConfig, OadTRConfig, RecurrentConfig, StreamModelConfig, StreamObjectiveConfig, StreamSamplerConfig
from unveil.data.clips import Clips
from unveil.errors import UserError
from unveil.family import Curve, Noise, Snapshot, StreamRequest, StreamRow, Term, View
from unveil.streams import causal
from unveil.streams.causal import CausalDetector
from unveil.streams.detector import Detector
from unveil.streams.oadtr import OadTR
from unveil.streams.objective import StreamObjective, curve
from unveil.streams.recurrent import RecurrentDetector
from unveil.streams.steppers import Stepper, stepper_of
from unveil.streams.streaming import Streams, prepared

Array = np.ndarray[Any, Any]


@dataclass
class State:
    """Streams on their way: a row per request that has chunks left."""

    stepper: Stepper
    streams: Streams
    requests: list[tuple[int, StreamRequest]]
    """With the number that each began with."""
    step: int = 0

    @property
    def live(self) -> int:
        return len(self.requests)

    def select(self, rows: Sequence[int]) -> State:
        return State(self.stepper, self.streams.select(rows), [self.requests[row] for row in rows], self.step)

    def join(self, other: State) -> State:
        """The other's rows go on with this one's network."""
        return State(self.stepper, self.streams.join(other.streams), self.requests + other.requests, self.step)


class OnlineDetection:
    """Classes of the present and of the chunks ahead, from the chunks so far: OadTR, a causal transformer, a recurrent network.

    Args:
        features: width of a chunk's features.
        classes: the background, which is class 0, included.
        ignored: classes that have a logit but no probability, and are neither trained nor scored.
        model, objective, sampler: sections of the recipe.

    Raises:
        UserError: settings that contradict each other, or the data.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        ignored: Sequence[int],
        model: StreamModelConfig,
        objective: StreamObjectiveConfig,
        sampler: StreamSamplerConfig,
    ) -> None:
        self.model = replace(model, features=features, classes=classes, ignored=tuple(ignored))
        _check(self.model)
        self.sampler = sampler
        self.objective = StreamObjective(model.horizon, objective.future_weight, tuple(ignored))

    def build(self) -> nn.Module:
        match self.model:
            case OadTRConfig():
                return OadTR(self.model)
            case CausalConfig():
                return CausalDetector(self.model)
            case RecurrentConfig():
                return RecurrentDetector(self.model)

    def transform(self, tokens: Array, rng: np.random.Generator) -> Array:
        """Nothing: which chunks a window holds is the loader's to say."""
        return tokens

    def draw(self, sample_id: int, epoch: int, length: int, rng: np.random.Generator) -> dict[str, Array]:
        """Nothing is noised: what hides data is the present, behind which nobody looks."""
        return {}

    def targets(self, batch: Clips, noise: Noise) -> dict[str, float]:
        return self.objective.targets(batch)

    def loss(self, model: nn.Module, batch: Clips, noise: Noise) -> dict[str, Term]:
        return self.objective.loss(model, batch)

    def begin(self, model: nn.Module, requests: Sequence[StreamRequest]) -> State:
        """Raises UserError for a stream without chunks, or with features of another width."""
        for number, request in enumerate(requests):
            if request.features.ndim != 2 or request.features.shape[1] != self.model.features or not len(request.features):
                problem = f"of stream {number} have shape {list(request.features.shape)}, wanted [chunks, {self.model.features}]"
                raise UserError("features", problem, "use the extractor that the model was trained with")
        assert isinstance(model, Detector)
        stepper = stepper_of(prepared(model), self.sampler.futures)
        return State(stepper, Streams.empty(stepper, len(requests)), list(enumerate(requests)))

    def step(self, model: nn.Module, state: State) -> Snapshot:
        """One chunk of every stream."""
        at = list(state.streams.seen)
        chunks = np.stack([request.features[t] for t, (_, request) in zip(at, state.requests, strict=True)])
        scores = state.streams.advance(state.stepper, range(state.live), torch.from_numpy(chunks))
        present, future = (values.float().cpu().numpy() for values in scores)
        rows = [
            StreamRow(number, at[b], present[b], future[b], at[b] + 1 == len(request.features))
            for b, (number, request) in enumerate(state.requests)
        ]
        state.step += 1
        if any(row.final for row in rows):
            left = state.select([b for b, row in enumerate(rows) if not row.final])
            state.streams, state.requests = left.streams, left.requests
        return Snapshot(state.step, rows)

    @torch.no_grad()
    def log_likelihood(
        self, model: nn.Module, batch: Clips, draws: int, seed: int, counted_T: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """log p of each window's present class given its chunks, exact, so the standard error is 0 and ``draws`` and ``seed`` have no say.

        0 for a present that is not scored. ``counted_T`` would choose among a sequence's tokens; a window has one present.
        """
        found_N = self.objective.log_likelihood(model(batch), batch).double()
        return found_N, torch.zeros_like(found_N)

    def views(self, run: Any) -> list[View]:
        """Cross-entropy of the present and of each chunk ahead, over the first and the last fifth of the run's ``metrics`` rows."""
        horizon = self.objective.horizon
        rows: list[Mapping[str, float]] = [row for row in run.metrics if any(value == value for value in curve(row, horizon))]
        if not rows or not horizon:
            return []
        fifth = max(1, len(rows) // 5)
        parts = {"first fifth of training": rows[:fifth], "last fifth of training": rows[-fifth:]}
        lines = {name: _means([curve(row, horizon) for row in part]) for name, part in parts.items()}
        return [Curve("Cross-entropy by how far ahead", list(range(horizon + 1)), lines, "chunks ahead", "nats")]


def _means(values: list[list[float]]) -> list[float]:
    """Column means without the missing values; nan where a column has none."""
    means: list[float] = np.ma.masked_invalid(np.array(values)).mean(0).filled(np.nan).tolist()
    return means


def _check(model: StreamModelConfig) -> None:
    if wrong := [c for c in model.ignored if not 0 < c < model.classes]:
        raise UserError("ignored", f"got class {wrong[0]} of {model.classes}", "name classes behind the background, which is 0")
    if model.horizon and model.width % model.decoder_heads:
        raise UserError("model.decoder_heads", f"{model.decoder_heads} do not divide model.width = {model.width}", "choose a divisor")
    if isinstance(model, OadTRConfig) and model.width % model.heads:
        raise UserError("model.heads", f"{model.heads} do not divide model.width = {model.width}", "choose a divisor")
    if isinstance(model, CausalConfig):
        if model.width % (2 * model.heads):
            raise UserError("model.heads", f"{model.heads} do not cut model.width = {model.width} into even parts", "choose a divisor")
        try:
            causal.window(model)
        except ValueError as error:
            raise UserError("model.window", str(error), "lower model.window or model.depth, or raise model.steps") from error
