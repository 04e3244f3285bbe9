"""From autoregression to diffusion by steps: edges that open, blocks that grow, and what both begin and end with."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from unveil.autoregressive.family import Autoregressive
from unveil.config import (
    BlockConfig,
    MaskedConfig,
    MaskedSamplerConfig,
    NextTokenConfig,
    NextTokenSamplerConfig,
    ScoreConfig,
    TransformerConfig,
)
from unveil.data.noise import generator
from unveil.discrete.family import Discrete
from unveil.discrete.stages import block_at, open_share, opened
from unveil.family import Staged
from unveil.nn.layout import Causal
from unveil.nn.packed import Packed

SIZES = {"width": 16, "depth": 2, "heads": 2, "hidden": 32, "init": "normal", "init_std": 0.3}
GROWTH = BlockConfig(block=8, growth=(1, 2, 4), growth_share=0.75, t_min=0.2, t_max=0.9, schedule="cosine")


def discrete(vocabulary, objective, **model):
    sampler = MaskedSamplerConfig(commit="tau-leaping" if isinstance(objective, ScoreConfig) else "quota")
    return Discrete(vocabulary, TransformerConfig(**SIZES | model), objective, sampler, seed=4)


def network(family):
    torch.manual_seed(0)
    model = family.build().double()
    model.compute_dtype = torch.float64
    for name, p in model.named_parameters():
        if "tell.weight" in name:  # gates begin shut: nothing would be attended to
            torch.nn.init.normal_(p, std=0.3)
    return model


@pytest.fixture
def batch(vocabulary):
    return Packed.of(
        [torch.tensor([vocabulary.start, 0, 1, 2, 1, 0, 2, 2, 0, 1, vocabulary.end]), torch.tensor([vocabulary.start, 2, 2, 0, 1])]
    )


def drawn(family, batch):
    each = [family.draw(i, 0, n, generator(0, 0, i, "draw")) for i, n in enumerate(batch.lengths)]
    return {name: torch.from_numpy(np.concatenate([e[name] for e in each])) for name in each[0]}


def losses(family, model, batch, noise):
    """The trained term and its gradients."""
    total = family.loss(model, batch, noise)["loss"].sum
    return total.detach(), torch.autograd.grad(total, list(model.parameters()))


def equal(ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-12, atol=0)
    for a, b in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_the_share_of_open_edges_rises_to_all_of_them() -> None:
    assert [open_share(0.5, step, 8) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert open_share(1.0, 8, 10) == 0.9 and open_share(1e-9, 0, 10) == 1.0
    one, again, next_step, next_seed = (opened(0.3, *key).open_PP for key in ((5, 0), (5, 0), (6, 0), (5, 1)))  # type: ignore[union-attr]
    assert torch.equal(one, again) and 0.4 < float((one != next_step).double().mean()) < 0.44  # 2 x 0.3 x 0.7 for independent draws
    assert 0.4 < float((one != next_seed).double().mean()) < 0.44
    assert abs(float(one.double().mean()) - 0.3) < 4 * (0.3 * 0.7) ** 0.5 / 256
    assert opened(1.0, 5, 0) is None


@torch.no_grad()
def test_a_token_sees_what_follows_through_open_edges_alone(vocabulary, batch) -> None:
    """One layer, every token changed in turn: the states that move are those that the pattern names."""
    family = discrete(vocabulary, MaskedConfig(anneal=1.0), depth=1)
    model = network(family)
    family.progress(3, 10)
    read = family.kind.objective.read
    pattern = opened(0.4, 3, 4).open_PP  # type: ignore[union-attr]
    before = read(model, batch, batch.tokens_T, torch.empty(0))
    for k in range(11):
        tokens = batch.tokens_T.clone()
        tokens[k] = (tokens[k] + 1) % 3
        moved = (read(model, batch.with_tokens(tokens), tokens, torch.empty(0)) != before).any(-1)
        assert moved[:11].tolist() == [q >= k or bool(pattern[q, k]) for q in range(11)] and not moved[11:].any()


@pytest.mark.parametrize("objective", [MaskedConfig(anneal=0.5), ScoreConfig(anneal=0.5), ScoreConfig(anneal=0.5, chain="uniform")])
def test_annealing_ends_as_if_it_had_never_been(vocabulary, batch, objective) -> None:
    """Loss, gradients and bound; before its end the loss is another, the bound the same."""
    told = {"time_conditioning": isinstance(objective, ScoreConfig)}
    family, plain = (
        discrete(vocabulary, objective, **told),
        discrete(vocabulary, type(objective)(**{**vars(objective), "anneal": 0.0}), **told),
    )
    model, noise = network(family), drawn(family, batch)
    expected, bound = losses(plain, model, batch, noise), plain.log_likelihood(model, batch, 2, 0)
    for step in (0, 3, 4, 1):
        family.progress(step, 8)
        found = losses(family, model, batch, noise)
        if step < 3:
            assert abs(float(found[0] - expected[0])) > 1e-3
        else:
            equal(found, expected)
        assert torch.equal(family.log_likelihood(model, batch, 2, 0)[0], bound[0])
        terms, denominators = family.loss(model, batch, noise), family.targets(batch, noise)
        assert float(terms["open edges"].sum) == pytest.approx(min(1.0, (step + 1) / 4)) and denominators["open edges"] == 1.0
    assert "open edges" not in plain.loss(model, batch, noise)


def test_with_every_edge_shut_the_loss_is_the_causal_networks(vocabulary, batch) -> None:
    family = discrete(vocabulary, MaskedConfig(anneal=1.0), shift=True)
    model, noise = network(family), drawn(family, batch)
    family.progress(0, 10**9)  # one edge in 10^9 is open
    ours = losses(family, model, batch, noise)
    causal = copy.deepcopy(model)
    causal.layout = Causal()
    equal(ours, losses(discrete(vocabulary, MaskedConfig(), shift=True), causal, batch, noise))


def test_blocks_grow_in_equal_parts_and_reach_the_last() -> None:
    def run(growth, share, steps):
        return [block_at(growth, 8, share, step, steps) for step in range(steps)]

    assert run((1, 2, 4), 0.75, 8) == [1, 1, 2, 2, 4, 4, 8, 8]
    assert run((1, 2, 4), 1.0, 5) == [1, 1, 2, 2, 4] and run((4,), 0.01, 3) == [4, 8, 8] and run((), 0.5, 3) == [8, 8, 8]
    assert run((1, 2, 4), 0.5, 2) == [1, 8]  # fewer steps than sizes


def test_the_first_step_of_growing_blocks_is_the_loss_of_the_autoregressive_network(vocabulary, batch) -> None:
    """Bit for bit the same weights: sum of the loss, whatever was drawn, = -log p under the network as it was."""
    before = Autoregressive(vocabulary, TransformerConfig(**SIZES), NextTokenConfig(), NextTokenSamplerConfig())
    source = network(before)
    family = discrete(vocabulary, GROWTH, shift=True)
    model = network(family)
    model.load_state_dict(source.state_dict())
    assert isinstance(family, Staged)
    family.progress(0, 8)
    expected = -before.log_likelihood(source, batch, 1, 0)[0].sum()
    noise = drawn(family, batch)
    for u in (noise["u"], 1 - noise["u"]):
        terms = family.loss(model, batch, {**noise, "u": u})
        torch.testing.assert_close(terms["loss"].sum, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(terms["bound"].sum, expected, rtol=1e-12, atol=0)
    assert family.targets(batch, noise)["loss"] == before.targets(batch, {})["nll"]


def test_every_stage_is_the_objective_of_its_block_and_scores_are_of_the_last(vocabulary, batch) -> None:
    family = discrete(vocabulary, GROWTH)
    model, noise = network(family), drawn(family, batch)
    assert family.kind.layout.block == 8
    bound = family.log_likelihood(model, batch, 2, 0)
    for step, block in enumerate((1, 1, 2, 2, 4, 4, 8, 8)):
        family.progress(step, 8)
        alone = discrete(vocabulary, BlockConfig(block=block, t_min=0.2, t_max=0.9, schedule="cosine"))
        theirs = {"t": noise["t" if block == 8 else f"t {block}"], "u": noise["u"]}
        starts = batch.positions_T % block == 0
        assert len(set(theirs["t"][starts].tolist())) == (1 if block == 1 else int(starts.sum())), "a time for every block"
        equal(losses(family, model, batch, noise), losses(alone, model, batch, theirs))
        counts = family.targets(batch, noise)
        assert counts.pop("block") == 1.0 and counts == alone.targets(batch, theirs)
        assert float(family.loss(model, batch, noise)["block"].sum) == block
        assert torch.equal(family.log_likelihood(model, batch, 2, 0)[0], bound[0])
