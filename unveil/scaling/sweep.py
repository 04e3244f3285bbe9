"""A grid of runs for a law: what is in it, and the processes that train it. Every run is an ordinary run directory.

The same command again goes on: what is finished stays, what was interrupted is resumed from its checkpoint.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from unveil import recipe as recipes
from unveil.config import TextRecipe
from unveil.errors import UserError
from unveil.scaling.configure import Choice, for_budget
from unveil.scaling.engine import ENGINES, Engine
from unveil.scaling.laws import Law
from unveil.training.interrupt import Interrupt

FILE = "sweep.json"
FINISHED = "evidence.json"
"""The last thing that a run leaves."""
SAVES = 5
"""Checkpoints in a run whose recipe asks for none: a killed one loses a fifth."""
Train = Callable[..., Any]


def isoflop(recipe: TextRecipe, budgets: Sequence[float], sizes: Sequence[float], law: Law) -> dict[str, Choice]:
    """Per budget a network for each multiple in ``sizes`` of the law's M_opt, by the name of its run. Raises UserError where they are not
    at least three different ones."""
    found: dict[str, Choice] = {}
    for compute in budgets:
        choices = [for_budget(recipe, compute, law, size * law.scale(compute)) for size in sizes]
        named = {f"c{_short(compute)}-m{_short(choice.scale)}": _saving(choice) for choice in choices}
        if len(named) < 3:
            raise UserError("--sizes", f"{len(named)} different networks at C = {compute:.3g}, a parabola wants 3", "spread them further")
        found |= named
    return found


def lr_batch(recipe: TextRecipe, budgets: Sequence[float], rates: Sequence[float], batches: Sequence[float], law: Law) -> dict[str, Choice]:
    """Per budget the law's network at multiples of its learning rate and of its batch. Raises UserError."""
    found: dict[str, Choice] = {}
    for compute in budgets:
        for batch in batches:
            for rate in rates:
                choice = for_budget(recipe, compute, law, lr=rate, batch=batch)
                name = f"c{_short(compute)}-lr{choice.recipe.optimizer.lr:.2e}-b{choice.batch}"
                found[name] = _saving(choice)
    return found


def claim(grid: str, choices: dict[str, Choice], out: Path) -> None:
    """Begin a sweep's directory, or check that the one that is there is of this grid and these recipes. Raises UserError."""
    path = out / FILE
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["grid"] != grid:
            raise UserError("--out", f"{out} holds a sweep of the grid '{known['grid']}'", "choose another directory")
        names = list(dict.fromkeys([*known["runs"], *choices]))
    elif out.exists() and any(out.iterdir()):
        raise UserError("--out", f"{out} holds something that is no sweep", "choose another directory")
    else:
        names = list(choices)
    for name, choice in choices.items():
        if (out / name / "recipe.toml").is_file():
            for key, now, then in recipes.differences(choice.recipe, recipes.load(str(out / name))):
                if key != "training.threads":
                    remedy = "go on with the recipe of the sweep, or choose another --out"
                    raise UserError(key, f"{now!r} now, {then!r} in {out / name}", remedy)
    out.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{FILE}.partial")
    aside.write_text(json.dumps({"grid": grid, "runs": names}, indent=2) + "\n", encoding="utf-8")
    aside.replace(path)


def finished(out: Path, name: str) -> bool:
    return (out / name / FINISHED).is_file()


def run(
    choices: dict[str, Choice],
    out: Path,
    workers: int,
    train: Train,
    seconds: Callable[[Choice], float],
    announce: Callable[[str], None] = print,
    engine: str = "local",
) -> None:
    """Train what is not finished, ``workers`` runs at a time, the longest-lasting budgets last.

    Args:
        train: ``unveil.run.train``.
        seconds: what a run is expected to take; corrected by what the finished ones took.
        engine: of ``scaling.engine.ENGINES``.

    Raises:
        UserError: a run failed, or its process died. The others are finished first; the same command goes on.
        KeyboardInterrupt: after SIGINT or SIGTERM, when the runs have saved themselves.
    """
    todo = [name for name in choices if not finished(out, name)]
    expected = {name: seconds(choices[name]) for name in todo}
    failed: dict[str, str] = {}
    queue, began, done_seconds = list(todo), time.monotonic(), 0.0
    threads = max(1, (os.cpu_count() or 1) // workers) if workers > 1 else 0
    with Interrupt() as interrupt, ENGINES[engine](workers) as pool:
        running: dict[Future[UserError | None], str] = {}
        while queue or running:
            while queue and len(running) < workers:  # none waits inside the engine, where an interrupt would not find it
                name = queue.pop(0)
                running[pool.submit(_one, train, _threaded(choices[name].recipe, threads), out / name)] = name
            over, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            if interrupt.requested:
                pool.interrupt()
                raise KeyboardInterrupt
            for future in over:
                name = running.pop(future)
                problem = _problem(future, pool)
                failed |= {name: problem} if problem else {}
                done_seconds += expected[name]
                left = (time.monotonic() - began) * (sum(expected.values()) / done_seconds - 1)
                told = f"failed: {problem}" if problem else "done"
                announce(f"[{len(todo) - len(queue) - len(running)}/{len(todo)}] {name} {told}, about {left / 60:.1f} min left")
    if failed:
        name, problem = next(iter(failed.items()))
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise UserError(str(out / name), f"{problem}{more}", "the same command again goes on from what was saved")


def described(choices: dict[str, Choice], out: Path, seconds: Callable[[Choice], float], corpus: int) -> Iterator[tuple[str, ...]]:
    """Rows of a table, its head first; ``corpus`` counts the training tokens."""
    yield ("run", "M", "D", "width x depth", "batch", "lr", "passes", "minutes")
    for name, choice in choices.items():
        model = choice.recipe.model
        time = "done" if finished(out, name) else f"{seconds(choice) / 60:.1f}"
        yield (
            name,
            f"{choice.scale:.3g}",
            f"{choice.tokens:.3g}",
            f"{model.width} x {model.depth}",
            f"{choice.batch:,}",
            f"{choice.recipe.optimizer.lr:.2e}",
            f"{choice.tokens / corpus:.2g}",
            time,
        )


def _one(train: Train, recipe: TextRecipe, directory: Path) -> UserError | None:
    """What went wrong that a person can mend: an engine may wrap what is raised."""
    try:
        train(recipe, directory, resume=True, console=False)
    except UserError as error:
        return error
    return None


def _problem(future: Future[UserError | None], engine: Engine) -> str:
    """What went wrong, in words; empty where nothing did."""
    try:
        return str(future.result() or "")
    except engine.died:
        raise UserError("sweep", "a worker died (killed, or out of memory)", "the same command again goes on from what was saved") from None


def _threaded(recipe: TextRecipe, threads: int) -> TextRecipe:
    if not threads or recipe.training.threads:
        return recipe
    return replace(recipe, training=replace(recipe.training, threads=threads))


def _saving(choice: Choice) -> Choice:
    training = choice.recipe.training
    if training.save_every:
        return choice
    training = replace(training, save_every=max(1, training.steps // SAVES), keep=1)
    return replace(choice, recipe=replace(choice.recipe, training=training))


def _short(value: float) -> str:
    """``1e14``, ``3.75e6``."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
