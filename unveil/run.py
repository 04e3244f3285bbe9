"""A run: trained from a recipe into a directory, and loaded from there to be sampled and evaluated."""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from unveil import corpora
from unveil import recipe as recipes
from unveil.canvas import filled, prompted
from unveil.config import TextRecipe
from unveil.data.loader import Loader, held_out
from unveil.data.shards import Prepared, prepare
from unveil.data.tokenizer import Tokenizer
from unveil.environment import device, environment
from unveil.errors import UserError
from unveil.evaluation.likelihood import BitsPerByte, held_out_bits
from unveil.families import EXACT, family
from unveil.family import Row
from unveil.report.evidence import Evidence
from unveil.report.run import RunReport
from unveil.report.timeline import timeline
from unveil.snapshots import TextSnapshot
from unveil.text.stop import StopStrings
from unveil.training import final, precision
from unveil.training.loop import Trainer
from unveil.training.parallel import World

Split = Literal["validation", "test"]
FREE_ON_RESUME = ("training.log_every", "training.save_every", "training.keep", "training.threads", "data.workers", "data.cache")
"""Settings that a resumed run may change: what it learns does not depend on them."""
SAMPLES = 4
"""Texts drawn for the page and for ``samples/``."""


@dataclass(frozen=True)
class Run:
    """A trained model with all that belongs to it. ``load`` makes one.

    ``path`` is the run directory, or a folder that holds what ``final/`` holds.
    """

    path: Path
    folder: Path
    recipe: TextRecipe
    tokenizer: Tokenizer
    model: nn.Module

    def sample(
        self, prompt: str | Sequence[str] | None = None, *, infill: str | None = None, num: int = 1, seed: int = 0, **sampler: Any
    ) -> Iterator[TextSnapshot]:
        """Uncover text; yields a snapshot after every step, the last of them final.

        Args:
            prompt: what to go on from; several make a batch; None begins a document.
            infill: instead of a prompt, a text whose gaps are written ``<mask>`` or ``<mask:12>`` (12 tokens).
            num: texts per prompt.
            seed: of the first text; the next ones have the seeds after it. A text is the same alone and in any batch.
            sampler: settings of the recipe's sampler section, for this call.

        Raises:
            UserError: at once, for a setting that does not exist or a text that does not fit.
        """
        if num < 1:
            raise UserError("num", f"got {num}", "ask for at least one text")
        if infill is not None and prompt is not None:
            raise UserError("infill", "given with a prompt", "put the prompt into the text with gaps")
        chosen = self.with_sampler(**sampler).recipe
        stop = StopStrings(chosen.sampler.stop, self.tokenizer.decode_bytes) if chosen.sampler.stop else None
        single = num == 1 and (prompt is None or isinstance(prompt, str))
        write, text = (prompted, prompt or "") if infill is None else (filled, infill)
        texts = [text] if isinstance(text, str) else text
        canvases = [write(text, chosen, self.tokenizer, seed + i) for i, text in enumerate(t for t in texts for _ in range(num))]
        kind = family(chosen, self.tokenizer.vocabulary, stop)
        state = kind.begin(self.model, [canvas.request for canvas in canvases])

        def steps() -> Iterator[TextSnapshot]:
            rows: dict[int, Row] = {}
            while state.live:
                snapshot = kind.step(self.model, state)  # type: ignore[arg-type]
                rows |= {row.request: row for row in snapshot.rows}
                yield TextSnapshot(snapshot.step, [rows[i] for i in range(len(canvases))], canvases, self.tokenizer, stop, single)

        return steps()

    def with_sampler(self, **settings: Any) -> Run:
        """The same run with other settings in its recipe's sampler section. Raises UserError for what does not exist or is out of range."""
        chosen = recipes.with_overrides(self.recipe, [(f"sampler.{name}", value) for name, value in settings.items()])
        return dataclasses.replace(self, recipe=chosen)

    def generate(self, prompt: str | Sequence[str] | None = None, **settings: Any) -> Any:
        """The final text of ``sample``, or the list of them."""
        *_, last = self.sample(prompt, **settings)
        return last.text

    def evaluate(self, split: Split = "validation", tokens: int | None = None, draws: int | None = None, seed: int = 0) -> BitsPerByte:
        """Held-out bits per byte of the source.

        Args:
            split: of the recipe's data.
            tokens: how many of them at the most, 0 for all; None takes the recipe's.
            draws: Monte-Carlo draws per sequence, for a family that bounds its cost; None takes the recipe's.

        Raises:
            UserError: the split is empty, the data are gone, or they do not fit the tokenizer.
        """
        config = self.recipe.evaluation
        prepared = prepare(self.recipe.data)
        if prepared.tokenizer.digest() != self.tokenizer.digest():
            raise UserError("data.sources", "the corpus has changed since the run was trained: its tokenizer differs", "restore the corpus")
        evaluation = dataclasses.replace(
            config, tokens=config.tokens if tokens is None else tokens, draws=config.draws if draws is None else draws
        )
        return _bits(self.recipe, prepared, evaluation, self.model, split, seed)

    @property
    def metrics(self) -> Sequence[Mapping[str, float]]:
        """The rows of ``metrics.jsonl``, in the order of training."""
        return RunReport.read(self.path).log

    @cached_property
    def flops_per_token(self) -> float:
        """Forward and backward, for sequences of the recipe's context."""
        context = self.recipe.data.context
        return float(self.model.flops_per_token(context / 2 if self.recipe.family == "autoregressive" else context))  # type: ignore[operator]

    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


def load(path: str | Path) -> Run:
    """A finished run from its directory, or from a folder that holds its ``final/``; nothing else is read.

    Raises UserError for what is no run, for a file that is missing, damaged or of another version, and for a tokenizer or weights that
    do not belong to the network.
    """
    path = Path(path)
    folder = path / "final" if (path / "final").is_dir() else path
    if not (folder / final.CONFIG).is_file():
        if not path.exists():
            raise UserError(str(path), "no such run", "give a run directory, or a folder with an exported model")
        if (path / "recipe.toml").is_file():
            raise UserError(str(path), "this run is not finished, it has no final/", f"go on with `unveil train {path} --resume`")
        raise UserError(str(path), "is no run directory and holds no exported model", "give the directory that `unveil train` made")
    config = final.read_config(folder)
    tree = config.get("recipe")
    if not isinstance(tree, dict):
        raise UserError(str(folder / final.CONFIG), "is corrupted: 'recipe' is not in it", "copy final/ from where it was trained")
    recipe = recipes.parse(tree)
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    final.check_tokenizer(folder, folder / "tokenizer.json", tokenizer.vocabulary.size)
    model = family(recipe, tokenizer.vocabulary).build()
    final.read(folder, model)
    model.to(device())
    precision.apply(model, precision.compute_dtype(recipe.training.dtype, device()))
    return Run(path, folder, recipe, tokenizer, model.eval())


def train(recipe: TextRecipe | str, directory: str | Path, resume: bool = False, console: bool = True) -> Run:
    """Train a recipe (or the recipe of that name or file) into a run directory, and load the result.

    Args:
        directory: made here. ``resume`` goes on with what it holds; a run that is finished is loaded as it is.
        console: show progress.

    Raises:
        UserError: the directory holds something and ``resume`` is not asked for, or it holds a run of another recipe; whatever the
            data, the recipe or the disk have wrong.
    """
    directory, chosen = Path(directory), recipes.load(recipe) if isinstance(recipe, str) else recipes.checked(recipe)
    world = World.join()
    if world.rank == 0:
        chosen = _claim(chosen, directory, resume)
    world.barrier()
    prepared = corpora.prepared(chosen.data, shown=console and world.rank == 0)
    torch.manual_seed(chosen.seed)
    kind = family(chosen, prepared.tokenizer.vocabulary)
    model = kind.build().to(device())
    loader = Loader(prepared, chosen.data, chosen.seed, kind, world.rank, world.size)
    scored: list[BitsPerByte] = []
    evaluate, sample = _evaluation(chosen, prepared, scored), _sampler(chosen, prepared, directory)
    trainer = Trainer(kind, model, loader, chosen, directory, evaluate=evaluate, sample=sample, console=console)
    trainer.fit(resume)
    if world.rank == 0:
        done = dataclasses.replace(chosen, training=dataclasses.replace(chosen.training, steps=trainer.steps))
        with trainer.averaged() as averaged:
            _export(directory, done, averaged, prepared.tokenizer)
    world.barrier()
    run = load(directory)
    if world.rank == 0:
        _write_evidence(run, prepared, trainer, scored)
    return run


# A run directory -------------------------------------------------------------------------------------------------------------


def _claim(recipe: TextRecipe, directory: Path, resume: bool) -> TextRecipe:
    """Begin a run directory, or check that the one that is there holds a run of this recipe; the recipe to train."""
    path = directory / "recipe.toml"
    if directory.exists() and not directory.is_dir():
        raise UserError(str(directory), "is a file", "choose another name with --run-dir")
    if directory.is_dir() and any(directory.iterdir()):
        if not resume:
            raise UserError(str(directory), "exists", "go on with --resume, or choose another name with --run-dir")
        if not path.is_file():
            raise UserError(str(directory), "holds no run: there is no recipe.toml", "choose another name with --run-dir")
        before = recipes.load(str(path))
        for key, now, then in recipes.differences(recipe, before):
            if key not in FREE_ON_RESUME and not (key == "training.steps" and recipe.training.minutes):
                raise UserError(key, f"{now!r} now, {then!r} in {path}", "resume with the recipe the run began with, or start another run")
    directory.mkdir(parents=True, exist_ok=True)
    _write(path, recipes.dumps(recipe))
    _write(directory / "environment.json", json.dumps(environment(), indent=2) + "\n")
    return recipe


def _export(directory: Path, recipe: TextRecipe, model: nn.Module, tokenizer: Tokenizer) -> None:
    tree = json.loads(json.dumps(dataclasses.asdict(recipe)))
    final.write(directory / "final", model, {"vocabulary": tokenizer.vocabulary.size, "recipe": tree})
    tokenizer.save(directory / "final" / "tokenizer.json")
    _write(directory / "recipe.toml", recipes.dumps(recipe))


def _write(path: Path, text: str) -> None:
    """Whole or not at all: a killed run must find its recipe again."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


# Evaluation and samples ------------------------------------------------------------------------------------------------------


def _bits(recipe: TextRecipe, prepared: Prepared, evaluation: Any, model: nn.Module, split: Split, seed: int) -> BitsPerByte:
    if not getattr(recipe.data, split):
        raise UserError(f"data.{split}", "is 0: nothing was held out", "train with a share above 0")
    batches = held_out(prepared, recipe.data, split, evaluation.tokens)
    return held_out_bits(family(recipe, prepared.tokenizer.vocabulary), model, batches, evaluation.draws, seed)


def _evaluation(recipe: TextRecipe, prepared: Prepared, scored: list[BitsPerByte]) -> Callable[[nn.Module], dict[str, float]] | None:
    """What the trainer scores: bits per byte of the validation split, or nothing where none is held out. ``scored`` collects it."""
    if not recipe.data.validation:
        return None

    def evaluate(model: nn.Module) -> dict[str, float]:
        bits = _bits(recipe, prepared, recipe.evaluation, model, "validation", recipe.seed)
        scored.append(bits)
        return {"bits_per_byte": bits.content, "nats_per_token": bits.nats_per_token}

    return evaluate


def _sampler(recipe: TextRecipe, prepared: Prepared, directory: Path) -> Callable[[nn.Module, int], None]:
    def sample(model: nn.Module, step: int) -> None:
        run = Run(directory, directory, recipe, prepared.tokenizer, model)
        texts = run.generate(num=SAMPLES, length=min(recipe.sampler.length, recipe.data.context - 1))
        folder = directory / "samples"
        folder.mkdir(exist_ok=True)
        (folder / f"step-{step:08d}.txt").write_text("\n\n--------\n\n".join(texts) + "\n", encoding="utf-8")

    return sample


def _write_evidence(run: Run, prepared: Prepared, trainer: Trainer, scored: list[BitsPerByte]) -> None:
    """What ``unveil report`` shows beside the log. The last evaluation of training is that of the result."""
    recipe = run.recipe
    if not scored and recipe.data.validation:  # a finished run, resumed
        scored = [_bits(recipe, prepared, recipe.evaluation, run.model, "validation", recipe.seed)]
    bits = scored[-1] if scored else None
    *_, last = run.sample(num=SAMPLES, length=min(recipe.sampler.length, recipe.data.context - 1))
    shown = timeline("A sample as it was uncovered", last.rows[0], run.tokenizer)
    Evidence(
        bits=bits,
        bound=run.recipe.family not in EXACT,
        samples=last.text,
        views=[shown, *family(run.recipe, run.tokenizer.vocabulary).views(run)],
        costs={
            "parameters": run.parameters(),
            "flops_per_token": run.flops_per_token,
            "peak_flops": precision.peak_flops(trainer.dtype, trainer.device),
            "tokens": trainer.tokens,
            "seconds": trainer.seconds,
            "memory_bytes": peak_memory(),
        },
    ).save(run.path)


def peak_memory() -> int:
    """The most bytes that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
