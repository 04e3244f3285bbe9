"""Preferences learned from a file of pairs, from the command line's recipes: by likelihoods and by their bounds."""

from __future__ import annotations

import json
import math
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import unveil
from unveil import recipe as recipes
from unveil.data.loader import Loader
from unveil.data.shards import prepare
from unveil.families import family

SMALL = {
    "data.context": "32", "data.packing_length": "256", "model.width": "32", "model.depth": "1", "model.heads": "2",
    "training.steps": "3", "training.packs": "1", "training.compile": "off", "training.dtype": "float32", "training.evaluate_every": "0",
    "evaluation.tokens": "2048", "sampler.length": "4",
}  # fmt: skip
PAIRED = {"objective.preference.beta": "0.5", "optimizer.lr": "3e-3", "training.steps": "25", "training.log_every": "1"}
EXTRA = {
    "ar-dpo": {"objective.preference.draws": "1"},
    "llada-vrpo": {"objective.preference.draws": "4", "objective.end_padding": "0"},
}
BEFORE = {"ar-dpo": "ar-sft", "llada-vrpo": "llada-sft"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of which the preferred answer says yes, and a model for each family that has seen both kinds."""
    home = tmp_path_factory.mktemp("preference")
    pairs = [{"prompt": f"{i}?", "chosen": "yes" + "!" * (i % 3), "rejected": "no" + "." * (i % 2)} for i in range(60)]
    (home / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    spoken = [{"prompt": p["prompt"], "response": p[side]} for p in pairs for side in ("chosen", "rejected")]
    (home / "chats.jsonl").write_text("\n".join(map(json.dumps, spoken)))
    for name in ("ar-sft", "llada-sft"):
        padding = {"objective.end_padding": "0"} if name == "llada-sft" else {}
        unveil.train(chosen(name, home, home / "chats.jsonl", **padding), home / name, console=False)
    return home


def chosen(name: str, home: Path, data: Path, **more: str) -> Any:
    recipe = recipes.with_data(recipes.load(name), str(data))
    return recipes.with_overrides(recipe, {**SMALL, "data.cache": str(home / "cache"), **more}.items())


def paired(name: str, home: Path, **more: str) -> Any:
    return chosen(name, home, home / "pairs.jsonl", **{**PAIRED, **EXTRA[name], "training.initial": str(home / BEFORE[name]), **more})


@pytest.mark.parametrize("name", BEFORE)
def test_training_begins_at_log_2_and_the_margin_grows_on_pairs_that_were_held_out_too(name: str, home: Path) -> None:
    run = unveil.train(paired(name, home), home / name, console=False)
    log = [row for row in run.metrics if "train/loss" in row]
    assert log[0]["train/loss"] == math.log(2) and log[0]["train/accuracy"] == 0.5 and log[0]["train/margin"] == 0
    late = [np.mean([row[f"train/{key}"] for row in log[-5:]]) for key in ("loss", "accuracy", "margin")]
    assert late[0] < 0.6 and late[1] > 0.8 and late[2] > 0.2
    assert log[-1]["train/margin"] == pytest.approx(log[-1]["train/reward_chosen"] - log[-1]["train/reward_rejected"], abs=1e-6)
    (scored,) = [row for row in run.metrics if "eval/loss" in row]
    assert scored["eval/accuracy"] > 0.8 and scored["eval/margin"] > 0.2 and scored["eval/bits_per_byte"] > 0
    assert run.evaluate().bytes < 30, "the preferred answers alone"
    reference = unveil.load(home / BEFORE[name])
    assert any(not torch.equal(p, q) for p, q in zip(run.model.parameters(), reference.model.parameters(), strict=True))


@pytest.mark.parametrize("name", BEFORE)
def test_a_pack_holds_whole_pairs_and_a_pair_has_the_same_noise_in_any(name: str, home: Path) -> None:
    recipe = paired(name, home)
    data = prepare(recipe.data)
    kind = family(recipe, data.tokenizer.vocabulary)
    found: list[dict[Any, Any]] = []
    for length, packing in ((256, "best-fit"), (600, "next-fit")):
        config = recipes.with_overrides(recipe, [("data.packing_length", str(length)), ("data.packing", packing)]).data
        seen: dict[Any, Any] = {}
        for batch, noise in islice(Loader(data, config, 0, kind), 12):
            assert batch.size <= length
            split = {key: batch.split(values) for key, values in noise.items() if len(values) == batch.size}
            of_pair: dict[int, list[Any]] = {}
            for n, (sample, tokens) in enumerate(zip(batch.sample_ids_N.tolist(), batch.split(), strict=True)):
                row = (bool(noise["chosen"][n]), tokens.tolist(), *(split[key][n].tolist() for key in sorted(split)))
                of_pair.setdefault(int(noise["pair"][n]), []).append(row)
                seen.setdefault(sample, []).append(row)
            assert sorted(of_pair) == list(range(len(of_pair)))
            for rows in of_pair.values():
                assert sum(row[0] for row in rows) * 2 == len(rows) == 2 * kind.versions
                texts = {row[0]: data.tokenizer.decode(row[1]) for row in rows}
                prompts = {text.split("Assistant:")[0] for text in texts.values()}
                assert len(prompts) == 1 and "yes" in texts[True] and "no" in texts[False]
        found.append({sample: sorted(rows) for sample, rows in seen.items()})
    common = found[0].keys() & found[1].keys()
    assert len(common) > 5 and all(found[0][i] == found[1][i] for i in common)


@pytest.mark.parametrize("name", BEFORE)
def test_it_resumes_bit_for_bit_with_the_reference_it_began_with(name: str, home: Path) -> None:
    recipe = paired(name, home, **{"training.steps": "6", "training.save_every": "3", "training.keep": "9"})
    whole = unveil.train(recipe, home / f"{name}-whole", console=False)
    shutil.copytree(home / f"{name}-whole", home / f"{name}-cut")
    shutil.rmtree(home / f"{name}-cut" / "checkpoints" / "step-00000006")
    shutil.rmtree(home / f"{name}-cut" / "final")
    again = unveil.train(recipe, home / f"{name}-cut", resume=True, console=False)
    assert all(torch.equal(p, q) for p, q in zip(whole.model.parameters(), again.model.parameters(), strict=True))
