"""The trainer: one loop for every family. It knows the contract of ``family.py`` and nothing of text, noise or networks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from unveil.config import Recipe
from unveil.errors import UserError
from unveil.family import Family, Noise
from unveil.training import budget, checkpoint, determinism, lr, precision
from unveil.training.allocator import keep_freed_memory
from unveil.training.compiler import drop_torn_libraries
from unveil.training.ema import Average, warm
from unveil.training.guard import Guard
from unveil.training.interrupt import Interrupt, Interrupted
from unveil.training.metrics import Journal, Window
from unveil.training.optimizer import Optimizer
from unveil.training.parallel import World
from unveil.training.power import PowerAverages
from unveil.training.progress import Bar
from unveil.training.update import Update
from unveil.training.weights import assign, weights

Value = TypeVar("Value", int, float)


class Loader(Protocol):
    """An endless source of this rank's micro-batches, whose state says exactly what it handed out."""

    def __iter__(self) -> Iterator[tuple[Any, Noise]]: ...
    def __next__(self) -> tuple[Any, Noise]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Trainer:
    """Trains ``model`` on ``loader`` by ``family.loss`` and keeps the run directory.

    Args:
        family: gives the terms of the loss and their denominators; told the step and their number by ``progress``, if it has that.
        model: on its device; its weights are what training starts from.
        loader: this rank's micro-batches; each has ``to``, ``size`` and ``unit`` (tokens, images), ``sample_ids_N``.
        recipe: the sections every family has.
        directory: of the run.
        evaluate: names to values, lower is better for the first; called with the averaged weights, in evaluation mode, on every rank.
        sample: called likewise on rank 0 with the model and the step.
        console: show progress.

    Raises UserError for a recipe that cannot run here.
    """

    def __init__(
        self,
        family: Family,
        model: nn.Module,
        loader: Loader,
        recipe: Recipe,
        directory: Path,
        *,
        evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
        sample: Callable[[nn.Module, int], None] | None = None,
        console: bool = True,
    ) -> None:
        self.family, self.model, self.loader, self.recipe, self.directory = family, model, loader, recipe, directory
        self._evaluate, self._sample, self._console = evaluate, sample, console
        self._config = config = recipe.training
        self.device = next(model.parameters()).device
        self.world = World.join()
        if config.packs % self.world.size:
            raise UserError(
                "training.packs", f"{config.packs} packs a step do not divide among {self.world.size} ranks", "make it a multiple"
            )
        if config.threads:
            torch.set_num_threads(config.threads)
        self.step, self.steps, self.tokens, self.seconds = 0, config.steps, 0, 0.0
        self.best: tuple[float, int] | None = None
        """The best evaluation so far and its step."""
        self.dtype, self.compiled = torch.float32, False
        self._window, self._guard = Window(), Guard(self.world)
        self._flops, self._unit = 0.0, ""
        self._lap = (0, 0.0)
        """Tokens and seconds at the last row."""
        self._saved = 0
        self._notes: list[str] = []

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    def fit(self, resume: bool = False) -> dict[str, float]:
        """Train to the last step; returns the latest value of every metric.

        ``resume`` goes on from the newest checkpoint, or starts if there is none. Raises UserError if a run is there already and
        ``resume`` is false, for a checkpoint that cannot be used, after three updates in a row that were not finite, and when the
        disk is full; ``Interrupted`` after SIGTERM or SIGINT, when the run has been saved.
        """
        with determinism.deterministic(self.device), Interrupt() as interrupt:
            self._begin(resume)
            with Journal(self.directory, self.step, self.world) as journal, Bar(self._shown, self.step, self.steps) as bar:
                for line in self._notes:
                    bar.say(line)
                while self.step < self.steps:
                    start = time.perf_counter()
                    self._train_step()
                    self.seconds += time.perf_counter() - start
                    self._after_step(journal, bar)
                    if self.world.any(interrupt.requested):
                        self._save(journal, bar)
                        bar.say(f"interrupted: saved at step {self.step}, go on with --resume")
                        raise Interrupted(self.step)
                return journal.last

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The model with the weights to be evaluated and exported, in evaluation mode."""
        training = self.model.training
        self.model.eval()
        try:
            with self._average.swapped():
                yield self.model
        finally:
            self.model.train(training)

    @property
    def _shown(self) -> bool:
        return self._console and self.world.rank == 0

    # the beginning of a run

    def _begin(self, resume: bool) -> None:
        keep_freed_memory()
        found = checkpoint.steps(self.checkpoints)
        if found and not resume:
            raise UserError(str(self.directory), f"holds a run at step {found[-1]}", "go on with --resume or choose another directory")
        loaded = checkpoint.load(checkpoint.folder(self.checkpoints, found[-1]), self.world) if found else None
        # dtype and compilation decide the last bits: a resumed run keeps what the machine's probe chose at its start
        chosen = loaded[1]["chosen"] if loaded else None
        self.dtype = getattr(torch, chosen["dtype"]) if chosen else self._probed_dtype()
        precision.apply(self.model, self.dtype)
        fast = torch.bfloat16 if self.dtype == torch.bfloat16 or self.device.type == "cuda" else torch.float32
        self.optimizer = Optimizer(self.model, self.recipe.optimizer, fast)
        self._update = Update(self.family, self.model, self.optimizer, self._guard, self._window, self.recipe, self.world)
        self._average = Average(self.model, warm(self._config.ema))
        self._averages = PowerAverages(self.model, self._config.ema_widths)
        self.model.train()
        pays = chosen["compiled"] if chosen else budget.compiles(self._config, self._eager_seconds, self.model)
        self.compiled = self.world.any(pays)
        if self.compiled:
            drop_torn_libraries()
            getattr(self.model, "compile_blocks", self.model.compile)()
        if loaded:
            self._restore(*loaded)
            here = determinism.machine(self.world.size)
            changed = [f"{name} {was} -> {here[name]}" for name, was in loaded[1]["machine"].items() if was != here[name]]
            if changed:
                self._notes.append(f"resumed, but not bit for bit: {', '.join(changed)}")
            if self._config.minutes:
                self.steps = loaded[1]["steps"]
        elif self._config.minutes:
            self.steps = self._rehearsed(lambda step: budget.measured_steps(self._config.minutes, step, self.world))

    def _eager_seconds(self) -> float:
        return self.steps * self._rehearsed(lambda step: budget.seconds_per_step(step, self.world))

    def _rehearsed(self, measured: Callable[[Callable[[], None]], Value]) -> Value:
        """What is measured on a few real steps, of which nothing remains."""
        tensors, host = self._state()
        before = {name: tensor.clone() for name, tensor in tensors.items()}

        def step() -> None:
            self._train_step()
            while self._guard.read(late=0):  # waits for the device, and forgives
                pass

        found = measured(step)
        self._restore(before, host)
        return found

    def _probed_dtype(self) -> torch.dtype:
        """By each rank's own probe; where they differ, the narrower for all."""
        own = precision.compute_dtype(self._config.dtype, self.device)
        return torch.bfloat16 if self.world.any(own == torch.bfloat16) else own

    def _peak(self) -> float:
        return precision.peak_flops(self.dtype, self.device)

    def _train_step(self) -> None:
        micro = [next(self.loader) for _ in range(self._config.packs // self.world.size)]
        self._flops = self._flops or budget.flops(self.model, micro[0][0])
        self._unit = micro[0][0].unit
        multiplier = lr.multiplier(self.recipe.schedule, self.step, self.steps)
        if progress := getattr(self.family, "progress", None):
            progress(self.step, self.steps)
        self.tokens += self._update(micro, self.step, self.tokens, multiplier)
        self._average.update()
        self._averages.update()
        self.step += 1

    # after a step

    def _after_step(self, journal: Journal, bar: Bar) -> None:
        config = self._config
        bar.advance()
        self._tell_skipped(journal, bar, late=1)
        if self._due(config.log_every):
            self._log(journal, bar)
        improved = self._due(config.evaluate_every) and self._score(journal)
        if self._sample and self.world.rank == 0 and self._due(config.sample_every):
            with self.averaged() as model:
                self._sample(model, self.step)
        if self.world.rank == 0 and self._due(config.ema_every):
            self._averages.save(self.directory / "averages", self.step)
        if self._due(config.save_every) or (improved and config.save_every):
            self._save(journal, bar)

    def _due(self, every: int) -> bool:
        """At every multiple and at the end."""
        return self.step == self.steps or (every > 0 and self.step % every == 0)

    def _log(self, journal: Journal, bar: Bar) -> None:
        rate = self.recipe.optimizer.lr * lr.multiplier(self.recipe.schedule, self.step - 1, self.steps)
        row = self._window.row(self.world)
        journal.metrics(self.step, self.tokens, {**row, "lr": rate})
        tokens, seconds = self.tokens - self._lap[0], self.seconds - self._lap[1]
        self._lap = (self.tokens, self.seconds)
        speed = tokens / seconds
        utilisation = speed * self._flops / (self._peak() * self.world.size)
        journal.timing(self.step, self.tokens, {"tokens_per_second": speed, "seconds": self.seconds, "utilisation": utilisation})
        left = (self.steps - self.step) * self.tokens / self.step / speed
        bar.note({**journal.last, **row}, speed, left, utilisation, self._unit)

    def _score(self, journal: Journal) -> bool:
        """Evaluate, and say whether the first value is the best so far."""
        if self._evaluate is None:
            return False
        with self.averaged() as model:
            values = {f"eval/{name}": float(value) for name, value in self._evaluate(model).items()}
        journal.metrics(self.step, self.tokens, values)
        first = next(iter(values.values()))
        improved = self.best is None or first < self.best[0]
        if improved:
            self.best = (first, self.step)
        return improved

    def _tell_skipped(self, journal: Journal, bar: Bar, late: int) -> None:
        while skipped := self._guard.read(late):
            journal.metrics(skipped.step, skipped.tokens, {"skipped_samples": skipped.sample_ids})
            bar.say(f"step {skipped.step}: the loss or its gradient was not finite, no update; samples {skipped.sample_ids}")
            saved = checkpoint.steps(self.checkpoints)
            self._guard.stop_if_hopeless(skipped, saved[-1] if saved else None)

    # the state of a run

    def _save(self, journal: Journal, bar: Bar) -> None:
        self._tell_skipped(journal, bar, late=0)
        if self._saved == self.step:
            return
        journal.sync()
        checkpoint.save(self.checkpoints, self.step, *self._state(), self.world)
        self._saved = self.step
        if self.world.rank == 0:
            checkpoint.prune(self.checkpoints, self._config.keep, self.best[1] if self.best else None)

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything a run consists of: tensors (not copies), and what JSON holds."""
        parts = {"model": weights(self.model), "optimizer": self.optimizer.state_dict(), "average": self._average.state_dict()}
        parts["averages"] = self._averages.state_dict()
        tensors = {f"{part}.{name}": tensor for part, named in parts.items() for name, tensor in named.items()}
        host = {
            **{name: getattr(self, name) for name in ("step", "steps", "tokens", "seconds", "best")},
            "chosen": {"dtype": str(self.dtype).removeprefix("torch."), "compiled": self.compiled},
            "updates": self._average.updates,
            "masked_in_a_row": self._guard.in_a_row,
            "window": self._window.state_dict(),
            "loader": self.loader.state_dict(),
            "rng": determinism.capture(),
            "machine": determinism.machine(self.world.size),
        }
        return tensors, host

    def _restore(self, tensors: Mapping[str, Tensor], host: Mapping[str, Any]) -> None:
        """The inverse of ``_state``, but for the number of steps and what was chosen. Raises UserError for weights that do not fit."""
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "average": {}, "averages": {}}
        for full, tensor in tensors.items():
            part, _, name = full.partition(".")
            parts[part][name] = tensor
        assign(parts["model"], weights(self.model), f"checkpoint of step {host['step']}")
        self.optimizer.load_state_dict(parts["optimizer"])
        self._average.load_state_dict(parts["average"], host["updates"])
        self._averages.load_state_dict(parts["averages"], host["updates"])
        self.step, self.tokens, self.seconds = host["step"], host["tokens"], host["seconds"]
        self.best = tuple(host["best"]) if host["best"] else None
        self._guard.clear(host["masked_in_a_row"])
        self._window.load_state_dict(host["window"])
        self.loader.load_state_dict(host["loader"])
        determinism.restore(host["rng"])
        self._lap, self._saved = (self.tokens, self.seconds), self.step
