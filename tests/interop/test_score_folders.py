"""Folders of SEDD: the scores of its description out of the folder, samples that hear the noise level, the same files back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer as Backend
from tokenizers import models
from torch import Tensor

pytest.importorskip("transformers")

import unveil
from tests.interop.test_text import SEDD, V, dit, sequences, told_folder, told_state
from tests.mistakes import answered
from unveil.config import ScoreConfig
from unveil.data.noise import generator
from unveil.families import family
from unveil.interop.tensors import WEIGHTS
from unveil.interop.text import read, write
from unveil.nn.packed import Packed
from unveil.text.proposals import inverse_cdf

UNIFORM = SEDD | {"tokens": V, "graph": {"type": "uniform"}, "noise": {"type": "geometric", "sigma_min": 1e-3, "sigma_max": 9.0}}
UNIFORM["model"] = {**SEDD["model"], "scale_by_sigma": False}  # type: ignore[dict-item]
KINDS = {"absorb": SEDD, "uniform": UNIFORM}


def folder(at: Path, chain: str) -> tuple[Path, dict[str, Tensor]]:
    """As published, but with a tokenizer: one without a token of ours, and an end that is the last but one."""
    state = told_state("")
    told_folder(at, KINDS[chain], state)
    Backend(models.BPE(vocab={chr(256 + i): i for i in range(V - 2)} | {"<|endoftext|>": V - 2}, merges=[])).save(
        str(at / "tokenizer.json")
    )
    (at / "tokenizer_config.json").write_text("{}")
    return at, state


def scores(chain: str, state: dict[str, Tensor], tokens: Tensor, sigma: float) -> Tensor:
    """log s as their network gives it: under the absorbing chain over the noise and the number of tokens, 0 at the token itself."""
    whole = torch.ones(len(tokens), len(tokens), dtype=torch.bool)
    found = dit(state, "", tokens, sigma, 4, 2, whole)
    if chain == "absorb":
        found = found - math.log(math.expm1(sigma)) - math.log(found.shape[-1] - 1)
    return found.scatter(-1, tokens[:, None], 0.0)


@pytest.mark.parametrize("chain", KINDS)
def test_scores_are_those_of_their_network(chain: str, tmp_path: Path) -> None:
    place, state = folder(tmp_path, chain)
    found = read(place)
    v, recipe = found.tokenizer.vocabulary, found.recipe
    assert (v.start, v.end, v.mask) == (V - 2, V - 2, V - 1 if chain == "absorb" else -1) and recipe.sampler.commit == "tweedie"  # type: ignore[union-attr]
    assert isinstance(recipe.objective, ScoreConfig) and recipe.objective.chain == chain
    assert (recipe.objective.sigma_min, recipe.objective.sigma_max) == ((1e-4, 20.0) if chain == "absorb" else (1e-3, 9.0))
    kind: Any = family(recipe, v)
    found.model.compute_dtype = torch.float64
    given, sigmas = sequences(V - 1), torch.tensor([0.1, 2.0, 7.5], dtype=torch.float64)
    with torch.no_grad():
        ours = Packed.of(given).split(kind.sampler.log_scores(found.model, Packed.of(given), sigmas))
    for tokens, sigma, one in zip(given, sigmas.tolist(), ours, strict=True):
        data = slice(0, V - 1 if chain == "absorb" else V)  # what lies on the mask is no data
        torch.testing.assert_close(one[:, data], scores(chain, state, tokens, sigma)[:, data], rtol=0, atol=1e-5)


def test_one_step_draws_from_the_scores_at_the_highest_noise(tmp_path: Path) -> None:
    place, state = folder(tmp_path, "absorb")
    run: Any = unveil.load(place)
    run.model.double().compute_dtype = torch.float64
    *_, last = run.sample(seed=5, length=12, steps=1)
    canvas = torch.tensor([V - 2] + [V - 1] * 12)
    log_p = scores("absorb", state, canvas, -math.log(1e-3))[1:]
    log_p[:, V - 1] = -math.inf  # the last step leaves no mask
    uniforms = torch.from_numpy(generator(5, 0, 0, "sampler").random(12))
    assert last.rows[0].tokens.tolist() == [V - 2, *inverse_cdf(log_p.log_softmax(-1), uniforms).tolist()]


@pytest.mark.parametrize("chain", KINDS)
@pytest.mark.parametrize("commit", ["tweedie", "tau-leaping"])
def test_a_batch_is_its_rows_and_no_mask_is_left(chain: str, commit: str, tmp_path: Path) -> None:
    run: Any = unveil.load(folder(tmp_path, chain)[0])
    run.model.double().compute_dtype = torch.float64
    *_, both = run.sample(["", "\u0101\u0102"], seed=3, length=4, steps=2, commit=commit)
    *_, alone = run.sample("\u0101\u0102", seed=4, length=4, steps=2, commit=commit)
    assert both.tokens[1].tolist() == alone.tokens.tolist() and both.rows[1].tokens[:3].tolist() == [V - 2, 1, 2]
    assert all(0 <= i < (V - 1 if chain == "absorb" else V) for row in both.tokens for i in row)


@pytest.mark.parametrize("chain", KINDS)
def test_there_and_back(chain: str, tmp_path: Path) -> None:
    place, state = folder(tmp_path / "theirs", chain)
    found = read(place)
    assert write(tmp_path / "ours", found.recipe, found.tokenizer, found.model) == "sedd"
    back = load_file(tmp_path / "ours" / WEIGHTS)
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    again = read(tmp_path / "ours")
    assert again.recipe.objective == found.recipe.objective and again.recipe.model == found.recipe.model
    assert again.tokenizer.vocabulary == found.tokenizer.vocabulary


MISTAKES = {
    "scores on another scale": ({"model": {**SEDD["model"], "scale_by_sigma": False}}, "scale_by_sigma is false"),  # type: ignore[dict-item]
    "a noise that is not theirs": ({"noise": {"type": "cosine"}}, "type is 'cosine'"),
    "an interval of noise that is none": ({"noise": {"type": "geometric", "sigma_min": 5.0, "sigma_max": 1.0}}, "sigma_min"),
    "a chain that is not theirs": ({"graph": {"type": "blockwise"}}, "absorb or uniform"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_one_line_names_what_is_wrong(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, _ = folder(tmp_path, "absorb")
    changed, words = MISTAKES[name]
    (place / "config.json").write_text(json.dumps(SEDD | changed))
    assert words in answered(["sample", str(place)], capsys)


def test_rules_for_masks_know_nothing_of_the_uniform_chain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, _ = folder(tmp_path, "uniform")
    assert "sampler.commit" in answered(["sample", str(place), "--sampler.commit", "quota"], capsys)


def test_rules_for_masks_on_the_absorbing_chain(tmp_path: Path) -> None:
    run: Any = unveil.load(folder(tmp_path, "absorb")[0])
    *_, last = run.sample(seed=3, length=4, commit="quota", order="confidence")
    assert len(last.rows[0].tokens) == 5 and max(last.rows[0].tokens) < V - 1
