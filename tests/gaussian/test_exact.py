from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import distributions

from unveil.gaussian.exact import Gaussian, Mixture
from unveil.gaussian.level import Level
from unveil.gaussian.path import DDPM, VE, VP, RectifiedFlow, SubVP

GENERATOR = torch.Generator()


@pytest.fixture(autouse=True)
def seeded():
    GENERATOR.manual_seed(7)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR)


def covariance(dims, count=()):
    root = normal(*count, dims, dims)
    return root @ root.mT / dims + 0.05 * torch.eye(dims, dtype=torch.float64)


@pytest.fixture
def full():
    """Three components in four dimensions, each with a covariance of its own, as images of 1 x 2 x 2."""
    return [0.2, 0.5, 0.3], normal(3, 1, 2, 2), covariance(4, (3,))


LEVELS = Level(torch.tensor([1.0, 0.9, 0.5, 0.1, 0.0], dtype=torch.float64), torch.tensor([0.01, 0.3, 1.5, 1.0, 1.0], dtype=torch.float64))


def plain_marginal(weights, means, covariances, alpha, sigma):
    """p_t by torch's own distributions."""
    flat = means.flatten(1)
    noisy = alpha**2 * covariances + sigma**2 * torch.eye(flat.shape[1], dtype=torch.float64)
    components = distributions.MultivariateNormal(alpha * flat, noisy)
    return distributions.MixtureSameFamily(distributions.Categorical(torch.tensor(weights, dtype=torch.float64)), components)


def test_log_density_is_that_of_the_noised_components(full):
    mixture, x = Mixture(*full), normal(5, 1, 2, 2)
    expected = [plain_marginal(*full, float(a), float(s)).log_prob(x[i].flatten()) for i, (a, s) in enumerate(zip(*LEVELS, strict=True))]
    torch.testing.assert_close(mixture.log_density(x, LEVELS), torch.stack(expected), rtol=1e-11, atol=1e-11)


def test_score_is_the_gradient_of_log_density(full):
    mixture, x = Mixture(*full), normal(5, 1, 2, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_density(x, LEVELS).sum(), x)
    torch.testing.assert_close(mixture.score(x.detach(), LEVELS), gradient, rtol=1e-10, atol=1e-10)


def test_denoiser_is_tweedies(full):
    """alpha D = x + sigma^2 score, for the density of torch's own distributions."""
    mixture, x = Mixture(*full), normal(4, 1, 2, 2)
    level = Level(*(value[:4] for value in LEVELS))
    for i in range(4):
        alpha, sigma = (float(value[i]) for value in level)
        at = x[i].flatten().requires_grad_()
        (score,) = torch.autograd.grad(plain_marginal(*full, alpha, sigma).log_prob(at), at)
        denoised = mixture.denoise(x, level)[i].flatten()
        torch.testing.assert_close(alpha * denoised, (at + sigma**2 * score).detach(), rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(mixture.denoise(x[i : i + 1], Level(alpha, sigma))[0].flatten(), denoised, rtol=1e-14, atol=0)


def test_denoiser_of_one_gaussian():
    """G1: D(y; n) = m + C (C + n^2)^-1 (y - m), by a linear solve."""
    mean, cov, y = normal(3), covariance(3), normal(6, 3)
    for n in (1e-3, 0.4, 80.0):
        solved = torch.linalg.solve(cov + n**2 * torch.eye(3, dtype=torch.float64), (y - mean).T)
        torch.testing.assert_close(Gaussian(mean, cov).denoise(y, n), mean + (cov @ solved).T, rtol=1e-11, atol=1e-12)


def test_monte_carlo_agrees():
    """E[x0 | x_t = x] by reweighing two million draws of the data: no formula of the module but ``sample``."""
    mixture = Mixture([0.4, 0.6], [[-1.0], [0.8]], [0.1, 0.3])
    data, x, level = mixture.sample(2_000_000, seed=3), torch.tensor([[0.2]]).double(), Level(0.8, 0.6)
    weight = torch.exp(-0.5 * ((x - level.alpha * data) / level.sigma).square())
    estimate = (weight * data).mean() / weight.mean()
    error = (weight * (data - estimate)).std() / weight.mean() / math.sqrt(len(data))
    assert abs(float(mixture.denoise(x, level) - estimate)) < 4 * float(error) < 0.005


def test_at_alpha_0_nothing_is_known_but_the_mean(full):
    weights, means, _ = full
    mean = (torch.tensor(weights, dtype=torch.float64)[:, None, None, None] * means).sum(0)
    denoised = Mixture(*full).denoise(10 * normal(2, 1, 2, 2), Level(0.0, 1.0))
    torch.testing.assert_close(denoised, mean.expand(2, -1, -1, -1), rtol=1e-12, atol=1e-12)


def test_without_noise_nothing_is_hidden(full):
    x = normal(5, 1, 2, 2)
    torch.testing.assert_close(Mixture(*full).denoise(x, Level(0.5, 0.0)), x / 0.5, rtol=1e-11, atol=1e-11)


def test_a_finite_data_set_is_a_mixture_of_points():
    """The optimal denoiser of a data set is its softmax average; near the data it is the nearest picture."""
    data, y, n = normal(7, 2, 3), normal(4, 2, 3), 0.6
    empirical = Mixture(torch.ones(7), data, 0.0)
    distance = (y[:, None] - data).flatten(2).square().sum(2)
    share = torch.softmax(-distance / (2 * n**2), 1)
    torch.testing.assert_close(empirical.denoise(y, n), torch.einsum("bk,kij->bij", share, data), rtol=1e-13, atol=1e-13)
    assert torch.equal(empirical.denoise(y, 0.01), data[distance.argmin(1)])
    assert {tuple(row.flatten().tolist()) for row in empirical.sample(50)} <= {tuple(row.flatten().tolist()) for row in data}


def test_every_form_of_covariance_is_one():
    weights, means, x = [0.3, 0.7], normal(2, 2, 3), normal(5, 2, 3)
    diagonal = torch.rand(2, 2, 3, dtype=torch.float64, generator=GENERATOR) + 0.1
    pairs = [
        (0.3, [0.3, 0.3]),
        ([0.3, 0.5], torch.tensor([0.3, 0.5], dtype=torch.float64)[:, None, None].expand(2, 2, 3)),
        (diagonal, torch.diag_embed(diagonal.flatten(1))),
    ]
    for left, right in pairs:
        one, other = Mixture(weights, means, left), Mixture(weights, means, right)
        for method in ("denoise", "score", "log_density"):
            torch.testing.assert_close(getattr(one, method)(x, LEVELS), getattr(other, method)(x, LEVELS), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 2, 2), (2, 1, 2, 2)])
def test_any_shape_of_data(shape):
    mixture = Mixture([1.0, 3.0], normal(2, *shape), [0.1, 0.2])
    data = mixture.sample(6)
    assert data.shape == (6, *shape) and data.dtype == torch.float64
    assert mixture.denoise(data, 0.5).shape == mixture.score(data, 0.5).shape == data.shape and mixture.log_density(data, 0.5).shape == (6,)
    assert mixture.denoise(data.float(), 0.5).dtype == torch.float32


def test_denoiser_is_what_a_solver_takes(full):
    x = normal(5, 1, 2, 2)
    assert torch.equal(Mixture(*full).denoiser()(x, LEVELS, classes=None), Mixture(*full).denoise(x, LEVELS))


def test_draws_have_the_moments_of_the_mixture(full):
    weights, means, covariances = full
    state = torch.get_rng_state()
    draws = Mixture(*full).sample(200_000, seed=5).flatten(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(Mixture(*full).sample(9, seed=5), Mixture(*full).sample(9, seed=5))
    share, flat = torch.tensor(weights, dtype=torch.float64), means.flatten(1)
    mean = share @ flat
    spread = torch.einsum("k,kij->ij", share, covariances) + torch.einsum("k,ki,kj->ij", share, flat - mean, flat - mean)
    assert bool(((draws.mean(0) - mean).abs() < 4.5 * (spread.diagonal() / 200_000).sqrt()).all())
    torch.testing.assert_close(draws.T.cov(), spread, rtol=0, atol=0.02 * float(spread.abs().max()))


def test_flow_map_of_a_gaussian():
    """G1: m + (C + n^2)^(1/2) (C + n0^2)^(-1/2) (y - m), by matrix square roots; there and back again is nothing."""
    mean, cov, y = normal(3), covariance(3), normal(4, 3)

    def root(matrix):
        values, vectors = torch.linalg.eigh(matrix)
        return vectors @ torch.diag(values.sqrt()) @ vectors.T

    eye = torch.eye(3, dtype=torch.float64)
    expected = mean + (y - mean) @ (root(cov + 0.2**2 * eye) @ torch.linalg.inv(root(cov + 9.0**2 * eye))).T
    gaussian = Gaussian(mean, cov)
    torch.testing.assert_close(gaussian.flow_map(y, 9.0, 0.2), expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(gaussian.flow_map(expected, 0.2, 9.0), y, rtol=1e-11, atol=1e-11)


def test_flow_map_of_rectified_flow_in_one_dimension():
    """G1: N(0, 1) goes to N(mu, s^2) by mu + s z, the monotone map, from alpha = 0 on."""
    z = normal(5, 1)
    torch.testing.assert_close(Gaussian([0.7], 0.09).flow_map(z, Level(0.0, 1.0), Level(1.0, 0.0)), 0.7 + 0.3 * z, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    "arguments",
    [
        ([0.5, 0.6, 0.1], torch.zeros(2, 3), 1.0),
        ([-0.5, 1.5], torch.zeros(2, 3), 1.0),
        ([0.0, 0.0], torch.zeros(2, 3), 1.0),
        ([0.5, 0.5], torch.zeros(2, 3), -1.0),
        ([0.5, 0.5], torch.zeros(2, 3), torch.ones(2, 2)),
        ([0.5, 0.5], torch.zeros(2, 2), torch.tensor([[[1.0, 2.0], [2.0, 1.0]]] * 2)),
        ([0.5, 0.5], torch.zeros(2, 2), torch.tensor([[[1.0, 0.5], [0.0, 1.0]]] * 2)),
    ],
)
def test_what_is_no_mixture_is_refused(arguments):
    with pytest.raises(ValueError, match=r"weights|covariance"):
        Mixture(*arguments)


@pytest.mark.parametrize("kind", ["vp", "ve", "edm"])
def test_golden_mixture_denoiser(golden, kind):
    """EDM's losses under an analytic mixture: weight (D - y)^2 elementwise."""
    arrays, _ = golden("edm_losses")
    mixture = Mixture(arrays["inputs.mixture_weights"], arrays["inputs.mixture_means"][..., None, None], arrays["inputs.mixture_std"] ** 2)
    n, noised = arrays[f"outputs.{kind}.sigma"], arrays[f"outputs.{kind}.noised"]
    residual = mixture.denoise(noised, n.flatten()) - arrays["inputs.images"]
    torch.testing.assert_close(arrays[f"outputs.{kind}.weight"] * residual.square(), arrays[f"outputs.{kind}.loss"], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("name", "path"), [("vp", VP()), ("subvp", SubVP()), ("ve", VE())])
def test_golden_score_and_density(golden, name, path):
    """Song's score of a Gaussian data set, and the bits per dimension of its true density at t = 1e-5: 7 = log2(256) - 1 of them are
    the offset of data in [-1, 1]. The reference's own likelihood ends in a standard prior and is up to 0.02 bits off."""
    arrays, config = golden("score_sde")
    gaussian = Gaussian(arrays["inputs.data_mean"][0], arrays["inputs.data_std"][0].square())
    x = arrays["inputs.x"]
    torch.testing.assert_close(gaussian.score(x, path.level(arrays["inputs.t"])), arrays[f"outputs.{name}.score"], rtol=1e-10, atol=1e-10)
    log_density = gaussian.log_density(0.3 * x, path.level(config["likelihood"]["eps"]))
    bits = -log_density / (x[0].numel() * math.log(2)) + 7
    torch.testing.assert_close(bits, arrays[f"outputs.{name}.bpd_exact"], rtol=1e-10, atol=1e-10)


def test_golden_ddim_network(golden):
    """ermongroup's steps were run with the exact eps of a Gaussian: its predictions of the image are our denoiser's."""
    arrays, config = golden("ddim")
    gaussian = Gaussian(arrays["inputs.data_mean"][0], arrays["inputs.data_std"][0].square())
    path = DDPM("linear", config["T"])
    for i, step in enumerate(reversed(arrays["outputs.seq.uniform"].tolist())):
        denoised = gaussian.denoise(arrays["outputs.uniform.eta1.0.x"][i], path.level(float(step)))
        torch.testing.assert_close(denoised, arrays["outputs.uniform.eta1.0.x0"][i], rtol=1e-10, atol=1e-10)


def test_golden_rectified_flow_map(golden):
    """The exact map from pure noise, and from the reference's start at t = 1e-3 of its time; its RK45 comes within 1e-4 of the latter."""
    arrays, config = golden("rectified_flow")
    gaussian = Gaussian(arrays["inputs.data_mean"][0], arrays["inputs.data_std"][0].square())
    path, z = RectifiedFlow(), arrays["inputs.z0"]
    data = Level(1.0, 0.0)
    np.testing.assert_allclose(gaussian.flow_map(z, path.level(1.0), data), arrays["outputs.exact_map"], rtol=1e-10, atol=1e-10)
    late = gaussian.flow_map(z, path.level(1 - config["eps"]), data)
    np.testing.assert_allclose(late, arrays["outputs.exact_map_from_eps"], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(late, arrays["outputs.ode_rk45.x"], atol=1e-4)
