"""What the families say of experts: terms with their own denominators, and the heat map."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unveil import cli, experts
from unveil.autoregressive.family import Autoregressive
from unveil.config import (
    BlockConfig,
    ExpertsConfig,
    MaskedConfig,
    MaskedSamplerConfig,
    MTPConfig,
    NextTokenConfig,
    NextTokenSamplerConfig,
    ScoreConfig,
    TransformerConfig,
)
from unveil.discrete.family import Discrete
from unveil.nn.packed import Packed
from unveil.nn.routing import Router, Routing
from unveil.text.vocabulary import Vocabulary

VOCABULARY = Vocabulary(size=26, start=20, end=21, mask=22, prefix=23, suffix=24, middle=25)
FAMILIES = ("next token", "masked", "block", "score")


def family(name: str, **switches: object) -> Autoregressive | Discrete:
    chosen = ExpertsConfig(**{"routed": 4, "top_k": 2, "hidden": 8, "dense": 1, "balance": 0.5, **switches})  # type: ignore[arg-type]
    model = TransformerConfig(width=16, depth=3, heads=2, init="normal", init_std=0.3, experts=chosen)
    if name == "next token":
        return Autoregressive(VOCABULARY, model, NextTokenConfig(), NextTokenSamplerConfig())
    objective = {"masked": MaskedConfig(), "block": BlockConfig(block=3), "score": ScoreConfig(chain="uniform")}[name]
    sampler = MaskedSamplerConfig(commit="tweedie" if name == "score" else "quota")
    return Discrete(VOCABULARY, model, objective, sampler)


def read(made: Autoregressive | Discrete) -> tuple[torch.nn.Module, Packed, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    network = made.build().double()
    network.compute_dtype = torch.float64
    batch = Packed.of([torch.tensor([20, *range(n)]) for n in (9, 5, 6)])
    times = torch.tensor([0.4, 0.8, 0.6], dtype=torch.float64)
    if isinstance(made, Discrete) and isinstance(made.config, BlockConfig):
        times = times[batch.sequence_T]
    return network, batch, {"t": times, "u": torch.rand(23, dtype=torch.float64)}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_the_term_and_counts_what_it_read(name: str) -> None:
    """Two layers with experts, three documents; the loss it adds is what the routers say, in training only."""
    made = family(name)
    network, batch, noise = read(made)
    network.train()
    term, denominator = made.loss(network, batch, noise)["balance"], made.targets(batch, noise)["balance"]
    assert denominator == 6 and term.weight == 0.5 * 2
    assert 0.9 < float(term.sum.detach()) / denominator < 2
    gradients = torch.autograd.grad(term.sum, [m.weight for m in network.modules() if isinstance(m, Router)])
    assert all(g.any() for g in gradients)
    counted = [int(m.counts.sum()) for m in network.modules() if isinstance(m, Router)]
    # block diffusion reads noisy and clean text together, but for the last layer
    assert counted == ([2 * 46, 46] if name == "block" else [46, 46])
    network.eval()
    assert "balance" not in made.loss(network, batch, noise)
    assert [int(m.counts.sum()) for m in network.modules() if isinstance(m, Router)] == counted


def test_depths_that_predict_further_ahead_count_as_layers() -> None:
    """Each has a router of its own, whose share is that of a layer of the trunk."""
    made = family("next token")
    made.model = replace(made.model, mtp=MTPConfig(depths=2))
    network, batch, noise = read(made)
    network.train()
    term, denominator = made.loss(network, batch, noise)["balance"], made.targets(batch, noise)["balance"]
    routers = [m for m in network.modules() if isinstance(m, Router)]
    assert len(routers) == 4 and denominator == 4 * 3 and term.weight == 0.5 * 4
    assert 0.9 < float(term.sum.detach()) / denominator < 2
    assert all(int(router.counts.sum()) == 46 for router in routers)


def test_a_layer_in_perfect_balance_costs_alpha() -> None:
    """Every document's tokens go to both experts in turn, and all scores are alike: the layer's share of the loss is alpha itself."""
    made = family("next token", dense=2, routed=2, top_k=1, balance=0.01)
    network, _, _ = read(made)
    batch = Packed.of([torch.tensor([20, 1, 2, 3]), torch.tensor([20, 1])])
    router = next(m for m in network.modules() if isinstance(m, Router))
    router.seen = Routing((batch.positions_T % 2)[:, None], torch.ones(6, 1), torch.full((6, 2), 0.3, dtype=torch.float64))
    term = experts.terms(network, batch)["balance"]
    assert term.weight * float(term.sum) / made.targets(batch, {})["balance"] == pytest.approx(0.01, rel=1e-12)


def test_over_a_pack_it_is_one_segment() -> None:
    made = family("next token", balance_over="pack")
    network, batch, noise = read(made)
    assert made.targets(batch, noise)["balance"] == 2
    network.train()
    assert 0.9 < float(made.loss(network, batch, noise)["balance"].sum.detach()) / 2 < 2


def test_without_a_weight_there_is_no_term_but_loads_are_counted() -> None:
    made = family("next token", balance=0.0)
    network, batch, noise = read(made)
    network.train()
    assert made.loss(network, batch, noise).keys() == made.targets(batch, noise).keys() == {"nll"}
    assert all(int(m.counts.sum()) == 46 for m in network.modules() if isinstance(m, Router))


def test_the_heat_map_is_each_experts_load_over_the_mean_of_its_layer() -> None:
    names = [f"{experts.NAMED}blocks.{i}.feedforward.router" for i in (1, 2)]
    rows = [
        {"tokens": 10 * (i + 1), **dict.fromkeys(names, 0.0), "load/counts": [[1, 3], [4, 0 if i < 60 else 4]]}
        for i in range(2 * experts.COLUMNS)
    ]
    (view,) = experts.views([{"tokens": 5, "train/nll": 1.0}, *rows])
    assert list(view.panels) == ["blocks.1", "blocks.2"] and len(view.x) == experts.COLUMNS and view.x[-1] == rows[-1]["tokens"]
    assert view.panels["blocks.1"] == [[0.5] * 60, [1.5] * 60]
    assert view.panels["blocks.2"] == [[2.0] * 30 + [1.0] * 30, [0.0] * 30 + [1.0] * 30]
    assert experts.views([{"tokens": 5, "train/nll": 1.0}]) == []


MISTAKES = {
    "tiny --model.experts.groups 3": ("model.experts.groups: 3 do not divide model.experts.routed = 8", "choose a divisor"),
    "tiny --model.experts.groups 2 --model.experts.kept-groups 3": ("model.experts.kept_groups: 3 of model.experts.groups = 2", "lower it"),
    "tiny --model.experts.groups 4 --model.experts.top-k 3": (
        "model.experts.top_k: 3 is above the 2 experts of the 1 group(s) kept",
        "keep more groups",
    ),
    "tiny --model.experts.top-k 9": ("model.experts.top_k: 9 is above the 8 experts", "lower it"),
    "tiny --model.experts.top-k 0": ("model.experts.top_k", "0"),
    "tiny --model.experts.scale 0": ("model.experts.scale", "0"),
    "tiny --model.experts.gate tanh": ("model.experts.gate", "tanh", "sigmoid"),
    "tiny --model.experts.dense 2": ("model.experts.dense: 2 layers without experts are all of model.depth = 2", "lower it"),
    "tiny --model.feedforward gelu": ("model.feedforward: 'gelu', but experts are gated", "swiglu"),
    "edm-toy": ("model.experts",),  # families that have none
    "oadtr-synth": ("model.experts",),
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_gets_one_line(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", *line.split(), "--model.experts.routed", "8", "--run-dir", str(tmp_path / "run")])
    said = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and "Traceback" not in said and all(part in said.splitlines()[-1] for part in MISTAKES[line]), said
    assert not (tmp_path / "run").exists()
