"""M counted on networks against the paper's closed forms and its two models."""

from __future__ import annotations

import pytest

from unveil import recipe as recipes
from unveil.config import BlockConfig, DiscreteRecipe, TransformerConfig
from unveil.errors import UserError
from unveil.scaling.cost import checked, model_scale, network_cost, paper_cost


@pytest.mark.parametrize(
    ("layers", "width", "scale", "budget"), [(30, 4096, 4.228e10, 8.456e22), (95, 8192, 4.973e11, 9.946e23)], ids=["7B", "67B"]
)
def test_the_papers_two_models(layers: int, width: int, scale: float, budget: float) -> None:
    cost = paper_cost(layers, width, 4096, 102400)
    assert cost.scale == pytest.approx(scale, rel=3e-4) and 2e12 * cost.scale == pytest.approx(budget, rel=3e-4)
    assert cost.n1 < cost.n2 and cost.n2 - cost.n1 == 6 * 102400 * width


def test_a_network_is_counted_as_the_paper_counts_it() -> None:
    """A width of 192 gives a feed-forward of 8/3 d exactly."""
    model = TransformerConfig(width=192, depth=5, heads=3, qk_norm=True)
    assert network_cost(model, 640, 1000) == paper_cost(5, 192, 640, 1000)


def test_the_7b_as_it_was_built_is_within_a_percent_of_its_formula() -> None:
    built = network_cost(TransformerConfig(width=4096, depth=30, heads=32, hidden=11008), 4096, 102400)
    assert built.scale == pytest.approx(paper_cost(30, 4096, 4096, 102400).scale, rel=0.01)


def test_the_three_counts_differ_by_half_where_networks_are_small() -> None:
    cost = paper_cost(8, 512, 4096, 102400)
    assert cost.n1 / cost.scale < 0.6 and cost.n2 / cost.scale > 1.3


def test_paradigms_share_one_axis() -> None:
    tree = {"model": {"width": 64, "depth": 2, "heads": 2}}
    scales = {model_scale(recipes.parse({"family": family, **tree})) for family in ("autoregressive", "discrete")}
    assert len(scales) == 1


def test_what_the_laws_do_not_speak_of_is_refused() -> None:
    with pytest.raises(UserError, match="'block'"):
        checked(DiscreteRecipe(objective=BlockConfig()))
    with pytest.raises(UserError, match="'gaussian' is not text"):
        checked(recipes.load("edm-digits"))
