"""Paradigms side by side: recipes trained on one corpus at equal compute, then scored and sampled alike.

Every recipe gets as many steps as its own cost per token allows, so that all spend the same FLOPs. A run that is there already is taken as
it is: a comparison that was interrupted goes on where it stood.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from unveil.config import TextRecipe
from unveil.corpora import prepared
from unveil.errors import UserError
from unveil.evaluation.generative import perplexity, unigram_entropy
from unveil.families import EXACT, family
from unveil.family import Table
from unveil.initial import adopted, spent
from unveil.report.evidence import Evidence
from unveil.run import train
from unveil.text_run import TextRun, flops_per_token

FILE = "comparison.json"
COLUMNS = ("recipe", "FLOPs", "tokens", "bits/byte", "± seeds", "± texts", "nats/token", "judge's perplexity", "entropy")


@dataclass(frozen=True)
class Score:
    """One run. Perplexity is that of its samples under the judge, to be read beside their unigram entropy in nats."""

    recipe: str
    seed: int
    bound: bool
    flops: float
    tokens: int
    bits_per_byte: float
    stderr: float
    nats_per_token: float
    perplexity: float
    entropy: float
    before: float = 0.0
    """FLOPs of the run whose weights it began with, which are not among its own."""


def compared(
    recipes: Mapping[str, TextRecipe], directory: Path, *, compute: float, seeds: int, texts: int, tokens: int, say: Callable[[str], None]
) -> list[Score]:
    """Train every recipe with every seed, and score it on its test part, or on the validation part where nothing else is held out.

    Args:
        recipes: by the names they are shown under; the first autoregressive one, with the seed after the last, makes the judge.
        directory: where the runs and ``comparison.json`` go.
        compute: FLOPs that each run spends.
        texts: samples of each run that the judge reads, as long as the context; 0 for none.
        tokens: held-out tokens scored at the most, 0 for all.

    Raises:
        UserError: fewer than two recipes, one that is not text, one that buys no step, recipes that read different data, a directory
            that was made with other settings, or whatever training refuses.
    """
    _alike(recipes)
    steps = {name: _steps(adopted(recipe), name, compute) for name, recipe in recipes.items()}
    settings = {"compute": compute, "texts": texts, "tokens": tokens}
    jobs = [(name, seed) for seed in range(seeds) for name in recipes]
    exact = [name for name, recipe in recipes.items() if recipe.family in EXACT]
    found = {(score.recipe, score.seed): score for score in _read(directory, settings)}
    judge = _trained(recipes[exact[0]], exact[0], seeds, steps[exact[0]], directory) if texts and exact else None
    for name, seed in jobs:
        if (name, seed) not in found:
            run = _trained(recipes[name], name, seed, steps[name], directory)
            found[name, seed] = score = _scored(run, name, seed, judge, texts, tokens)
            _write(directory, settings, list(found.values()))
            sign = "<= " if score.bound else ""
            say(f"{name}, seed {seed}: {sign}{score.bits_per_byte:.4f} ± {score.stderr:.4f} bits per byte")
    scores = [found[job] for job in jobs]
    _show(directory / _folder(next(iter(recipes)), 0), table(scores))
    return scores


def table(scores: Sequence[Score]) -> Table:
    """A row per recipe: means over its seeds, the standard error of the mean over seeds, and the mean error over texts and draws; where
    some began with other runs, what those had cost."""
    rows, begun = [], any(score.before for score in scores)
    for name in dict.fromkeys(score.recipe for score in scores):
        own = [score for score in scores if score.recipe == name]
        bits = np.array([score.bits_per_byte for score in own])
        over = f"{bits.std(ddof=1) / math.sqrt(len(bits)):.4f}" if len(bits) > 1 else ""
        sign = "≤ " if own[0].bound else ""

        def mean(key: str, own: list[Score] = own) -> float:
            return float(np.mean([getattr(score, key) for score in own]))

        counts = f"{mean('flops'):.3g}", f"{mean('tokens'):,.0f}"
        cost = f"{sign}{bits.mean():.4f}", over, f"{mean('stderr'):.4f}", f"{mean('nats_per_token'):.4f}"
        read = (f"{mean('perplexity'):.2f}", f"{mean('entropy'):.3f}") if math.isfinite(mean("perplexity")) else ("", "")
        rows.append([name, *counts, *cost, *read, *([f"{mean('before'):.3g}"] if begun else [])])
    return Table("Paradigms at equal compute", (*COLUMNS, "FLOPs before") if begun else COLUMNS, rows)


def _alike(recipes: Mapping[str, TextRecipe]) -> None:
    if len(recipes) < 2:
        raise UserError("recipes", f"{len(recipes)} given", "name at least two, as shakespeare-ar mdlm-shakespeare")
    first, *others = recipes.items()
    for name, recipe in recipes.items():
        if not isinstance(recipe, TextRecipe):
            raise UserError("recipes", f"{name!r} is of the family {recipe.family!r}", "only recipes of text are compared")
    for name, recipe in others:
        if recipe.data != first[1].data:
            raise UserError("recipes", f"{name!r} and {first[0]!r} read different data", "give them one [data] section, or --data")


def _steps(recipe: TextRecipe, name: str, compute: float) -> int:
    with torch.device("meta"):
        network = family(recipe, prepared(recipe.data).tokenizer.vocabulary).build()
    step = flops_per_token(recipe, network) * recipe.training.packs * recipe.data.packing_length
    if round(compute / step) < 1:
        raise UserError("--compute", f"{compute:.3g} buys no step of {name!r}", f"give at least {step:.2g}")
    return round(compute / step)


def _trained(recipe: TextRecipe, name: str, seed: int, steps: int, directory: Path) -> TextRun:
    chosen = replace(recipe, seed=seed, training=replace(recipe.training, steps=steps, minutes=0.0))
    run = train(chosen, directory / _folder(name, seed), resume=True)
    assert isinstance(run, TextRun)
    return run


def _scored(run: TextRun, name: str, seed: int, judge: TextRun | None, texts: int, tokens: int) -> Score:
    data = run.recipe.data
    bits = run.evaluate("test" if data.test else "validation", tokens)
    hard, spread = math.nan, math.nan
    if judge is not None:
        *_, last = run.sample(num=texts, length=data.context - 1)
        written = [torch.from_numpy(row.tokens.copy()) for row in last.rows]
        hard = perplexity(family(judge.recipe, judge.tokenizer.vocabulary), judge.model, written, judge.tokenizer.vocabulary.end)
        spread = unigram_entropy(written, judge.tokenizer.vocabulary.end)
    seen = run.recipe.training.steps * run.recipe.training.packs * data.packing_length
    bound = run.recipe.family not in EXACT
    cost = run.flops_per_token * seen
    return Score(
        name, seed, bound, cost, seen, bits.content, bits.stderr, bits.nats_per_token, hard, spread, spent(run.recipe)
    )  # fmt: skip


def _folder(name: str, seed: int) -> str:
    return f"{Path(name).stem}-{seed}"


def _read(directory: Path, settings: Mapping[str, float]) -> list[Score]:
    path = directory / FILE
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        before, scores = dict(content["settings"]), [Score(**row) for row in content["scores"]]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(str(path), f"not readable ({error})", "delete it; the runs beside it are scored again") from None
    for name, value in settings.items():
        if before.get(name) != value:
            raise UserError(f"--{name}", f"is {value:g} and {path} was made with {before.get(name)}", "give the same, or another --run-dir")
    return scores


def _write(directory: Path, settings: Mapping[str, float], scores: Sequence[Score]) -> None:
    aside = directory / f"{FILE}.tmp"
    aside.write_text(json.dumps({"settings": settings, "scores": [asdict(score) for score in scores]}, indent=1), encoding="utf-8")
    os.replace(aside, directory / FILE)


def _show(run: Path, view: Table) -> None:
    """Put the table on the first run's page."""
    Evidence.load(run).with_views(view).save(run)
