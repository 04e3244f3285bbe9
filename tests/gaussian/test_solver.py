"""The table of solvers: names, traits and options."""

from __future__ import annotations

import math

import pytest

from unveil.errors import UserError
from unveil.gaussian.grid import karras
from unveil.gaussian.path import EDM
from unveil.gaussian.solver import Between, OneOf, Solver
from unveil.gaussian.solvers import SOLVERS
from unveil.gaussian.tape import Call


def test_every_solver_is_under_its_own_name():
    assert all(name == one.name for name, one in SOLVERS.items()) and len(SOLVERS) == 19
    assert all(one.__doc__ for one in SOLVERS.values())


@pytest.mark.parametrize("name", [name for name, one in SOLVERS.items() if isinstance(one, Solver)])
def test_evaluations_and_noise_are_as_the_table_says(name):
    """In the middle of a grid, where every history is there."""
    solver = SOLVERS[name]
    traits = solver.traits()
    tape = solver.tapes(karras(EDM(), 9))[5]
    assert sum(isinstance(one, Call) for one in tape.instructions) == traits.evaluations
    assert any(not isinstance(one, Call) and one.into[0] == "z" for one in tape.instructions) == traits.draws


@pytest.mark.parametrize("name", [name for name, one in SOLVERS.items() if isinstance(one, Solver)])
def test_defaults_are_allowed(name):
    for option in SOLVERS[name].allowed.values():
        assert option.check(option.default) == ""


def test_traits_follow_the_options():
    assert SOLVERS["ddim"].traits().draws is False and SOLVERS["ddim"].traits(eta=0.2).draws is True
    assert SOLVERS["unipc"].traits(order=3) == (4, 1, False, 3)
    assert SOLVERS["predictor-corrector"].traits(corrections=4).evaluations == 5
    assert SOLVERS["heun"].traits(churn=40.0).draws is True
    assert SOLVERS["dopri5"].traits() == (5, 6, False, 1)


def test_the_fewest_steps_are_enough():
    for solver in SOLVERS.values():
        if isinstance(solver, Solver):
            assert len(solver.tapes(karras(EDM(), solver.traits().minimal))) == solver.traits().minimal


def test_options_are_checked():
    assert Between(1.0, 0.0, 2.0).check(2) == "" and Between(2, 1, 3, whole=True).check(3) == ""
    assert Between(1.0, 0.0, 2.0).check(2.1) == "choose from 0 to 2"
    for wrong in (True, "1", None, math.nan):
        assert Between(1.0, 0.0, 2.0).check(wrong)
    assert Between(2, 1, 3, whole=True).check(2.0) == "choose a whole number from 1 to 3"
    assert OneOf(("a", "b")).check("a") == "" and OneOf(("a", "b")).check("c") == "choose a or b"


def test_a_misspelt_option_gets_the_nearest():
    with pytest.raises(UserError, match=r"sampler\.chrun: 'heun' has no such option; did you mean 'churn'"):
        SOLVERS["heun"].traits(chrun=1.0)
    with pytest.raises(UserError, match="it has no options"):
        SOLVERS["dpmpp-2m"].traits(eta=1.0)
