"""Tasks of ``lm-eval`` over local files, and what a run scores on them, with all that moves a score."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unveil.environment import device, environment
from unveil.errors import UserError, nearest
from unveil.families import EXACT, family
from unveil.nn.packed import Packed
from unveil.text.chat import chat_template
from unveil.text_run import TextRun
from unveil.training.weights import weights

RESULTS = "evaluation-tasks.json"
READERS = ("json", "csv", "parquet", "text")
"""Of ``datasets``: they read files, and nothing else."""
OUTPUTS = ("multiple_choice", "generate_until", "loglikelihood_rolling")


def read(path: Path) -> dict[str, Any]:
    """The settings of a task file, data files made absolute.

    Raises UserError for a file that is no task of ``lm-eval``, has a key that ``lm-eval`` does not know, wants what is not computed here,
    or names no local data.
    """
    _offline()
    import yaml
    from lm_eval.config.task import TaskConfig

    if not path.is_file():
        raise UserError("--tasks", f"no file {str(path)!r}", "give the path of a task file")
    try:
        task = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(str(path), f"is no plain YAML ({' '.join(str(error).split())})", "correct it; functions are not run") from None
    if not isinstance(task, dict) or not isinstance(task.get("task"), str):
        raise UserError(str(path), "names no task", "begin it with task: NAME")
    known = [field.name for field in dataclasses.fields(TaskConfig)]
    for key in task:
        if key not in known:
            raise UserError(f"{path}: {key}", "no such key of a task", nearest(str(key), known))
    if (output := task.get("output_type")) not in OUTPUTS:
        raise UserError(f"{path}: output_type", f"got {output!r}", nearest(str(output), OUTPUTS))
    _check_metrics(task, path)
    if task.get("dataset_path") not in READERS:
        problem = f"got {task.get('dataset_path')!r}: only local files are read"
        raise UserError(f"{path}: dataset_path", problem, "take " + ", ".join(READERS))
    options = task.get("dataset_kwargs")
    files = options.get("data_files") if isinstance(options, dict) else None
    if not isinstance(options, dict) or not files or not isinstance(files, str | dict):
        raise UserError(f"{path}: dataset_kwargs.data_files", "names no local data", "write data_files: {test: FILE}")
    named = {"train": files} if isinstance(files, str) else files
    found = {split: _local(file, path) for split, file in named.items()}
    return {**task, "dataset_kwargs": {**options, "data_files": found}}


def _local(file: Any, path: Path) -> str:
    place = path.resolve().parent / str(file)
    if not place.is_file():
        raise UserError(f"{path}: dataset_kwargs.data_files", f"no file {file!r} beside it", "name a file, relative to the task's")
    return str(place)


def _check_metrics(task: dict[str, Any], path: Path) -> None:
    import lm_eval.api.metrics  # noqa: F401 - fills the registry
    from lm_eval.api.registry import METRIC_REGISTRY

    for entry in task.get("metric_list") or []:
        metric = entry.get("metric") if isinstance(entry, dict) else None
        if metric not in METRIC_REGISTRY:
            raise UserError(f"{path}: metric_list", f"got {metric!r}", nearest(str(metric), list(METRIC_REGISTRY)))
        if metric == "exact_match" and task["output_type"] == "multiple_choice":
            raise UserError(f"{path}: metric_list", "exact_match wants greedy answers, choices are scored by likelihood", "take acc")


def evaluate(
    run: TextRun,
    files: Sequence[Path],
    limit: int | None = None,
    draws: int | None = None,
    chat: bool = False,
    rows: int = 16,
    seed: int = 0,
) -> dict[str, Any]:
    """Score ``run`` on task files.

    Args:
        limit: documents of each task at the most.
        draws: Monte-Carlo draws per text, for a family that bounds its likelihood; None takes the recipe's.
        chat: render every prompt by the model's chat template.
        rows: texts written at a time.
        seed: of the masks of likelihoods and of the texts.

    Returns: what ``record`` writes: the scores, and under ``made_with`` what they depend on.

    Raises UserError as ``read``, for a number that is not positive.
    """
    for name, value in (("--limit", limit), ("--draws", draws), ("--batch", rows)):
        if value is not None and value < 1:
            raise UserError(name, f"got {value}", "give 1 or more")
    _offline()
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise UserError("--tasks", "wants the package lm-eval", "pip install 'unveil[harness]'") from None
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import evaluate as judged

    from unveil.evaluation.harness import Harness

    tasks = [read(path) for path in files]
    if twice := [task["task"] for i, task in enumerate(tasks) if task["task"] in [other["task"] for other in tasks[:i]]]:
        raise UserError("--tasks", f"two tasks are named {twice[0]!r}", "give each a name of its own")
    recipe = run.recipe
    draws = recipe.evaluation.draws if draws is None else draws
    exact = recipe.family in EXACT
    template = chat_template(run.folder)
    harness = Harness(run, scorer(run, draws, seed), template, rows, seed)
    with tempfile.TemporaryDirectory() as cache:
        loaded = {}
        for task in tasks:
            loaded[task["task"]] = ConfigurableTask(config={**task, "dataset_kwargs": {**task["dataset_kwargs"], "cache_dir": cache}})
        found = judged(harness, loaded, limit=limit, bootstrap_iters=0, log_samples=False, apply_chat_template=chat)
    assert found is not None
    made_with = {
        **conditions(run, draws, seed, limit),
        "batch": rows,
        "template": type(template).__name__ if chat else None,
        "truncated_prompts": harness.truncated,
        "tasks": tasks,
    }
    made_with["versions"] |= {"lm-eval": importlib.metadata.version("lm-eval"), "datasets": importlib.metadata.version("datasets")}
    return {"likelihood": "exact" if exact else "bound", "results": found["results"], "samples": found["n-samples"], "made_with": made_with}


def conditions(run: TextRun, draws: int, seed: int, limit: int | None) -> dict[str, Any]:
    """What moves a score of a run, whatever it is asked."""
    dtype = getattr(run.model, "compute_dtype", next(run.model.parameters()).dtype)
    return {
        "family": run.recipe.family,
        "sampler": dataclasses.asdict(run.recipe.sampler),
        "draws": None if run.recipe.family in EXACT else draws,
        "seed": seed,
        "limit": limit,
        "dtype": str(dtype).removeprefix("torch."),
        "weights": weights_hash(run.model),
        "tokenizer": run.tokenizer.digest(),
        "versions": dict(environment()),
    }


def scorer(run: TextRun, draws: int, seed: int) -> Callable[[Packed, Tensor], Tensor]:
    """The log-likelihood of a pack's sequences given the tokens that are told, ``[N]``, as ``Harness`` asks for it."""
    kind: Any = family(run.recipe, run.tokenizer.vocabulary)

    def score(batch: Packed, given_T: Tensor) -> Tensor:
        told = {} if run.recipe.family in EXACT else {"given_T": given_T.to(device())}
        counted_T = (~given_T).to(device())
        found: Tensor = kind.log_likelihood(run.model, batch.to(device()), draws, seed, counted_T, **told)[0]
        return found

    return score


def record(run: TextRun, found: dict[str, Any]) -> Path:
    """Write ``evaluation-tasks.json`` into the run's directory, or here, under the model's name, where that cannot be written to."""
    text = json.dumps(found, indent=2, default=str) + "\n"
    path = run.path / RESULTS
    try:
        path.write_text(text, encoding="utf-8")
    except OSError:
        path = Path(f"{run.path.resolve().name}-{RESULTS}")
        path.write_text(text, encoding="utf-8")
    return path


def lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Task and metric, and the value."""
    return [
        (f"{task} {metric.removesuffix(',none')}", f"{value:.4f}")
        for task, values in found["results"].items()
        for metric, value in values.items()
        if isinstance(value, float) and "_stderr" not in metric
    ]


def weights_hash(model: torch.nn.Module) -> str:
    """Of every weight, its name and its shape."""
    total = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(weights(model).items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _offline() -> None:
    """Nothing is fetched: ``datasets`` and the hub read this when they are imported."""
    os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
