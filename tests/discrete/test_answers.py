"""What every objective makes of tokens that are told, as the prompt of an answer is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unveil.config import BlockConfig, MaskedConfig, MaskedSamplerConfig, ScoreConfig, TransformerConfig
from unveil.discrete.family import Discrete
from unveil.discrete.process import SCHEDULES, Absorbing, Uniform
from unveil.nn.head import LogitsModel
from unveil.nn.packed import Packed
from unveil.text.vocabulary import Vocabulary

MODEL = TransformerConfig(width=16, depth=2, heads=2, hidden=32, init="normal", init_std=0.3)
KINDS: dict[str, Any] = {
    "masked": MaskedConfig(),
    "per sequence": MaskedConfig(normalisation="sequence"),
    "block": BlockConfig(block=2),
    "absorb": ScoreConfig(),
    "uniform": ScoreConfig(chain="uniform", schedule="geometric"),
}
TEXTS = [torch.tensor([3, 0, 1, 2, 1, 4, 4]), torch.tensor([3, 2, 2, 0, 4])]
GIVEN = [torch.tensor([1, 1, 1, 0, 0, 0, 0]).bool(), torch.tensor([1, 1, 0, 0, 0]).bool()]


def family(vocabulary: Vocabulary, name: str) -> tuple[Discrete, Any]:
    sampler = MaskedSamplerConfig(commit="tweedie", steps=2) if isinstance(KINDS[name], ScoreConfig) else MaskedSamplerConfig()
    made = Discrete(vocabulary, MODEL, KINDS[name], sampler)
    torch.manual_seed(0)
    model = made.build().double()
    model.compute_dtype = torch.float64  # type: ignore[assignment]
    return made, model


def noise(name: str, which: list[int], given: bool = True) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    u = [torch.rand(len(text), generator=generator, dtype=torch.float64) * 0.8 for text in TEXTS]
    times = [torch.full((len(TEXTS[i]) if name == "block" else 1,), (0.7, 0.9)[i], dtype=torch.float64) for i in range(2)]
    drawn = {"t": torch.cat([times[i] for i in which]), "u": torch.cat([u[i] for i in which])}
    return drawn | ({"given": torch.cat([GIVEN[i] for i in which])} if given else {})


@pytest.mark.parametrize("name", KINDS)
def test_what_is_told_stays_clean_and_an_answer_costs_the_same_in_any_pack(vocabulary: Vocabulary, name: str) -> None:
    made, model = family(vocabulary, name)
    seen: list[torch.Tensor] = []
    enter = model._enter
    model._enter = lambda tokens, positions: seen.append(tokens) or enter(tokens, positions)
    batch, clean, given = Packed.of(TEXTS, [5, 9]), torch.cat(TEXTS), torch.cat(GIVEN)
    together = made.loss(model, batch, noise(name, [0, 1]))["loss"].sum
    noisy = seen[0][: len(clean)]  # behind it the clean text, in blocks
    assert torch.equal(noisy[given], clean[given]) and not torch.equal(noisy, clean)
    apart = [made.loss(model, Packed.of([TEXTS[i]], [(5, 9)[i]]), noise(name, [i]))["loss"].sum for i in range(2)]
    assert float(together.detach()) == pytest.approx(float(sum(apart).detach()), rel=1e-12)
    assert made.targets(batch, noise(name, [0, 1]))["loss"] == (2 if name == "per sequence" else 7)
    assert made.targets(batch, noise(name, [0, 1], given=False))["loss"] == (2 if name == "per sequence" else 10)
    values, _ = made.log_likelihood(model, batch, 3, 0, given_T=given)
    alone = [made.log_likelihood(model, Packed.of([TEXTS[i]], [(5, 9)[i]]), 3, 0, given_T=GIVEN[i])[0] for i in range(2)]
    torch.testing.assert_close(values, torch.cat(alone), rtol=1e-10, atol=0)
    rest, _ = made.log_likelihood(model, batch, 3, 0, counted_T=given, given_T=given)
    assert not rest.any(), "what is told costs nothing"


def test_under_the_uniform_chain_an_answer_costs_as_if_the_prompt_were_not_there(vocabulary: Vocabulary) -> None:
    """Where the network reads every token alone, that is exact for the same noise."""
    made, _ = family(vocabulary, "uniform")
    network = LogitsModel(lambda batch: torch.sin(torch.arange(vocabulary.size) + batch.tokens_T[:, None].double()))

    def cost(text: torch.Tensor, drawn: dict[str, torch.Tensor]) -> float:
        return float(made.loss(network, Packed.of([text]), drawn)["loss"].sum.detach())

    text, kept, drawn = TEXTS[0], ~GIVEN[0], noise("uniform", [0])
    kept[0] = True  # the start token
    alone = cost(text[kept], {"t": drawn["t"], "u": drawn["u"][kept]})
    assert cost(text, drawn) == pytest.approx(alone, rel=1e-12)
    assert cost(text, {**drawn, "given": torch.zeros(7, dtype=torch.bool)}) != pytest.approx(alone)


def test_an_end_that_is_the_start_token_too_is_noised_but_where_it_opens_a_sequence() -> None:
    batch = Packed.of([torch.tensor([3, 0, 3, 3])])
    for process in (Absorbing(SCHEDULES["linear"], 5, (3,)), Uniform(SCHEDULES["log-linear"], (0, 1, 2, 3), (3,))):
        assert process.maskable(batch).tolist() == [False, True, True, True]
