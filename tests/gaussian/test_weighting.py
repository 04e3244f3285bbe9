from __future__ import annotations

import math

import pytest
import torch

from unveil.errors import UserError
from unveil.gaussian import weighting
from unveil.gaussian.bound import step_nats, variances
from unveil.gaussian.density import LogitNormal, LogNormal, LogUniform, UniformTime, UShaped
from unveil.gaussian.output import to_output
from unveil.gaussian.path import DDPM, EDM, VE, VP, Cosine, RectifiedFlow, SubVP, Trigonometric
from unveil.gaussian.weighting import P2, WEIGHTINGS, Corrected, EDMWeight, Likelihood, MinSNR, SoftMinSNR, Uncertainty

N = torch.logspace(-2, 2, 13, dtype=torch.float64)


def error_of(output, path, n):
    """Squared error of an output over that of D, for two images at one x_t."""
    t = path.time(n)
    rng = torch.Generator().manual_seed(0)
    x, a, b = (torch.randn(len(n), 3, generator=rng, dtype=torch.float64) for _ in range(3))
    difference = to_output(output, x, a, path, t) - to_output(output, x, b, path, t)
    return difference.square().sum(1) / (a - b).square().sum(1)


@pytest.mark.parametrize(
    ("weight", "output", "path"),
    [
        (weighting.simple, "eps", VP()),
        (weighting.simple, "eps", EDM()),
        (weighting.x0, "x0", RectifiedFlow()),
        (weighting.v, "v", VP()),
        (weighting.v, "v", Trigonometric()),
        (weighting.flow, "flow", RectifiedFlow()),
        (EDMWeight(0.5), "F", EDM()),
        (EDMWeight(0.5), "F", VP()),
    ],
)
def test_a_weight_is_the_squared_error_of_what_is_predicted(weight, output, path):
    torch.testing.assert_close(weight(N), error_of(output, path, N), rtol=1e-9, atol=0)


def test_weights_in_the_units_of_their_papers():
    snr = N**-2
    torch.testing.assert_close(MinSNR(5.0)(N) / weighting.simple(N), torch.clamp(5 / snr, max=1.0))  # of eps
    torch.testing.assert_close(MinSNR(5.0)(N) / weighting.v(N), snr.clamp(max=5.0) / (snr + 1))  # of v
    sd = 0.5
    of_f = (N * sd) ** 2 / (N**2 + sd**2) ** 2
    torch.testing.assert_close(SoftMinSNR(sd)(N) / EDMWeight(sd)(N), of_f)
    torch.testing.assert_close(P2(0.5, 1.0)(N) / weighting.simple(N), 1 / (1 + snr) ** 0.5)
    torch.testing.assert_close(EDMWeight(1.0)(N), weighting.v(N))


@pytest.mark.parametrize("path", [VP(), SubVP(), VE(), EDM(), RectifiedFlow(), Cosine(), Trigonometric()], ids=repr)
def test_likelihood_weighting_is_the_fall_of_the_signal_to_noise_ratio(path):
    t = torch.linspace(path.t_min, path.t_max, 9, dtype=torch.float64)[1:-1]
    h = 1e-6 * (path.t_max - path.t_min)
    fall = -(path.n(t + h) ** -2 - path.n(t - h) ** -2) / (2 * h)
    torch.testing.assert_close(Likelihood(path)(path.n(t)), 0.5 * fall, rtol=1e-6, atol=0)


@pytest.mark.parametrize("path", [VP(), SubVP(), VE(), RectifiedFlow(), Trigonometric()], ids=repr)
def test_only_the_product_of_weight_and_density_matters(path):
    """Likelihood weighting with uniform times is 1 / n^2 over log n under every path: the paths differ in the variance alone."""
    n = torch.logspace(-1, 1, 7, dtype=torch.float64)
    product = Likelihood(path)(n) * UniformTime(path).pdf(n.log()) * (path.t_max - path.t_min)
    torch.testing.assert_close(product, n**-2, rtol=1e-9, atol=0)


def test_every_density_gives_the_same_expectation_once_corrected():
    """The integral of w(n) E(n) p(log n) for a smooth error, wanted under one density and drawn from others."""
    path = RectifiedFlow(t_min=1e-4, t_max=1 - 1e-4)
    wanted = UniformTime(path)
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000

    def error(n):
        return (0.25 * n**2 / (n**2 + 0.25)) ** 2

    truth = (EDMWeight()(wanted.log_n(u).exp()) * error(wanted.log_n(u).exp())).mean()
    for drawn in [LogitNormal(path, 0.0, 1.5), UShaped(path), LogUniform(path.n(path.t_min), path.n(path.t_max)), LogNormal(0.0, 2.0)]:
        n = drawn.log_n(u).exp()
        torch.testing.assert_close((Corrected(EDMWeight(), wanted, drawn)(n) * error(n)).mean(), truth, rtol=2e-3, atol=0)
    uncorrected = LogNormal(0.0, 2.0).log_n(u).exp()
    assert abs((EDMWeight()(uncorrected) * error(uncorrected)).mean() - truth) > 0.01 * truth


def test_the_bound_is_t_times_the_term_of_each_step():
    path = DDPM("linear", steps=50)
    index = torch.arange(50)
    x0, denoised = torch.zeros(50, 4, dtype=torch.float64), torch.full((50, 4), 0.1, dtype=torch.float64)
    small = variances(path)[0].log()[:, None]
    terms = step_nats(path, x0, denoised, index, small).sum(1)
    weights = WEIGHTINGS["vlb"](path, 0.5)(path.n(index)) * 0.04
    torch.testing.assert_close(weights[1:], 50 * terms[1:], rtol=1e-9, atol=0)
    # the decoder as a density: without its constant
    torch.testing.assert_close(weights[0], 50 * 0.04 * 0.5 / variances(path)[0][0])
    with pytest.raises(UserError, match="vlb"):
        WEIGHTINGS["vlb"](VP(), 0.5)


@pytest.mark.parametrize(("kind", "weight"), [("vp", weighting.simple), ("ve", weighting.simple), ("edm", EDMWeight(0.5))])
def test_golden_weights(golden, kind, weight):
    arrays, _ = golden("edm_losses")
    torch.testing.assert_close(weight(arrays[f"outputs.{kind}.sigma"]), arrays[f"outputs.{kind}.weight"], rtol=1e-10, atol=0)


def test_weights_without_any_signal():
    """At n = inf, the first step of a table without terminal signal."""
    n = torch.tensor([math.inf], dtype=torch.float64)
    for name, expected in {"simple": 0.0, "x0": 1.0, "v": 1.0, "flow": 1.0, "edm": 4.0, "min-snr": 0.0, "soft-min-snr": 0.0}.items():
        assert WEIGHTINGS[name](EDM(), 0.5)(n).item() == expected


def test_uncertainty_begins_as_the_plain_loss_and_learns_its_logarithm():
    torch.manual_seed(0)
    u = Uncertainty(64)
    log_n = torch.linspace(-4, 3, 64, dtype=torch.float64)
    assert (u(log_n) == 0).all()
    loss = torch.exp(0.7 * log_n - 1.0).float()  # of each noise level
    optimiser = torch.optim.Adam(u.parameters(), lr=0.02)
    for _ in range(800):
        optimiser.zero_grad()
        (loss * torch.exp(-u(log_n)) + u(log_n)).mean().backward()
        optimiser.step()
    torch.testing.assert_close(u(log_n).detach(), loss.log(), rtol=0, atol=0.15)
