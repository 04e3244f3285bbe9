from __future__ import annotations

import math

import pytest
import torch

from unveil.errors import UserError
from unveil.gaussian import weighting
from unveil.gaussian.coupling import Pairs, transport_cost
from unveil.gaussian.denoiser import Denoiser
from unveil.gaussian.exact import Gaussian, Mixture
from unveil.gaussian.objective import GaussianObjective
from unveil.gaussian.output import to_output
from unveil.gaussian.path import VP, RectifiedFlow
from unveil.gaussian.rectified import distillation, reflow_pairs, transport


def normals(count, *shape):
    """Equal steps of probability in one dimension, else drawn."""
    if not shape:
        return torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)[:, None]
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("s", [0.5, 1.0, 2.0])
def test_straightness_of_two_normal_distributions_in_closed_form(s):
    """N(0, 1) to N(mu, s^2), independent: S = s (2 - pi / 2), and the flow map is mu + s z."""
    noise = normals(20_000)
    found = transport(Gaussian([0.7], s**2).denoiser(), noise, steps=100)
    assert found.straightness_B.mean().item() == pytest.approx(s * (2 - math.pi / 2), rel=2e-3)
    torch.testing.assert_close(found.data, 0.7 + s * noise, rtol=2e-4, atol=2e-4)


def test_straightness_of_a_flow_that_begins_within():
    """From n = 1 (t = 1/2) on unit normal data x_t = c r(t), r^2 = (1 - t)^2 + t^2, c^2 = z^2 / 2: S is E c^2 times the
    integral of r'^2 over [0, 1/2], 1 - pi / 4, less (r(1/2) - r(0))^2 / (1/2)."""
    found = transport(Gaussian([0.0], 1.0).denoiser(), normals(20_000), n_max=1.0)
    integral = 1 - math.pi / 4
    assert found.straightness_B.mean().item() == pytest.approx(0.5 * (integral - 2 * (1 - 0.5**0.5) ** 2), rel=2e-3)


class Reflowed:
    """The flow of the coupling x0 = mu + s z in one dimension, whose lines do not cross: D of the line through x_t."""

    def __init__(self, mu, s):
        self.mu, self.s = mu, s

    def __call__(self, x, level):
        alpha, sigma = (torch.as_tensor(value, dtype=x.dtype).reshape(-1, 1) for value in level)
        return self.mu + self.s * (x - alpha * self.mu) / (alpha * self.s + sigma)


def test_a_reflowed_flow_is_straight_and_one_euler_step_is_exact():
    """One step of the first flow gives the mean, of the second everything; and the loss on its own pairs is 0."""
    noise, first, second = normals(400), Gaussian([0.7], 4.0).denoiser(), Reflowed(0.7, 2.0)
    pairs = reflow_pairs(first, noise, steps=400)
    again = transport(second, noise, steps=3)
    assert again.straightness_B.max() < 1e-20
    torch.testing.assert_close(again.data, pairs.data, rtol=0, atol=1e-4)
    from_noise = RectifiedFlow().level(1.0)
    torch.testing.assert_close(first(noise, from_noise), torch.full_like(noise, 0.7))
    torch.testing.assert_close(second(noise, from_noise), pairs.data, rtol=0, atol=1e-4)
    for k in (1, 4):
        objective = distillation(k)
        batch = {"u": torch.remainder(torch.arange(400.0) * 0.618, 1.0), "eps": pairs.noise}
        assert objective.loss(second, pairs.data, batch)["loss"].sum < 1e-4
        assert objective.loss(first, pairs.data, batch)["loss"].sum > 10


def test_reflow_by_regression_straightens_and_transport_costs_fall():
    """Two modes in two dimensions, twice reflowed with the exact conditional mean of a finite set of pairs: a mixture over the pairs.

    Straightness falls with each reflow, and the cost of the coupling never rises (Liu et al. 2023).
    """
    data = Mixture([0.5, 0.5], [[-1.5, 0.5], [1.5, 0.5]], 0.09)
    noise = normals(600, 2)
    first = transport(data.denoiser(), noise, steps=60)
    independent = transport_cost(data.sample(600, seed=5), noise).mean()
    couplings, flows = [Pairs(noise, first.data)], [first]
    for _ in range(2):
        pairs = couplings[-1]

        def student(x, level, pairs=pairs):
            # E[x0 given x_t] over the pairs, their lines smoothed by a kernel
            places = level.alpha * pairs.data + level.sigma * pairs.noise
            share = (-0.5 * torch.cdist(x, places).square() / 0.1**2).softmax(1)
            velocity = share @ (pairs.noise - pairs.data)
            return x - level.sigma * velocity

        flows.append(transport(student, noise, steps=60))
        couplings.append(Pairs(noise, flows[-1].data))
    straightness = [flow.straightness_B.mean().item() for flow in flows]
    costs = [transport_cost(pairs.data, pairs.noise).mean().item() for pairs in couplings]
    assert straightness[1] < 0.5 * straightness[0]
    assert costs[0] < independent
    assert costs[1] <= costs[0] * 1.001 and costs[2] <= costs[1] * 1.001


def test_golden_pairs(golden):
    """The exact map of a diagonal normal distribution. The reference's own Euler pairs are off: ten steps, and its times are 1e-3
    away from its states."""
    arrays, _ = golden("rectified_flow")
    denoiser = Gaussian(arrays["inputs.data_mean"][0], arrays["inputs.data_std"][0].square()).denoiser()
    pairs = reflow_pairs(denoiser, arrays["inputs.z0"], steps=2000)
    torch.testing.assert_close(pairs.data, arrays["outputs.exact_map"], rtol=0, atol=1e-6)
    assert torch.equal(pairs.noise, arrays["inputs.z0"])
    torch.testing.assert_close(pairs.data, arrays["outputs.ode_rk45.x"].double(), rtol=0, atol=2e-3)
    assert (arrays["outputs.euler_ode.x"] - arrays["outputs.exact_map"]).abs().max() > 1e-3


def test_distillation_asks_at_the_times_of_its_steps():
    """t = j / k and the squared error of the velocity, at t = 1 from noise alone."""
    seen = []

    def student(x, level):
        seen.append((level.sigma / (level.alpha + level.sigma)).tolist())
        return torch.zeros_like(x)

    x0, eps = normals(4, 3), normals(4, 3).flip(0)
    u = (torch.arange(4, dtype=torch.float64) + 0.5) / 4
    total = distillation(4).loss(student, x0, {"u": u, "eps": eps})["loss"].sum
    assert seen[0] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    torch.testing.assert_close(total, (x0.square().sum(1) / torch.tensor([0.25, 0.5, 0.75, 1.0]) ** 2).sum())
    alone = distillation(1).loss(student, x0, {"u": u, "eps": eps})["loss"].sum
    torch.testing.assert_close(alone, x0.square().sum())


def test_a_network_of_another_training_is_transported_from_its_own_noise():
    """An eps network under VP says nothing at t = 1; from n(t_max) it follows the same flow, on images in float32."""
    path, exact, noise = VP(), Gaussian([0.1, 0.1, 0.1], 0.25), normals(5, 3).float()

    def network(x, time):
        return to_output("eps", x, exact.denoise(x, path.level(time)), path, time)

    denoiser = Denoiser(network, predicts="eps", path=path)
    pairs = reflow_pairs(denoiser, noise, n_max=path.n(path.t_max))
    assert pairs.data.dtype == torch.float32
    torch.testing.assert_close(pairs.data, 0.1 + 0.5 * noise, rtol=0, atol=2e-3)
    with pytest.raises(UserError, match="alpha = 0"):
        reflow_pairs(denoiser, noise)


def test_weights_of_the_flow_are_those_of_the_objective():
    assert distillation(3).weighting is weighting.flow
    assert isinstance(distillation(3), GaussianObjective)


def test_bad_requests_are_named():
    with pytest.raises(UserError, match=r"reflow\.steps"):
        transport(lambda x, level: x, normals(2), 0)
    with pytest.raises(UserError, match=r"reflow\.n_max"):
        transport(lambda x, level: x, normals(2), n_max=0.0)
    with pytest.raises(UserError, match=r"distillation\.steps"):
        distillation(0)
