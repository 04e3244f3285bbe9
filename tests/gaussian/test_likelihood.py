from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from unveil.errors import UserError
from unveil.gaussian.exact import Gaussian, Mixture
from unveil.gaussian.integrator import Adaptive, Fixed
from unveil.gaussian.likelihood import bits_per_dim, dequantise, log_density, rademacher, sample_with_log_density
from unveil.gaussian.path import EDM, VE, VP, Cosine, RectifiedFlow, SubVP, Trigonometric

PATHS = [VP(), SubVP(), VE(t_min=1e-5), EDM(), RectifiedFlow(), Cosine(), Trigonometric()]
GMM = Mixture([0.2, 0.5, 0.3], [[-1.0], [0.2], [1.5]], [0.04, 0.09, 0.25])
IMAGES = Mixture([0.4, 0.6], torch.randn(2, 1, 2, 3, generator=torch.Generator().manual_seed(2)), [0.2, 0.3])
"""Of shape ``[1, 2, 3]``, correlated by being a mixture: the Jacobian of D is not diagonal."""


class Remembering:
    """Counts calls and keeps the kind of level that it saw."""

    def __init__(self, world):
        self.world, self.calls, self.floats = world, 0, True

    def __call__(self, x, level):
        self.calls += 1
        self.floats &= isinstance(level.alpha, float)
        return self.world.denoise(x, level)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_the_exact_trace_gives_the_density_of_a_mixture_under_every_path(path, steps=160, nats=5e-6):
    """With the true density at the far end in place of the prior: what is left is the integration's error."""
    x = torch.linspace(-2, 2.5, 9, dtype=torch.float64)[:, None]
    found = log_density(GMM.denoiser(), path, x, None, integrator=Fixed(steps))
    end = path.level(path.t_max)
    prior = -0.5 * ((found.x / path.prior_std()) ** 2).sum(1) - math.log(path.prior_std() * math.sqrt(2 * math.pi))
    value = found.log_density_B - prior + GMM.log_density(found.x, end)
    torch.testing.assert_close(value, GMM.log_density(x, path.n(path.t_min)), rtol=0, atol=nats)


def test_more_steps_leave_nothing_to_be_seen():
    test_the_exact_trace_gives_the_density_of_a_mixture_under_every_path(VP(), 400, 4e-8)


def test_the_prior_without_the_datas_variance_costs_and_with_it_hardly():
    """n_T = 80 on 1-D data, averaged over the data themselves; the sheet has 6.8e-3 nats of another mixture."""
    x = GMM.sample(4000, seed=1)
    truth = GMM.log_density(x, EDM().t_min)
    std = math.sqrt((x.var() + x.mean() ** 2).item())
    plain = (log_density(GMM.denoiser(), EDM(), x, None).log_density_B - truth).abs().mean()
    told = (log_density(GMM.denoiser(), EDM(), x, None, data_std=std).log_density_B - truth).abs().mean()
    assert plain > 3e-3
    assert told < plain


def test_a_probe_of_signs_is_exact_where_the_jacobian_is_diagonal():
    diagonal = Gaussian(torch.zeros(4), torch.tensor([0.1, 0.5, 1.0, 2.0])).denoiser()
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = log_density(diagonal, VP(), x, None).log_density_B
    for seeds in (range(3), range(3, 6)):
        torch.testing.assert_close(log_density(diagonal, VP(), x, rademacher(seeds, x)).log_density_B, exact, rtol=0, atol=1e-11)


def test_a_probe_is_unbiased_elsewhere():
    """All 64 probes of six dimensions, with equal weights: their mean is the exact value, at images of any shape."""
    x = IMAGES.sample(1, seed=3)
    signs = torch.tensor([[1 - 2 * (i >> j & 1) for j in range(6)] for i in range(64)], dtype=torch.float64).reshape(64, 1, 2, 3)
    many = log_density(IMAGES.denoiser(), VP(), x.expand(64, 1, 2, 3), signs, integrator=Fixed(32)).log_density_B
    exact = log_density(IMAGES.denoiser(), VP(), x, None, integrator=Fixed(32)).log_density_B
    torch.testing.assert_close(many.mean(), exact[0], rtol=0, atol=1e-10)
    assert many.std() > 1e-3


def test_the_normal_distribution_in_closed_form_by_both_integrators():
    world = Gaussian(torch.tensor([[0.2, -0.4]]), torch.tensor([[0.5, 0.2], [0.2, 0.3]]))
    x = world.sample(5, seed=0)
    wanted = world.log_density(x, RectifiedFlow().n(RectifiedFlow().t_min))
    for integrator in (Fixed(64, "rk4"), Fixed(512, "heun"), Adaptive(1e-7, 1e-7)):
        found = log_density(world.denoiser(), RectifiedFlow(), x, None, integrator=integrator)
        # from noise alone the prior is exact
        torch.testing.assert_close(found.log_density_B, wanted, rtol=0, atol=1e-4)


def test_the_latent_is_where_the_flow_goes():
    world = Gaussian([0.2, -0.4], [0.5, 0.3])
    for path in (VP(), EDM(), RectifiedFlow()):
        x = world.sample(3)
        found = log_density(world.denoiser(), path, x, None, integrator=Fixed(64))
        wanted = world.flow_map(x, path.n(path.t_min), path.level(path.t_max))
        torch.testing.assert_close(found.x, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", [VP(), RectifiedFlow(), EDM()], ids=repr)
def test_a_sample_and_its_density_in_one_pass(path):
    """There and back: the same images, the same value."""
    generator = torch.Generator().manual_seed(0)
    latent = path.prior_std() * torch.randn(4, 1, 2, 3, generator=generator, dtype=torch.float64)
    there = sample_with_log_density(IMAGES.denoiser(), path, latent, None, integrator=Fixed(64), data_std=0.5)
    back = log_density(IMAGES.denoiser(), path, there.x, None, integrator=Fixed(64), data_std=0.5)
    torch.testing.assert_close(back.x, latent, rtol=0, atol=1e-4 * path.prior_std())
    torch.testing.assert_close(back.log_density_B, there.log_density_B, rtol=0, atol=1e-4)


@pytest.mark.parametrize("probe", ["Rademacher", "Gaussian"])
@pytest.mark.parametrize(("name", "path"), [("vp", VP()), ("subvp", SubVP()), ("ve", VE(t_min=1e-5))])
def test_golden_bits_per_dimension(golden, name, path, probe):
    """score_sde's RK45 in float32 to 1e-3, and the closed form of the same quantity closer. Its prior at T is N(0, 1) for VP and
    sub-VP, where ours says so with data of unit variance. It probes the linear part of the drift too, whose trace is known: with v from a
    normal distribution that adds (v^2 - d) log(sigma_T / sigma_eps) of pure noise, which is put back here to compare."""
    arrays, _ = golden("score_sde")
    denoiser = Gaussian(arrays["inputs.data_mean"][0], arrays["inputs.data_std"][0].square()).denoiser()
    signs, x = arrays[f"inputs.probe_{probe}"], 0.3 * arrays["inputs.x"]
    found = log_density(denoiser, path, x, signs, integrator=Fixed(128), data_std=0.0 if name == "ve" else 1.0)
    linear = (signs.square().flatten(1).sum(1) - 4) * math.log(path.sigma(path.t_max) / path.sigma(path.t_min))
    bits = 7 - (found.log_density_B + linear) / (4 * math.log(2))
    torch.testing.assert_close(bits, arrays[f"outputs.{name}.bpd_{probe}"], rtol=0, atol=1e-3)
    torch.testing.assert_close(bits, arrays[f"outputs.{name}.bpd_exact_flow_{probe}"], rtol=0, atol=1e-4)
    torch.testing.assert_close(found.x, arrays[f"outputs.{name}.latent_{probe}"].double(), rtol=1e-3, atol=1e-3)
    if probe == "Rademacher":  # a diagonal Jacobian: the prior's mismatch is what separates us from the true density
        mismatch = {"vp": 6.15e-3, "subvp": 6.20e-3, "ve": 1.85e-2}[name]
        assert (bits - arrays[f"outputs.{name}.bpd_exact"]).abs().max() == pytest.approx(mismatch, rel=0.05)


def test_uniform_bytes_cost_eight_bits():
    """256 levels, all equally likely: exact up to the edges of a uniform density, which the noise n_min rounds off."""

    def flat(x, level):
        """D of the uniform density on [-1, 1): the mean of a normal distribution cut off at both ends."""
        n = torch.as_tensor(level.sigma / level.alpha, dtype=x.dtype)
        n, alpha = (torch.as_tensor(v, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1)) for v in (n, level.alpha))
        y = x / alpha
        low, high = (-1 - y) / n, (1 - y) / n
        # the normalisation in the nearer tail, where it keeps its digits
        flip = low > 0
        mass = torch.special.ndtr(torch.where(flip, -low, high)) - torch.special.ndtr(torch.where(flip, -high, low))
        slope = torch.exp(-0.5 * low.square()) - torch.exp(-0.5 * high.square())
        return (y + n * slope / (math.sqrt(2 * math.pi) * mass.clamp(min=1e-300))).clamp(-1, 1)

    images = torch.arange(1, 255, 23).reshape(12, 1)
    bits, error = bits_per_dim(flat, EDM(t_min=0.002, t_max=30.0), images, range(12), exact=True, integrator=Fixed(200), data_std=3**-0.5)
    torch.testing.assert_close(bits, torch.full_like(bits, 8.0), rtol=0, atol=5e-3)
    assert error.isnan().all()


def test_exact_and_hutchinson_agree_within_two_standard_errors():
    images = ((IMAGES.sample(8, seed=1).clamp(-1, 1) + 1) * 127).round()
    draws = 6
    exact, _ = bits_per_dim(IMAGES.denoiser(), VP(), images, range(8), draws=draws, exact=True, integrator=Fixed(32))
    probed, error = bits_per_dim(IMAGES.denoiser(), VP(), images, range(8), draws=draws, integrator=Fixed(32))
    assert error.isfinite().all() and (error > 0).all()
    assert (exact - probed).mean().abs() < 2 * error.square().sum().sqrt() / 8
    assert not torch.equal(exact, probed)


def test_dequantisation_and_its_offset():
    u = torch.tensor([0.0, 0.5, 0.999])
    torch.testing.assert_close(dequantise(torch.tensor([0, 128, 255]), u).float(), torch.tensor([-1.0, 0.00390625, 0.9999922]))
    # density 1/2 on [-1, 1) is one nit per dimension: 8 bits
    assert 7.0 - math.log2(0.5) == 8.0


def test_an_image_counts_the_same_alone_and_in_a_batch():
    """Its probe stays with it when others have arrived and left the batch."""
    images = ((IMAGES.sample(3, seed=1).clamp(-1, 1) + 1) * 127).round()
    images[0] = 128.0
    options = {"integrator": Adaptive(1e-4, 1e-4), "draws": 2}
    together = bits_per_dim(IMAGES.denoiser(), RectifiedFlow(), images, [5, 6, 7], **options)
    for i in range(3):
        alone = bits_per_dim(IMAGES.denoiser(), RectifiedFlow(), images[i : i + 1], [5 + i], **options)
        for many, one in zip(together, alone, strict=True):
            torch.testing.assert_close(many[i : i + 1], one, rtol=1e-10, atol=1e-12)
    evaluations_B = log_density(
        IMAGES.denoiser(), RectifiedFlow(), dequantise(images, torch.tensor(0.5)), None, integrator=Adaptive()
    ).evaluations_B
    assert len(set(evaluations_B.tolist())) > 1


def test_evaluations_are_counted_and_equal_steps_ask_at_one_level():
    x = GMM.sample(2)
    world = Remembering(GMM)
    fixed = log_density(world, VP(), x, None, integrator=Fixed(10))
    assert fixed.evaluations_B.tolist() == [40, 40] and world.calls == 40 and world.floats
    adaptive = log_density(world, VP(), x, None, integrator=Adaptive())
    assert not world.floats and adaptive.evaluations_B.max() <= world.calls - 40


def test_no_gradient_is_kept_and_inference_mode_is_no_hindrance():
    layer = nn.Linear(2, 2).double()

    def denoiser(x, level, shift):
        return torch.tanh(layer(x)) + shift

    x, condition = torch.zeros(3, 2, dtype=torch.float64), {"shift": torch.arange(3.0)[:, None].double()}
    with torch.inference_mode():
        inside = log_density(denoiser, RectifiedFlow(), x, None, integrator=Fixed(8), condition=condition)
    outside = log_density(denoiser, RectifiedFlow(), x, None, integrator=Fixed(8), condition=condition)
    assert torch.equal(inside.log_density_B, outside.log_density_B)
    assert not outside.log_density_B.requires_grad and not outside.x.requires_grad
    assert layer.weight.grad is None
    # an adaptive solve hands each live row its own condition
    adaptive = log_density(denoiser, RectifiedFlow(), x, None, integrator=Adaptive(1e-8, 1e-8), condition=condition)
    outside = log_density(denoiser, RectifiedFlow(), x, None, integrator=Fixed(256), condition=condition)
    torch.testing.assert_close(adaptive.log_density_B, outside.log_density_B, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"draws": 0}, {"seeds": [0]}])
def test_bad_requests_are_named(wrong):
    with pytest.raises(UserError, match=r"likelihood\."):
        bits_per_dim(GMM.denoiser(), VP(), torch.zeros(2, 1), **{"seeds": [0, 1], **wrong})
