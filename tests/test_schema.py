"""What recipes may be made of beyond plain settings: kinds of a section, and what may be left unset."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from unveil import recipe as recipes
from unveil.config import DiTConfig, Range, UNetConfig
from unveil.errors import UserError
from unveil.schema import build, check_ranges, override


@dataclass(frozen=True)
class Round:
    kind: Literal["round"] = "round"
    radius: Annotated[float, Range(0)] = 1.0


@dataclass(frozen=True)
class Square:
    kind: Literal["square"] = "square"
    sides: tuple[Annotated[int, Range(1)], ...] = (1, 1)


@dataclass(frozen=True)
class Drawing:
    shape: Round | Square = field(default_factory=Round)
    width: Annotated[float, Range(0, 10)] | None = None
    word: Literal["a", "b"] | None = None


def test_a_section_is_of_the_kind_that_it_names() -> None:
    assert build(Drawing, {"shape": {"radius": 2}}, "") == Drawing(Round(radius=2.0))
    assert build(Drawing, {"shape": {"kind": "square", "sides": [3]}}, "") == Drawing(Square(sides=(3,)))
    for table, field_ in (({"kind": "sqare"}, "shape.kind"), ({"kind": "square", "radius": 1}, "shape.radius")):
        with pytest.raises(UserError) as error:
            build(Drawing, {"shape": table}, "")
        assert error.value.field == field_


def test_what_may_be_unset_is_checked_where_it_is_set() -> None:
    assert build(Drawing, {"width": 3, "word": "b"}, "") == Drawing(width=3.0, word="b")
    check_ranges(Drawing(), "")
    wrong: list[tuple[Any, str]] = [
        (Drawing(width=11.0), "width"),
        (Drawing(Square(sides=(1, 0))), "shape.sides.1"),
        (Drawing(Round(radius=-1.0)), "shape.radius"),
    ]
    for drawing, name in wrong:
        with pytest.raises(UserError) as error:
            check_ranges(drawing, "")
        assert error.value.field == name
    with pytest.raises(UserError, match=r"word: got 'c'"):
        build(Drawing, {"word": "c"}, "")


def test_another_kind_begins_with_its_own_settings() -> None:
    tree: dict[str, Any] = {"shape": {"kind": "round", "radius": 4.0}}
    override(tree, Drawing, "shape.kind", "square")
    override(tree, Drawing, "shape.sides", "[2, 2]")
    override(tree, Drawing, "width", "2")
    assert build(Drawing, tree, "") == Drawing(Square(sides=(2, 2)), 2.0)


def test_a_network_is_exchanged_on_the_command_line() -> None:
    recipe = recipes.load("edm-digits")
    assert isinstance(recipe.model, UNetConfig)
    changed = recipes.with_overrides(recipe, [("model.kind", "dit"), ("model.width", "96"), ("sampler.eta", "0.5")])
    assert isinstance(changed.model, DiTConfig) and changed.model.width == 96 and changed.sampler.eta == 0.5
    assert recipes.with_overrides(changed, [("model.kind", "dit")]).model.width == 96
    assert "\neta = " not in recipes.dumps(recipe) and recipes.with_overrides(recipe, []) == recipe
