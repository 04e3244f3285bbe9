from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import log_ndtr, ndtr

from unveil.errors import UserError
from unveil.gaussian.bound import (
    bits_per_dim,
    discretised_log_prob,
    log_variance,
    prior_nats,
    step_nats,
    variances,
    variational_bound,
)
from unveil.gaussian.exact import Gaussian
from unveil.gaussian.output import along, from_output
from unveil.gaussian.path import DDPM, zero_terminal_snr

SCHEDULES = ["linear", "cosine"]


@pytest.fixture
def improved(golden):
    return golden("improved_diffusion")[0]


def pixels(*shape, seed=0):
    levels = np.random.default_rng(seed).integers(0, 256, shape)
    return torch.from_numpy(levels / 127.5 - 1.0)


def tanh_decoder(x, mean, log_std):
    """The reference's decoder: the normal distribution function by a tanh, clamped at 1e-12 (a defect that its numbers inherit)."""

    def cdf(z):
        return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3)))

    scale = torch.exp(-log_std)
    above, below = cdf((x - mean + 1 / 255) * scale), cdf((x - mean - 1 / 255) * scale)
    mass = torch.where(x < -0.999, above, torch.where(x > 0.999, 1.0 - below, above - below))
    return mass.clamp(min=1e-12).log()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_golden_variances(improved, schedule):
    path = DDPM(schedule, steps=100)
    small, large = variances(path)
    wanted = improved[f"outputs.{schedule}.posterior_log_variance_clipped"]
    torch.testing.assert_close(small.log(), wanted, rtol=0, atol=1e-10)
    betas = improved[f"outputs.betas.{schedule}_100"]
    torch.testing.assert_close(large[1:], betas[1:], rtol=0, atol=1e-10)
    assert large[0] == small[0] == small[1]


KINDS = {"FIXED_SMALL": "small", "FIXED_LARGE": "large", "LEARNED_RANGE": "learned"}


def denoised_of(improved, schedule, mean, path, t):
    """D of the reference's network output, for each of its mean types."""
    output, x_t = improved["inputs.model_output"], improved[f"outputs.{schedule}.x_t"]
    if mean == "PREVIOUS_X":
        first, second = (improved[f"outputs.{schedule}.posterior_mean_coef{i}"][t] for i in (1, 2))
        return (output - along(second, x_t) * x_t) / along(first, x_t)
    return from_output({"EPSILON": "eps", "START_X": "x0"}[mean], x_t, output, path, t)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("mean", "kind", "clip"),
    [("EPSILON", kind, clip) for kind in KINDS for clip in (0, 1)]
    + [("START_X", kind, clip) for kind in ("FIXED_SMALL", "LEARNED_RANGE") for clip in (0, 1)]
    # with clipping the reference clips D there and leaves the mean as it was: not the term of any D
    + [("PREVIOUS_X", kind, 0) for kind in ("FIXED_SMALL", "LEARNED_RANGE")],
)
def test_golden_terms(improved, schedule, mean, kind, clip):
    """KL terms to 1e-10. Step 0 with their tanh in place of the distribution function; the exact one is another number."""
    path, t, x0 = DDPM(schedule, steps=100), improved["inputs.t"], improved["inputs.x_start"]
    denoised = denoised_of(improved, schedule, mean, path, t)
    denoised = denoised.clamp(-1, 1) if clip else denoised
    share = (improved["inputs.var_values"] + 1) / 2 if kind == "LEARNED_RANGE" else None
    log_variances = log_variance(path, t, KINDS[kind], share, x0)
    name = f"outputs.{schedule}.{mean}.{kind}.clip{clip}"
    wanted = improved[f"outputs.{schedule}.{mean}.{kind}.clip0.log_variance"]
    torch.testing.assert_close(log_variances.expand_as(x0), wanted, rtol=0, atol=1e-10)
    torch.testing.assert_close(denoised, improved[f"{name}.pred_xstart"], rtol=1e-9, atol=1e-10)

    bits, wanted = bits_per_dim(step_nats(path, x0, denoised, t, log_variances)), improved[f"{name}.vb_bpd"]
    torch.testing.assert_close(bits[t > 0], wanted[t > 0], rtol=1e-9, atol=1e-10)
    twin = bits_per_dim(-tanh_decoder(x0, denoised, 0.5 * log_variances.expand_as(x0)))
    torch.testing.assert_close(twin[t == 0], wanted[t == 0], rtol=1e-9, atol=1e-10)
    assert (t == 0).any()
    assert (bits[t == 0] != wanted[t == 0]).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_golden_prior(improved, schedule):
    bits = bits_per_dim(prior_nats(DDPM(schedule, steps=100), improved["inputs.x_start"]))
    torch.testing.assert_close(bits, improved[f"outputs.{schedule}.prior_bpd"], rtol=0, atol=1e-10)


def test_golden_discretised_normal(improved):
    x, mean, log_std = (improved[f"inputs.dgll.{name}"] for name in ("x", "means", "log_scales"))
    ours, exact = discretised_log_prob(x, mean, log_std), improved["outputs.dgll.log_prob_exact_cdf"]
    # in the far tails their difference of two rounded numbers has no digits left
    seen = exact > -20
    torch.testing.assert_close(ours[seen], exact[seen], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(tanh_decoder(x, mean, log_std), improved["outputs.dgll.log_prob"], rtol=0, atol=1e-9)
    assert (ours - improved["outputs.dgll.log_prob"])[exact > -8].abs().max() == pytest.approx(0.131, abs=1e-3)


@pytest.mark.parametrize("log_std", [-8.0, -4.0, -1.0, 3.0])
def test_all_bins_together_have_mass_one(log_std):
    x = torch.arange(256, dtype=torch.float64) / 127.5 - 1.0
    for mean in (-1.3, -0.501, 0.0, 0.9999):
        log_p = discretised_log_prob(x, torch.tensor(mean), torch.tensor(log_std))
        torch.testing.assert_close(log_p.logsumexp(0), torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_tails_keep_their_digits():
    """40 standard deviations away, on both sides, against scipy's log of the distribution function."""
    std, x = 0.01, torch.tensor([0.4, -0.4], dtype=torch.float64)
    got = discretised_log_prob(x, torch.zeros(2), torch.full((2,), math.log(std), dtype=torch.float64))
    near, far = (0.4 - 1 / 255) / std, (0.4 + 1 / 255) / std
    wanted = log_ndtr(-near) + math.log1p(-math.exp(log_ndtr(-far) - log_ndtr(-near)))
    torch.testing.assert_close(got, torch.full_like(got, wanted), rtol=1e-12, atol=0)
    assert ndtr(-near) < 1e-300


def test_gradients_are_finite_at_every_step_and_pixel():
    path = zero_terminal_snr(DDPM("cosine", steps=6))
    x0 = torch.tensor([-1.0, 0.2, 1.0], dtype=torch.float64).repeat(6, 1)
    denoised, share = torch.zeros(6, 3, requires_grad=True), torch.full((6, 3), 0.3, requires_grad=True)
    index = torch.arange(6)
    nats = step_nats(path, x0, denoised, index, log_variance(path, index, "learned", share, x0))
    nats.sum().backward()
    assert nats.isfinite().all() and denoised.grad.isfinite().all() and share.grad.isfinite().all()


@pytest.mark.parametrize("path", [DDPM("cosine", steps=7), zero_terminal_snr(DDPM("cosine", steps=7))])
def test_a_term_is_the_divergence_from_bayes_posterior(path):
    """q(x_s given x_t, x0) by Bayes on scalars, and the KL of two normals by quadrature."""
    x0, denoised, x_t, log_v = 0.3, -0.2, 0.7, -1.5
    for t in range(1, 7):
        alpha_s, sigma_s = path.alpha(float(t - 1)), path.sigma(float(t - 1))
        alpha_t, sigma_t = path.alpha(float(t)), path.sigma(float(t))
        ratio = alpha_t / alpha_s
        beta = sigma_t**2 - (ratio * sigma_s) ** 2
        grid = torch.linspace(-8, 8, 200_001, dtype=torch.float64)

        def posterior(x0, alpha_s=alpha_s, sigma_s=sigma_s, ratio=ratio, beta=beta, grid=grid):
            log_q = -0.5 * ((grid - alpha_s * x0) / sigma_s) ** 2 - 0.5 * (x_t - ratio * grid) ** 2 / beta
            q = (log_q - log_q.max()).exp()
            return q / q.sum()

        q = posterior(x0)
        mean = (posterior(denoised) * grid).sum()
        step = grid[1] - grid[0]
        log_p = -0.5 * ((grid - mean) ** 2 * math.exp(-log_v) + log_v + math.log(2 * math.pi))
        seen = q > 1e-200
        kl = (q[seen] * (q[seen].log() - step.log() - log_p[seen])).sum()
        image = torch.tensor([[x0]], dtype=torch.float64)
        ours = step_nats(path, image, torch.full_like(image, denoised), torch.tensor([t]), torch.full_like(image, log_v))
        torch.testing.assert_close(ours.squeeze(), kl, rtol=1e-6, atol=1e-9)


def test_a_table_of_one_step_in_closed_form():
    """Prior plus decoder and nothing else: with D = 0, the decoder has the variance beta."""
    path, x0 = DDPM(table=(0.3,)), pixels(3, 5)
    found = variational_bound(lambda x, level: torch.zeros_like(x), path, x0, seeds=[0, 1, 2])
    prior = 0.5 * (0.3 - 1 - math.log(0.3) + 0.7 * x0**2)
    decoder = -discretised_log_prob(x0, torch.zeros_like(x0), torch.full_like(x0, 0.5 * math.log(0.3)))
    torch.testing.assert_close(found.bits_B, (prior + decoder).mean(1) / math.log(2), rtol=1e-12, atol=0)
    assert found.error_B.isnan().all()


def test_the_bound_is_above_the_entropy_and_near_it_for_exact_denoisers():
    """Pixels of a discretised normal distribution: the bound of its exact denoiser lies above the cross-entropy by the cost of T
    steps, which more steps make smaller; and draws agree within their standard errors."""
    std, images = 0.25, 64
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1.0
    p = discretised_log_prob(levels, torch.zeros(256), torch.full((256,), math.log(std))).exp()
    rng = torch.Generator().manual_seed(0)
    x0 = levels[torch.multinomial(p, images * 8, replacement=True, generator=rng)].reshape(images, 8)
    truth = -(discretised_log_prob(x0, torch.zeros(1), torch.full((1,), math.log(std)))).mean() / math.log(2)
    denoiser = Gaussian(torch.zeros(8), std**2).denoiser()
    gaps = []
    for steps in (25, 100):
        found = variational_bound(denoiser, DDPM("linear", steps=steps), x0, range(images), draws=3, clip=False)
        gaps.append((found.bits_B.mean() - truth).item())
        assert found.steps_BT.shape == (images, steps)
        torch.testing.assert_close(found.bits_B, found.prior_B + found.steps_BT.sum(1))
    assert gaps[0] > gaps[1] > 0
    other = variational_bound(denoiser, DDPM("linear", steps=100), x0, range(images, 2 * images), draws=3, clip=False)
    error = (found.error_B.square().sum() + other.error_B.square().sum()).sqrt() / images
    assert 0 < abs(found.bits_B.mean() - other.bits_B.mean()) < 4 * error


def test_an_images_bound_depends_on_its_seed_alone():
    denoiser, path, x0 = Gaussian(torch.zeros(4), 0.2).denoiser(), DDPM("cosine", steps=5), pixels(3, 4)
    together = variational_bound(denoiser, path, x0, [7, 8, 9])
    alone = variational_bound(denoiser, path, x0[1:2], [8])
    torch.testing.assert_close(together.bits_B[1:2], alone.bits_B, rtol=1e-13, atol=0)


@pytest.mark.parametrize("wrong", [{"variance": "smal"}, {"draws": 0}, {"seeds": [1]}])
def test_bad_requests_are_named(wrong):
    with pytest.raises(UserError, match=r"likelihood\."):
        variational_bound(lambda x, level: x, DDPM("cosine", steps=2), pixels(2, 2), **{"seeds": [0, 1], **wrong})
