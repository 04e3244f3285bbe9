"""Formal vectors and what is made of them."""

from __future__ import annotations

import pytest
import torch

from unveil.gaussian.level import Level
from unveil.gaussian.tape import Call, Combination, Let, Raw, Recorder, Tape, evaluate, fuse, merge

X, Y = Combination({"x": 1.0}), Combination({"y": 1.0})


def test_arithmetic_is_that_of_vectors():
    vectors = {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor([-3.0, 0.5])}
    formal = 2.0 * (X + Y / 4.0) - (Y - X) * 3.0
    x, y = vectors["x"], vectors["y"]
    torch.testing.assert_close(evaluate(formal.frozen(), vectors), 2.0 * (x + y / 4.0) - (y - x) * 3.0)


def test_what_cancels_costs_no_pass_and_a_factor_of_1_comes_first():
    assert (X + Y - X).frozen() == (("y", 1.0),)
    assert (X * 2.0 + Y * (0.1 * 10.0)).frozen()[0] == ("y", 1.0)
    assert (X * ((1.0 / 3.0) * 3.0 * (1.0 + 2.0**-52))).frozen() == (("x", 1.0),)
    assert (X * (1.0 + 1e-14)).frozen() != (("x", 1.0),)


def test_evaluate_writes_to_nobody():
    x, y = torch.ones(3), torch.ones(3)
    for terms in ((("x", 1.0), ("y", 2.0)), (("x", 3.0), ("y", 2.0)), (("x", torch.tensor(3.0)), ("y", torch.tensor(2.0)))):
        assert evaluate(terms, {"x": x, "y": y}).data_ptr() not in (x.data_ptr(), y.data_ptr())
        assert (x == 1).all() and (y == 1).all()
    assert evaluate((("x", 1.0),), {"x": x}) is x


def recorded():
    """Two calls, the second at a settled state, of which the first answer is kept."""
    recorder = Recorder()
    first = recorder.denoise(X, Level(1.0, 2.0))
    middle = recorder.settle(X * 0.5 + first * 0.5)
    second = recorder.denoise(middle, Level(1.0, 1.0))
    recorder.keep(first)
    return recorder.tape(middle + second * 0.25 + recorder.noise() * 0.1)


def play(tape, x, network, coefficients=None):
    vectors = {"x": x, "z0": torch.full_like(x, 7.0)}
    for one in tape.instructions:
        if isinstance(one, Call):
            skip, out, into, _ = coefficients(one.level)
            at = evaluate(one.at, vectors)
            vectors[one.into] = skip * at + out * network(into * at)
        elif isinstance(one, Raw):
            vectors[one.into] = network(evaluate(one.at, vectors))
        elif isinstance(one, Let):
            vectors[one.into] = evaluate(one.terms, vectors)
    return evaluate(tape.result, vectors), vectors[tape.keeps[0]], evaluate(tape.denoised, vectors)


def test_a_fused_tape_is_the_same_step():
    def coefficients(level):
        return 0.3 / level.sigma, 0.7 * level.sigma, 1.5, 9.0

    tape, x = recorded(), torch.linspace(-1.0, 1.0, 5, dtype=torch.float64)
    fused = fuse(tape, coefficients)
    assert [type(one) for one in fused.instructions] == [Raw, Let, Let, Raw, type(tape.instructions[-1])]
    for one, two in zip(play(fused, x, torch.tanh), play(tape, x, torch.tanh, coefficients), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-14, atol=1e-14)


def test_merged_tapes_have_a_number_per_row():
    one, two = recorded(), recorded()
    scaled = Tape(two.instructions, tuple((name, value * 3.0) for name, value in two.result), two.keeps, two.denoised)
    assert one.form == scaled.form
    merged = merge([one, scaled], lambda numbers: torch.tensor(numbers)[:, None])
    assert {name: value.flatten().tolist() for name, value in merged.result} == {
        name: pytest.approx([value, 3.0 * value]) for name, value in one.result
    }
    call = merged.instructions[0]
    assert isinstance(call, Call) and call.level.sigma.tolist() == [2.0, 2.0]


def test_forms_tell_different_steps_apart():
    recorder = Recorder()
    other = recorder.tape(recorder.denoise(X, Level(1.0, 1.0)))
    assert other.form != recorded().form
