"""Guidance as a linear combination of two denoisers, inside its interval and for each row."""

from __future__ import annotations

import math

import pytest
import torch

from unveil.errors import UserError
from unveil.gaussian.denoiser import Denoiser
from unveil.gaussian.grid import karras
from unveil.gaussian.guidance import Guided, classifier_free
from unveil.gaussian.level import Level
from unveil.gaussian.path import EDM, VP
from unveil.gaussian.solvers import dpmpp_2m, heun

NULL = 3


def conditional(x, level, classes, text=None):
    """D = the class's number, and 10 times as much where a text is given."""
    value = classes.to(x) * (1.0 if text is None else 1.0 + 9.0 * text[:, 0].to(x))
    return value.reshape(-1, 1).expand_as(x) + 0.0 * x


X = torch.zeros(3, 2, dtype=torch.float64)
CLASSES = torch.tensor([0, 1, 2])


def test_classifier_free_guidance_in_closed_form():
    for weight in (0.0, 1.0, 2.5):
        found = classifier_free(conditional, weight, {"classes": NULL})(X, Level(1.0, 1.0), classes=CLASSES)
        expected = NULL + weight * (CLASSES - NULL)
        torch.testing.assert_close(found[:, 0], expected.double())


def test_the_interval_is_open_below_and_closed_above():
    guided = classifier_free(conditional, 2.0, {"classes": NULL}, (0.5, 1.0))
    for n, inside in ((0.4, False), (0.5, False), (0.6, True), (1.0, True), (1.1, False)):
        found = guided(X, Level(0.5, 0.5 * n), classes=CLASSES)[:, 0]
        torch.testing.assert_close(found, (NULL + 2.0 * (CLASSES - NULL) if inside else CLASSES).double())


def test_rows_at_different_levels_are_guided_by_their_own():
    guided = classifier_free(conditional, 2.0, {"classes": NULL}, (0.5, 1.0))
    levels = Level(torch.ones(3), torch.tensor([0.5, 1.0, 1.2]))  # open below, closed above
    assert guided(X, levels, classes=CLASSES)[:, 0].tolist() == [0.0, -1.0, 2.0]


def test_outside_the_interval_and_at_weight_1_the_guide_is_not_asked():
    def refuse(x, level, **condition):
        raise AssertionError("asked")

    inside = Level(1.0, 0.7)
    assert Guided(conditional, refuse, 1.0)(X, inside, classes=CLASSES)[1, 0] == 1
    assert Guided(conditional, refuse, 2.0, (1.0, 2.0))(X, inside, classes=CLASSES)[1, 0] == 1
    rows = Level(torch.ones(3), torch.full((3,), 0.7))
    assert Guided(conditional, refuse, 2.0, (1.0, 2.0))(X, rows, classes=CLASSES)[1, 0] == 1
    with pytest.raises(AssertionError, match="asked"):
        Guided(conditional, refuse, 2.0)(X, inside, classes=CLASSES)


def test_only_what_null_names_is_left_out():
    text = torch.tensor([[1.0], [0.0], [1.0]])
    both = {"classes": CLASSES, "text": text}
    found = classifier_free(conditional, 0.0, {"text": torch.zeros(1)})(X, Level(1.0, 1.0), **both)
    assert found[:, 0].tolist() == [0.0, 1.0, 2.0]
    found = classifier_free(conditional, 0.0, {"classes": NULL})(X, Level(1.0, 1.0), **both)
    assert found[:, 0].tolist() == [30.0, 3.0, 30.0]


def test_autoguidance_leaves_the_worse_network():
    guided = Guided(lambda x, level: x + 1.0, lambda x, level: x, 1.5)
    torch.testing.assert_close(guided(X, Level(1.0, 1.0)), X + 1.5)


def test_guidance_commutes_with_the_linear_map_of_the_output():
    """On eps as on D."""
    path, weight, level = VP(), 2.0, VP().level(0.4)
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def network(x, t, classes):
        return torch.tanh(x + classes[:, None])

    guided = classifier_free(Denoiser(network, "eps", path), weight, {"classes": NULL})(x, level, classes=CLASSES)
    outputs = [network(x, None, c) for c in (CLASSES, torch.full((3,), NULL))]
    eps = outputs[1] + weight * (outputs[0] - outputs[1])
    torch.testing.assert_close(guided, (x - level.sigma * eps) / level.alpha, rtol=1e-10, atol=1e-10)


def test_it_samples_with_any_solver():
    """Everything the guide says is left behind: with D the class and weight 2, samples end at 2 class - null."""
    guided = classifier_free(conditional, 2.0, {"classes": NULL})
    for solver in (heun, dpmpp_2m):
        found = solver(guided, karras(EDM(), 6), (3, 2), range(3), condition={"classes": CLASSES})
        assert found[:, 0].tolist() == pytest.approx([-3.0, -1.0, 1.0], abs=1e-4)


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"sampler\.guidance: the model is unconditional"):
        classifier_free(conditional, 2.0, {})
    with pytest.raises(UserError, match=r"sampler\.guidance: got no classes to guide towards"):
        classifier_free(lambda x, level, **given: x, 2.0, {"classes": NULL})(X, Level(1.0, 1.0))
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(UserError, match=r"sampler\.guidance: got"):
            classifier_free(conditional, weight, {"classes": NULL})
    with pytest.raises(UserError, match=r"sampler\.guidance_interval: got 2 to 1"):
        classifier_free(conditional, 2.0, {"classes": NULL}, (2.0, 1.0))
