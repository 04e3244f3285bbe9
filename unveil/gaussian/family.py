"""Diffusion and flows over R^n as a family: the contract of ``unveil.family`` kept by path, denoiser, objective, sampler and likelihood."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from unveil.config import DiTConfig, GaussianConfig, GaussianSamplerConfig, MLPConfig, UNetConfig
from unveil.data.images import Images, levels
from unveil.data.noise import generator, stratified
from unveil.errors import UserError
from unveil.family import Curve, ImageRequest, ImageRow, Noise, Snapshot, Term, View
from unveil.gaussian.likelihood import bits_per_dim
from unveil.gaussian.model import GaussianModel, Shape, build, objective_of, path_of
from unveil.gaussian.noise import start
from unveil.gaussian.objective import EDGES, BoundObjective, curve
from unveil.gaussian.rectified import Transported, transport
from unveil.gaussian.sampler import State
from unveil.gaussian.sampling import COMMON, Task, sampler_of
from unveil.gaussian.tape import Call, Raw

Array = np.ndarray[Any, Any]


class Gaussian:
    """Images out of Gaussian noise: DDPM, score SDEs, EDM, rectified flow, as the recipe combines them.

    Args:
        shape: channels, height and width of the images.
        model, objective, sampler: sections of the recipe.
        classes: that the network is told; 0 for none.
        augmentation: parameters that the network is told; 0 for none.
        embedding: width of the embedding (of a text) that the network is told; 0 for none.
        seed: of the offset of the stratified noise levels, shared by all samples of an epoch.

    Raises:
        UserError: settings that contradict each other.
    """

    def __init__(
        self,
        shape: Shape,
        model: UNetConfig | DiTConfig | MLPConfig,
        objective: GaussianConfig,
        sampler: GaussianSamplerConfig,
        classes: int = 0,
        augmentation: int = 0,
        seed: int = 0,
        embedding: int = 0,
    ) -> None:
        self.shape, self.model, self.config, self.sampler = shape, model, objective, sampler
        self.classes, self.augmentation, self.embedding, self.seed = classes, augmentation, embedding, seed
        self.path = path_of(objective.path)
        self.objective = objective_of(objective, self.path)
        self._offset = lru_cache(4)(lambda epoch: generator(seed, epoch, 0, "time").random())
        self._built: GaussianModel | None = None
        self._samplers: WeakKeyDictionary[nn.Module, dict[Task, Any]] = WeakKeyDictionary()

    def build(self) -> nn.Module:
        self._built = build(self.model, self.config, self.path, self.shape, self.classes, self.augmentation, self.embedding)
        return self._built

    def transform(self, tokens: Array, rng: np.random.Generator) -> Array:
        """Nothing: images are augmented by the loader, which tells the network."""
        return tokens

    def draw(self, sample_id: int, epoch: int, length: int, rng: np.random.Generator) -> dict[str, Array]:
        """``u``, stratified over the samples of the epoch, which the density makes a noise level of; ``eps``, standard normal
        ``[1, C, H, W]``; and with classes or embeddings ``told``, whether the network is told this one."""
        noise = {
            "u": np.array([stratified(self._offset(epoch), sample_id)]),
            "eps": rng.standard_normal((1, *self.shape), dtype=np.float32),
        }
        # a reflow pair is told as it was made, its class or none
        dropout = 0.0 if self.config.coupling == "reflow" else self.config.class_dropout
        return noise | ({"told": rng.random(1) >= dropout} if self._null else {})

    def targets(self, batch: Images, noise: Noise) -> dict[str, float]:
        """Denominators: values of the batch, and those of each bucket of noise levels."""
        importance = None if self._built is None else self._built.importance
        if importance is not None:
            noise = {**noise, "u": noise["u"].to(importance.pending.device)}
        return self.objective.targets(batch.x_NCHW, noise, importance)

    def loss(self, model: nn.Module, batch: Images, noise: Noise) -> dict[str, Term]:
        assert isinstance(model, GaussianModel)
        condition: dict[str, Any] = {}
        if self.classes:
            assert batch.labels_N is not None
            condition["classes"] = torch.where(noise["told"], batch.labels_N, self.classes)
        if self.embedding:
            assert batch.embedding_NE is not None
            condition["embedding"] = batch.embedding_NE * noise["told"][:, None]
        if batch.augmentation_NA is not None:
            condition["augmentation"] = batch.augmentation_NA
        options: dict[str, Any] = {"condition": condition, "importance": model.importance}
        if not isinstance(self.objective, BoundObjective):
            options["uncertainty"] = model.uncertainty
        return self.objective.loss(model.denoiser, batch.x_NCHW, noise, **options)

    # sampling

    def begin(self, model: nn.Module, requests: Sequence[ImageRequest]) -> State:
        """A row per request; all of them or none have a latent, and all or none a known part.

        Raises UserError for a class that does not exist and a sampler that cannot be.
        """
        task: Task = "sample" if requests[0].known is None else "inpaint"
        sampler, seeds, condition = (
            self._sampler(model, task),
            [r.seed for r in requests],
            self._condition(model, [r.label for r in requests], [r.embedding for r in requests]),
        )
        if task == "inpaint":
            known, mask = (torch.from_numpy(np.stack(values)) for values in zip(*((r.known, r.mask) for r in requests), strict=True))
            state: State = sampler.begin(known, mask[:, None], seeds, **condition)
            return state
        shape = (len(requests), *requests[0].shape)
        start = None
        if requests[0].latent is not None:
            start = torch.from_numpy(np.stack([r.latent for r in requests])) * sampler.grid.instants[0].sigma  # type: ignore[misc]
        state = sampler.begin(shape, seeds, start, **condition)
        return state

    def step(self, model: nn.Module, state: State) -> Snapshot:
        snapshot = self._sampler(model, "inpaint" if state.given else "sample").step(state)
        seen = cache(lambda: snapshot.denoised().float().cpu().numpy())
        x = snapshot.x.float().cpu().numpy()
        rows = [
            ImageRow(request, x[i], final, lambda i=i: seen()[i])  # type: ignore[misc]
            for i, (request, final) in enumerate(zip(snapshot.requests, snapshot.final, strict=True))
        ]
        return Snapshot(snapshot.step, rows)

    def latents(self, seeds: Sequence[int]) -> Tensor:
        """The standard normals ``[N, C, H, W]`` that these seeds begin at."""
        return torch.stack([start(seed, self.shape) for seed in seeds])

    def invert(
        self, model: nn.Module, x: Tensor, labels: Sequence[int | None] = (), embeddings: Sequence[Array | None] | None = None
    ) -> Tensor:
        """The latents of images ``[N, C, H, W]``, standard normal: the sampler's own steps run backwards.

        Raises UserError for a solver that draws noise.
        """
        sampler = self._sampler(model, "invert")
        condition = self._condition(model, labels or [None] * len(x), embeddings)
        first, last = sampler.grid.instants[0], sampler.grid.instants[-1]
        found: Tensor = sampler.sample(x.shape, [0] * len(x), x * first.alpha, **condition)
        return found / last.sigma

    def transport(self, model: nn.Module, noise: Tensor, steps: int, labels: Sequence[int | None] = ()) -> Transported:
        """Standard normal noise ``[N, C, H, W]`` to data by the flow, and how straight it goes; see ``rectified.transport``."""
        assert isinstance(model, GaussianModel)
        condition = self._condition(model, labels or [None] * len(noise))
        return transport(model.denoiser, noise, steps, n_max=self.path.n(self.path.t_max), condition=condition)

    def evaluations(self, model: nn.Module) -> int:
        """Network evaluations that a sample takes; of an adaptive solver none that could be known, so 0."""
        return evaluations(self._sampler(model))

    def with_evaluations(self, model: nn.Module, count: int, kind: str = "") -> Gaussian:
        """This family with the solver (``kind``, or its own) at as many steps as ``count`` evaluations allow.

        Raises UserError where they do not allow the fewest steps that it needs.
        """
        solver = kind or self.sampler.kind
        chosen = self.sampler if solver == self.sampler.kind else GaussianSamplerConfig(kind=solver, **_shared(self.sampler))
        best: Gaussian | None = None
        error: UserError | None = None
        low, high = 1, count  # evaluations rise with steps: the answer, if there is one, lies between
        while low <= high:
            steps = (low + high) // 2
            family = self._with(replace(chosen, steps=steps))
            try:
                fits = family.evaluations(model) <= count
            except UserError as found:
                if not found.field.endswith("steps"):
                    raise
                low, error = steps + 1, found
                continue
            if fits:
                best, low = family, steps + 1
            else:
                high = steps - 1
        if best is None:
            raise error or UserError("--nfe", f"'{solver}' cannot sample in {count} network evaluations", "allow more")
        return best

    def with_steps(self, steps: int) -> Gaussian:
        """This family with another number of solver steps."""
        return self._with(replace(self.sampler, steps=steps))

    def untold(self, model: nn.Module, count: int) -> dict[str, Tensor]:
        """The condition of so many samples of which nothing is told."""
        return self._condition(model, [None] * count)

    def _with(self, sampler: GaussianSamplerConfig) -> Gaussian:
        return Gaussian(self.shape, self.model, self.config, sampler, self.classes, self.augmentation, self.seed, self.embedding)

    @property
    def _null(self) -> dict[str, float]:
        """What stands for nothing in each condition that the network may be told or not."""
        return ({"classes": self.classes} if self.classes else {}) | ({"embedding": 0.0} if self.embedding else {})

    def _sampler(self, model: nn.Module, task: Task = "sample") -> Any:
        """Compiled once for a model."""
        assert isinstance(model, GaussianModel)
        if self.sampler.guidance != 1.0 and self.classes and not self.model.null_class:
            raise UserError("sampler.guidance", "the network was trained without a null class to guide away from", "leave it at 1")
        known = self._samplers.setdefault(model, {})
        if task not in known:
            known[task] = sampler_of(self.sampler, model.denoiser, self.path, self._null, task)
        return known[task]

    def _condition(
        self, model: nn.Module, labels: Sequence[int | None], embeddings: Sequence[Array | None] | None = None
    ) -> dict[str, Tensor]:
        numbers, device = [self._label(label) for label in labels], next(model.parameters()).device
        condition = {"classes": torch.tensor(numbers, device=device)} if self.classes else {}
        if self.embedding:
            nothing = np.zeros(self.embedding, dtype=np.float32)
            told = [nothing if one is None else one for one in embeddings or [None] * len(labels)]
            condition["embedding"] = torch.from_numpy(np.stack(told)).to(device)
        return condition

    def _label(self, label: int | None) -> int:
        if label is None:
            if self.classes and not self.model.null_class:
                raise UserError("label", "not given, and the network was told one for every image", f"give 0 to {self.classes - 1}")
            return self.classes
        if not self.classes:
            raise UserError(
                "label", f"got {label}, the model was not trained with classes", "leave it out, or train with --objective.conditional true"
            )
        if not 0 <= label < self.classes:
            raise UserError("label", f"got {label}", f"give one of 0 to {self.classes - 1}")
        return label

    # likelihood and views

    def log_likelihood(
        self, model: nn.Module, batch: Images, draws: int, seed: int, counted_T: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """log p of the 8-bit images by the probability flow, with Hutchinson's trace, in nats; a lower bound in expectation over the
        dequantisation. See ``likelihood.bits_per_dim``."""
        assert isinstance(model, GaussianModel)
        seeds = [int(generator(seed, 0, int(i), "likelihood").integers(2**63)) for i in batch.sample_ids_N]
        condition = {"classes": batch.labels_N} if self.classes else {}
        if self.embedding:
            condition["embedding"] = batch.embedding_NE
        bits, error = bits_per_dim(
            model.denoiser, self.path, levels(batch.x_NCHW), seeds, draws=draws, data_std=self.config.sigma_data, condition=condition
        )
        scale = math.log(2.0) * batch.x_NCHW[0].numel()
        return -bits * scale, error * scale

    def views(self, run: Any) -> list[View]:
        """The squared error of the denoised image by noise level, over the first and the last fifth of the run's ``metrics`` rows."""
        rows: list[Mapping[str, float]] = [row for row in run.metrics if any(value == value for value in curve(row))]
        if not rows:
            return []
        fifth = max(1, len(rows) // 5)
        centres = np.log10([EDGES[0] / 2, *np.sqrt(np.array(EDGES[:-1]) * np.array(EDGES[1:])), EDGES[-1] * 2]).tolist()
        lines = {
            "first fifth of training": _means([curve(row) for row in rows[:fifth]]),
            "last fifth of training": _means([curve(row) for row in rows[-fifth:]]),
        }
        return [Curve("Error of the denoised image by noise level", centres, lines, "log10 of n = sigma / alpha", "mean squared error")]


def evaluations(sampler: Any) -> int:
    """Calls of the network per sample of a compiled sampler, 0 for an adaptive one."""
    return sum(isinstance(one, Call | Raw) for tape in getattr(sampler, "tapes", ()) for one in tape.instructions)


def _shared(sampler: GaussianSamplerConfig) -> dict[str, Any]:
    """What another solver takes over: all but the solver's own options."""
    return {name: getattr(sampler, name) for name in COMMON if name != "kind"}


def _means(values: list[list[float]]) -> list[float]:
    """Column means without the missing values; nan where a column has none."""
    table = np.array(values)
    known = ~np.isnan(table)
    sums, counts = np.where(known, table, 0.0).sum(0), known.sum(0)
    return [float(s / n) if n else float("nan") for s, n in zip(sums, counts, strict=True)]
