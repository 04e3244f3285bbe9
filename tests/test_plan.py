"""What a plan says is what the network does."""

from __future__ import annotations

import pytest
import torch

from unveil import plan as planning
from unveil import recipe as recipes
from unveil.errors import UserError
from unveil.families import family
from unveil.nn.packed import Packed


@pytest.mark.parametrize("name", ["ar-python", "llada-python", "deepseek-v3-tiny"])
def test_parameters_and_activations_are_the_networks_own(name: str) -> None:
    recipe = recipes.with_overrides(recipes.load(name), [("model.depth", 2), ("model.width", 64), ("data.packing_length", 300)])
    recipe = recipes.with_overrides(recipe, [("training.dtype", "float32"), ("data.context", 100), ("model.mtp.depths", 0)])
    costs = planning.Plan(recipe, torch.float32, 1e9)
    model = family(recipe, planning._vocabulary(recipe.data.tokenizer)).build()
    assert costs.parameters == sum(p.numel() for p in model.parameters())

    kept: dict[int, torch.UntypedStorage] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        hidden = model(Packed.of([torch.zeros(100, dtype=torch.int64)] * 3))
    assert costs.memory["activations"] == sum(s.nbytes() for s in kept.values())
    assert hidden.requires_grad


def test_memory_counts_what_the_optimizer_keeps() -> None:
    plain = planning.Plan(recipes.with_overrides(recipes.load("tiny"), [("training.ema", 0.9)]), torch.float32, 1e9)
    muon = planning.Plan(recipes.with_overrides(plain.recipe, [("optimizer.kind", "muon")]), torch.float32, 1e9)
    matrices = sum(p.numel() for name, p in plain.network.named_parameters() if p.dim() == 2 and "blocks" in name)
    assert plain.memory["optimizer state"] == 8 * plain.parameters
    assert plain.memory["optimizer state"] - muon.memory["optimizer state"] == 4 * matrices
    assert plain.memory["averaged weights"] == plain.memory["weights"] == 4 * plain.parameters


def test_of_experts_it_says_what_one_token_meets_and_what_muon_takes() -> None:
    recipe = recipes.with_overrides(recipes.load("deepseek-v3-tiny"), [("model.mtp.depths", 0)])
    costs = planning.Plan(recipe, torch.float32, 1e9)
    idle = (16 - 4) * 3 * 128 * 64 * 3  # experts, their three matrices, layers
    assert costs.active == costs.parameters - idle
    rows = dict(planning.described(costs, 1))
    assert (rows["parameters"], rows["  active"]) == (f"{costs.parameters:,}", f"{costs.active:,} in a token")
    muon = planning.Plan(recipes.with_overrides(recipe, [("optimizer.kind", "muon")]), torch.float32, 1e9)
    named = costs.network.named_parameters()
    matrices = sum(p.numel() for name, p in named if name.startswith("blocks") and p.dim() >= 2 and not name.endswith("router.weight"))
    assert costs.memory["optimizer state"] - muon.memory["optimizer state"] == 4 * matrices
    plain = planning.Plan(recipes.load("tiny"), torch.float32, 1e9)
    assert dict(planning.described(plain, 1))["parameters"] == f"{plain.parameters:,}"


def test_advice_is_the_largest_pack_that_fits_and_trains_the_same_tokens() -> None:
    costs = planning.Plan(recipes.load("llada-python"), torch.float32, 1e9)
    assert planning.advice(costs, costs.total) == ""
    change = planning.advice(costs, costs.total - 1)
    assert change.startswith("--data.packing-length 1024 --training.packs 2 takes ")
    words = change.split()
    smaller = recipes.with_overrides(costs.recipe, [("data.packing_length", words[1]), ("training.packs", words[3])])
    assert planning.Plan(smaller, torch.float32, 1e9).tokens == costs.tokens
    assert "model.width" in planning.advice(costs, 1000)


def test_time_follows_from_tokens_and_speed() -> None:
    recipe = recipes.load("tiny")
    costs = planning.Plan(recipe, torch.float32, 2e9)
    assert costs.seconds == pytest.approx(20 * 256 * costs.flops_per_token / (planning.UTILISATION * 2e9))
    timed = planning.Plan(recipes.with_overrides(recipe, [("training.minutes", "3")]), torch.float32, 2e9)
    assert timed.seconds == 180


@pytest.mark.parametrize(
    ("text", "count"), [("24GiB", 24 * 2**30), ("512M", 2**29), ("1.5 gb", 3 * 2**29), ("8e9", 8 * 10**9), ("2KB", 2048)]
)
def test_sizes_are_read(text: str, count: int) -> None:
    assert planning.parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1G", "many", "nan", "inf"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="24GiB"):
        planning.parse_bytes(text)


@pytest.mark.parametrize(
    ("name", "parameters", "per_token"),
    [("deepseek-llm-7b", 6_910_365_696, 4.228e10), ("deepseek-llm-67b", 67_425_001_472, 4.973e11)],
)
def test_deepseek_llms_are_as_large_as_published(name: str, parameters: int, per_token: float) -> None:
    """Parameters of the released weights; FLOPs per token M = 72 L d^2 + 12 L d s (the paper's section 3.2, where attention sees all of
    s and the feed-forward is as wide as if there were no grouped queries: 13 % more at most, without the head's 6 V d)."""
    recipe = recipes.load(name)
    costs = planning.Plan(recipe, torch.float32, 1e9)
    assert costs.parameters == parameters
    head = 6 * recipe.data.tokenizer.vocabulary * recipe.model.width
    whole = 6 * recipe.model.depth * recipe.model.width * recipe.data.context  # the other half of the triangle
    assert costs.flops_per_token - head + whole == pytest.approx(per_token, rel=0.14)
    assert recipe.training.packs * recipe.data.packing_length * recipe.training.steps == pytest.approx(2e12, rel=1e-4)


def test_deepseek_v3_is_as_large_as_published() -> None:
    """671.0 B parameters, 37.55 B of them active, 11.6 B more for multi-token prediction, 70,272 bytes of cache a token."""
    costs = planning.Plan(recipes.load("deepseek-v3-671b"), torch.bfloat16, 1e9)
    rows = dict(planning.described(costs, 2**30))
    assert rows["parameters"] == "671,026,404,352, and 11,610,067,968 for multi-token prediction"
    assert rows["cache"] == "35,136 values a token, 70,272 bytes in bfloat16"
    assert costs.active == pytest.approx(37.55e9, rel=1e-3)
