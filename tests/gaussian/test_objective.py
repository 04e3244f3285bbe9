from __future__ import annotations

import math

import pytest
import torch

from unveil.errors import UserError
from unveil.gaussian import weighting
from unveil.gaussian.coupling import optimal_transport
from unveil.gaussian.density import LogNormal, LogUniform, UniformLevels, UniformTime, level_at
from unveil.gaussian.exact import Gaussian, Mixture
from unveil.gaussian.importance import Importance
from unveil.gaussian.objective import BUCKETS, EDGES, BoundObjective, GaussianObjective, bucket_name, curve
from unveil.gaussian.output import from_output
from unveil.gaussian.path import DDPM, VE, VP, RectifiedFlow, SubVP, zero_terminal_snr
from unveil.gaussian.weighting import EDMWeight, Likelihood, Uncertainty


def value(objective, denoiser, x0, noise, **options):
    """The loss of a step: over terms, weight times sum over denominator."""
    terms = objective.loss(denoiser, x0, noise, **options)
    importance = {"importance": options["importance"]} if "importance" in options else {}
    targets = objective.targets(x0, noise, **importance)
    assert terms.keys() == targets.keys()
    return sum(term.weight * term.sum / targets[name] for name, term in terms.items() if term.weight)


# golden numbers


@pytest.mark.parametrize(
    ("kind", "objective", "uniform"),
    [
        # their vp draw counts time down from 1
        ("vp", GaussianObjective(weighting.simple, UniformTime(VP())), lambda draw: 1 - draw),
        ("ve", GaussianObjective(weighting.simple, LogUniform(0.02, 100.0)), lambda draw: draw),
        ("edm", GaussianObjective(EDMWeight(0.5), LogNormal(-1.2, 1.2)), torch.special.ndtr),
    ],
)
def test_golden_edm_losses(golden, kind, objective, uniform):
    """Per sample, and the loss as the mean over all values (the reference returns elements, and its trainer sums them)."""
    arrays, _ = golden("edm_losses")
    denoiser = Mixture(
        arrays["inputs.mixture_weights"], arrays["inputs.mixture_means"].reshape(3, 2, 1, 1), arrays["inputs.mixture_std"].square()
    ).denoiser()
    images, noise = arrays["inputs.images"], arrays[f"inputs.{kind}.noise"]
    u, elements = uniform(arrays[f"inputs.{kind}.draw"]).flatten(), arrays[f"outputs.{kind}.loss"]
    torch.testing.assert_close(objective.density.log_n(u).exp(), arrays[f"outputs.{kind}.sigma"].flatten(), rtol=1e-10, atol=0)
    for i in range(len(images)):
        row = {"u": u[i : i + 1], "eps": noise[i : i + 1]}
        torch.testing.assert_close(objective.loss(denoiser, images[i : i + 1], row)["loss"].sum, elements[i].sum(), rtol=1e-10, atol=0)
    torch.testing.assert_close(value(objective, denoiser, images, {"u": u, "eps": noise}), elements.mean(), rtol=1e-10, atol=0)


@pytest.mark.parametrize(("name", "path"), [("vp", VP()), ("subvp", SubVP()), ("ve", VE(t_min=1e-5))])
def test_golden_score_matching(golden, name, path):
    """Their plain loss is that of eps, their likelihood weighting g^2 on the score: half of its sum is our nats."""
    arrays, _ = golden("score_sde")
    denoiser = Gaussian(arrays["inputs.data_mean"][0], arrays["inputs.data_std"][0].square()).denoiser()
    x0, noise = arrays["inputs.x"], {"u": arrays["inputs.loss_u"], "eps": arrays["inputs.loss_z"]}
    simple = value(GaussianObjective(weighting.simple, UniformTime(path)), denoiser, x0, noise)
    torch.testing.assert_close(simple, arrays[f"outputs.{name}.loss_lw0_mean1"], rtol=1e-9, atol=0)
    torch.testing.assert_close(0.5 * simple * 4, arrays[f"outputs.{name}.loss_lw0_mean0"], rtol=1e-9, atol=0)
    nats = GaussianObjective(Likelihood(path), UniformTime(path)).loss(denoiser, x0, noise)["loss"].sum / len(x0)
    torch.testing.assert_close(nats, arrays[f"outputs.{name}.loss_lw1_mean0"], rtol=1e-9, atol=0)


def test_golden_rectified_flow(golden):
    """Their time runs from noise at 0, u -> 1e-3 + (1 - 1e-3) u."""
    arrays, config = golden("rectified_flow")
    denoiser = Gaussian(arrays["inputs.data_mean"][0], arrays["inputs.data_std"][0].square()).denoiser()
    x0, path = arrays["inputs.data"], RectifiedFlow(t_min=0.0, t_max=1.0 - config["eps"])
    noise = {"u": 1 - arrays["inputs.loss.u"], "eps": arrays["inputs.loss.z0"]}
    objective = GaussianObjective(weighting.flow, UniformTime(path))
    torch.testing.assert_close(path.time(objective.density.log_n(noise["u"]).exp()), 1 - arrays["outputs.loss.t"], rtol=0, atol=1e-12)
    torch.testing.assert_close(value(objective, denoiser, x0, noise), arrays["outputs.loss"], rtol=1e-10, atol=0)


@pytest.mark.parametrize("schedule", ["uniform", "t0", "4"])
def test_golden_reflow(golden, schedule):
    """Pairs (z0, data), the noise of a pair for eps; half the sum over values. Times given (t1 is the data end, where x_t = x0)."""
    arrays, _ = golden("rectified_flow")
    denoiser = Gaussian(arrays["inputs.data_mean"][0], arrays["inputs.data_std"][0].square()).denoiser()
    t = 1 - arrays[f"outputs.reflow_{schedule}.t"]
    total = 0.0
    for i, time in enumerate(t.tolist()):
        row = {"u": torch.tensor([0.5]), "eps": arrays["inputs.z0"][i : i + 1]}
        objective = GaussianObjective(weighting.flow, UniformLevels((RectifiedFlow().n(time),)))
        total += objective.loss(denoiser, arrays["inputs.data"][i : i + 1], row)["loss"].sum
    torch.testing.assert_close(0.5 * total / len(t), arrays[f"outputs.reflow_{schedule}.loss"], rtol=1e-9, atol=0)


class Recorded:
    """A network output for every step, as a denoiser on a DDPM table."""

    def __init__(self, path, index, output, share):
        self.path, self.index, self.output, self.share = path, index, output, share

    def __call__(self, x, level):
        torch.testing.assert_close(level.alpha, self.path.alpha(self.index), rtol=1e-12, atol=0)
        return from_output("eps", x, self.output, self.path, self.index)

    def with_variance(self, x, level):
        return self(x, level), self.share


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_golden_hybrid_and_bound(golden, schedule):
    """Steps above 0; at step 0 the reference's decoder is a tanh (tests/gaussian/test_bound.py holds both)."""
    arrays, _ = golden("improved_diffusion")
    path, T = DDPM(schedule, steps=100), 100
    share = (arrays["inputs.var_values"] + 1) / 2

    def wanted(name, i):
        return arrays[f"outputs.{schedule}.train.{name}"][i].item()

    for i, t in enumerate(arrays["inputs.t"].tolist()):
        row = slice(i, i + 1)
        noise = {"u": torch.tensor([(t + 0.5) / T], dtype=torch.float64), "eps": arrays["inputs.noise"][row]}
        x0 = arrays["inputs.x_start"][row]
        denoiser = Recorded(path, torch.tensor([t]), arrays["inputs.model_output"][row], share[row])

        def loss(x0=x0, noise=noise, denoiser=denoiser, **settings):
            return value(BoundObjective(path, **settings), denoiser, x0, noise).item()

        assert loss(bound=0.0) == pytest.approx(wanted("MSE.LEARNED_RANGE.mse", i), rel=1e-9)
        if t == 0:
            continue
        assert loss() == pytest.approx(wanted("RESCALED_MSE.LEARNED_RANGE.loss", i), rel=1e-9)
        assert loss(bound=1 / T) == pytest.approx(wanted("MSE.LEARNED_RANGE.loss", i), rel=1e-9)
        assert loss(simple=0.0, bound=1.0) == pytest.approx(wanted("RESCALED_KL.LEARNED_RANGE.loss", i), rel=1e-9)
        assert loss(simple=0.0, bound=1.0, variance="small") == pytest.approx(wanted("RESCALED_KL.FIXED_SMALL.loss", i), rel=1e-9)
        assert loss(simple=0.0, bound=1 / T, variance="small") == pytest.approx(wanted("KL.FIXED_SMALL.loss", i), rel=1e-9)


# closed forms

MIXTURE = Mixture([0.3, 0.7], [[-0.6], [0.5]], [0.04, 0.01])


def quantiles(mixture_count=4000):
    """Points of the 1-D mixture at equal steps of probability, [N]."""
    grid = torch.linspace(-2, 2, 400_001, dtype=torch.float64)
    density = torch.exp(MIXTURE.log_density(grid[:, None], 1e-9 + 0.0))
    cdf = density.cumsum(0) / density.sum()
    return grid[torch.searchsorted(cdf, (torch.arange(mixture_count, dtype=torch.float64) + 0.5) / mixture_count)]


def floor_at(n):
    """E||D* - x0||^2 of the mixture at one level, by quadrature over y: E x0^2 - E D*^2."""
    width = 2.0 + 9 * n
    y = torch.linspace(-width, width, 20_001, dtype=torch.float64)[:, None]
    p = torch.exp(MIXTURE.log_density(y, n)) * (y[1] - y[0])
    second = 0.3 * (0.36 + 0.04) + 0.7 * (0.25 + 0.01)
    return second - (p * MIXTURE.denoise(y, n).squeeze(1).square()).sum().item()


def lattice(count):
    """u, a uniform for the image and one for eps on a rank-1 lattice: nearly even in all three."""
    i = torch.arange(count, dtype=torch.float64)
    return tuple(torch.remainder(i * a + 0.5 / count, 1.0) for a in (1 / count, 0.8191725133961645, 0.6710436067037893))


@pytest.mark.parametrize(
    "weight",
    [
        weighting.simple,
        weighting.x0,
        weighting.v,
        weighting.flow,
        EDMWeight(0.5),
        weighting.MinSNR(),
        weighting.SoftMinSNR(),
        weighting.P2(),
    ],
)
def test_the_exact_denoiser_reaches_the_floor_of_every_weighting_and_no_other_does(weight):
    """The floor by quadrature; and a denoiser that is off by delta(n) pays w E delta^2 more, by Pythagoras."""
    density = LogNormal(-0.8, 0.9)
    nodes = density.log_n((torch.arange(64, dtype=torch.float64) + 0.5) / 64)
    floors = torch.tensor([floor_at(n) for n in nodes.exp().tolist()], dtype=torch.float64)
    floor = (weight(nodes.exp()) * floors).mean()
    u, at, eps = lattice(60_000)
    x0 = quantiles()[(at * 4000).long()][:, None]
    noise = {"u": u, "eps": torch.special.ndtri(eps.clamp(1e-9, 1 - 1e-9))[:, None]}
    objective = GaussianObjective(weight, density)
    found = value(objective, MIXTURE.denoiser(), x0, noise)
    torch.testing.assert_close(found, floor, rtol=0.02, atol=0)

    def off(x, level):
        return MIXTURE.denoise(x, level) + 0.5 * level.n[:, None] / (1 + level.n[:, None])

    extra = (weight(nodes.exp()) * (0.5 * nodes.exp() / (1 + nodes.exp())) ** 2).mean()
    torch.testing.assert_close(value(objective, off, x0, noise) - found, extra, rtol=0.03, atol=0)


def test_the_floor_of_rectified_flow_is_s_pi_over_2():
    """N(0, 1) to N(mu, s^2): the integral over t of the variance of X1 - X0 given X_t."""
    for s in (0.5, 1.0, 2.0):
        u, a, b = lattice(100_000)
        x0, eps = (torch.special.ndtri(values.clamp(1e-9, 1 - 1e-9))[:, None] for values in (a, b))
        objective = GaussianObjective(weighting.flow, UniformTime(RectifiedFlow(t_min=0.0, t_max=1.0)))
        found = value(objective, Gaussian([0.3], s**2).denoiser(), 0.3 + s * x0, {"u": u.clamp(1e-9), "eps": eps})
        assert found.item() == pytest.approx(s * math.pi / 2, rel=1e-2)


# sums and denominators


def batch(count=6, shape=(3, 2)):
    generator = torch.Generator().manual_seed(1)
    u = torch.rand(count, generator=generator, dtype=torch.float64)
    x0, eps = torch.randn(2, count, *shape, generator=generator).unbind(0)
    return x0, {"u": u, "eps": eps}


def test_micro_batches_add_up():
    objective, denoiser = GaussianObjective(EDMWeight(0.5), LogNormal()), Gaussian(torch.zeros(3, 2), 0.3).denoiser()
    x0, noise = batch()
    whole, counts = objective.loss(denoiser, x0, noise), objective.targets(x0, noise)
    halves = [(x0[part], {name: values[part] for name, values in noise.items()}) for part in (slice(0, 2), slice(2, 6))]
    for name, term in whole.items():
        torch.testing.assert_close(term.sum, sum(objective.loss(denoiser, *half)[name].sum for half in halves))
        assert counts[name] == sum(objective.targets(*half)[name] for half in halves)


def test_the_error_is_measured_by_noise_level():
    objective, denoiser = GaussianObjective(weighting.simple, LogNormal()), Gaussian(torch.zeros(3, 2), 0.3).denoiser()
    x0, noise = batch()
    terms, counts = objective.loss(denoiser, x0, noise), objective.targets(x0, noise)
    n = objective.density.log_n(noise["u"]).exp()
    for i, (low, high) in enumerate(zip((0, *EDGES), (*EDGES, math.inf), strict=True)):
        inside = (n >= low) & (n < high)
        assert counts[bucket_name(i)] == 6 * inside.sum()
        one = objective.loss(denoiser, x0[inside], {name: v[inside] for name, v in noise.items()}) if inside.any() else None
        expected = (one["loss"].sum.double() * n[inside].item() ** 2) if one and inside.sum() == 1 else None
        if expected is not None:
            torch.testing.assert_close(terms[bucket_name(i)].sum, expected, rtol=1e-5, atol=0)
    assert [term.weight for term in terms.values()] == [1.0] + [0.0] * BUCKETS
    row = {f"train/{bucket_name(2)}": 0.5}
    assert curve(row)[2] == 0.5 and math.isnan(curve(row)[0])


def test_uncertainty_scales_and_pays():
    objective, denoiser = GaussianObjective(EDMWeight(0.5), LogNormal()), Gaussian(torch.zeros(3, 2), 0.3).denoiser()
    x0, noise = batch()

    class Constant(Uncertainty):
        def forward(self, log_n_B):
            return torch.full_like(log_n_B, 0.4, dtype=torch.float32)

    plain = objective.loss(denoiser, x0, noise)["loss"].sum
    torch.testing.assert_close(objective.loss(denoiser, x0, noise, uncertainty=Uncertainty())["loss"].sum, plain)
    expected = plain * math.exp(-0.4) + 0.4 * x0.numel()
    torch.testing.assert_close(objective.loss(denoiser, x0, noise, uncertainty=Constant())["loss"].sum, expected)


def test_importance_keeps_the_expectation_and_evaluation_leaves_it_alone():
    objective, denoiser = GaussianObjective(EDMWeight(0.5), LogNormal()), Gaussian([0.0], 1.0).denoiser()
    u, a, b = lattice(40_000)
    x0, eps = (torch.special.ndtri(v.clamp(1e-9, 1 - 1e-9))[:, None] for v in (a, b))
    noise, table = {"u": u, "eps": eps}, Importance(20)
    plain = value(objective, denoiser, x0, noise)
    torch.testing.assert_close(value(objective, denoiser, x0, noise, importance=table), plain)  # targets have filled it
    assert table.probabilities().std() > 0.005
    before = {name: tensor.clone() for name, tensor in table.state_dict().items()}
    with torch.no_grad():
        weighed = value(objective, denoiser, x0, noise, importance=table)
    torch.testing.assert_close(weighed, plain, rtol=0.02, atol=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in table.state_dict().items())
    assert objective.targets(x0, noise, table)[bucket_name(3)] != objective.targets(x0, noise)[bucket_name(3)]


def test_a_coupling_moves_the_noise():
    objective = GaussianObjective(weighting.flow, UniformTime(RectifiedFlow()), optimal_transport)
    x0, noise = batch()
    coupled = {"u": noise["u"], "eps": optimal_transport(x0, noise["eps"])}
    denoiser = Gaussian(torch.zeros(3, 2), 0.3).denoiser()
    plain = GaussianObjective(weighting.flow, objective.density)
    torch.testing.assert_close(objective.loss(denoiser, x0, noise)["loss"].sum, plain.loss(denoiser, x0, coupled)["loss"].sum)


def test_conditions_reach_the_network_and_gradients_come_back():
    seen = {}

    def denoiser(x, level, classes):
        seen["classes"] = classes
        return scale * x

    scale = torch.tensor(0.5, requires_grad=True)
    x0, noise = batch()
    objective = GaussianObjective(weighting.v, LogNormal())
    value(objective, denoiser, x0, noise, condition={"classes": torch.arange(6)}).backward()
    assert seen["classes"].tolist() == list(range(6))
    alpha, sigma = (v[:, None, None].float() for v in level_at(objective.density.log_n(noise["u"])))
    x = alpha * x0 + sigma * noise["eps"]
    weights = (1 / sigma**2) * alpha**2 + 1
    expected = (2 * weights * (0.5 * x - x0) * x).mean()
    torch.testing.assert_close(scale.grad, expected, rtol=1e-4, atol=0)


def test_without_any_signal_v_still_trains():
    path = zero_terminal_snr(DDPM("linear", steps=50))
    objective = GaussianObjective(weighting.v, UniformLevels.of(path))
    x0, noise = batch()
    noise["u"] = torch.full_like(noise["u"], 0.999)

    def denoiser(x, level):
        return from_output("v", x, torch.zeros_like(x), path, path.t_max)

    torch.testing.assert_close(value(objective, denoiser, x0, noise), x0.square().mean())


def test_beside_the_simple_loss_the_bound_trains_the_variance_alone():
    path = DDPM("cosine", steps=10)

    class Two:
        denoised = torch.tensor(0.1, requires_grad=True)
        share = torch.tensor(0.5, requires_grad=True)

        def with_variance(self, x, level):
            return self.denoised.expand_as(x), self.share.expand_as(x)

    x0, noise = batch()
    x0 = x0.clamp(-1, 1)
    for simple, trains in ((1.0, False), (0.0, True)):
        two = Two()
        two.denoised.grad = two.share.grad = None
        BoundObjective(path, simple=simple).loss(two, x0, noise)["vlb"].sum.backward()
        assert two.share.grad.abs() > 0
        assert (two.denoised.grad is not None) == trains
    with pytest.raises(UserError, match=r"objective\.bound"):
        BoundObjective(path, simple=0.0, bound=0.0)
    with pytest.raises(UserError, match=r"objective\.variance"):
        BoundObjective(path, variance="tiny")
