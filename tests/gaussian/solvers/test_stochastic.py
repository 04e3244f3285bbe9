"""Solvers with noise: exact variances, marginals that hold, and the public references' own steps."""

from __future__ import annotations

import math

import pytest
import torch

from unveil.errors import UserError
from unveil.gaussian.exact import Gaussian
from unveil.gaussian.grid import Grid, karras, leading, linspace, log_uniform, quadratic
from unveil.gaussian.level import Level
from unveil.gaussian.path import DDPM, EDM, VE, VP, RectifiedFlow, SubVP, Trigonometric
from unveil.gaussian.sampler import Sampler
from unveil.gaussian.solvers import SOLVERS
from unveil.gaussian.solvers.stochastic import reverse_drift


@pytest.mark.parametrize(
    ("churn", "ratios"), [(0.0, (1.6336, 1.1136, 1.0245, 1.0057, 1.0013)), (40.0, (2.1603, 1.2644, 1.0873, 1.0357, 1.0118))]
)
def test_variance_of_edm_on_a_gaussian(churn, ratios, variance):
    for steps, ratio in zip((9, 18, 36, 72, 144), ratios, strict=True):
        found = variance(SOLVERS["heun"], karras(EDM(), steps), 0.25, 80.0**2, churn=churn)
        assert found / 0.25 == pytest.approx(ratio, abs=6e-5)


@pytest.mark.parametrize(("eta", "ratios"), [(0.0, (0.5231, 0.8908, 0.9442, 0.9940)), (1.0, (0.4169, 0.7857, 0.8759, 0.9845))])
def test_variance_of_ddpm_on_a_gaussian(eta, ratios, variance):
    for steps, ratio in zip((10, 50, 100, 1000), ratios, strict=True):
        found = variance(SOLVERS["ddim"], linspace(DDPM(), steps), 0.25, 1.0, eta=eta)
        assert found / 0.25 == pytest.approx(ratio, abs=6e-5)


def test_ancestral_with_small_variance_is_ddim_with_eta_1():
    for ours, theirs in zip(
        SOLVERS["ancestral"].tapes(linspace(DDPM(), 30)), SOLVERS["ddim"].tapes(linspace(DDPM(), 30), eta=1.0), strict=True
    ):
        assert dict(ours.result) == pytest.approx(dict(theirs.result), rel=1e-12)


@pytest.mark.parametrize("path", [VP(), SubVP(), VE(), RectifiedFlow(), Trigonometric(), EDM()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("diffusion", ["path", "sigma"])
def test_the_reverse_sde_keeps_the_marginals(path, eta, diffusion):
    """The Fokker-Planck equation of a Gaussian is 2 A V - 2 w = V', A the drift per x; V' of the path in closed form."""
    data = 0.3
    for share in (0.2, 0.5, 0.8):
        t = path.t_min + share * (path.t_max - path.t_min)
        alpha, sigma = path.alpha(t), path.sigma(t)
        a, b, w = reverse_drift(path, t, eta, diffusion)
        spread = alpha**2 * data + sigma**2
        gain = alpha * data / spread
        drift = a * gain + b * (1.0 - alpha * gain) / sigma
        slope = 2.0 * alpha * path.alpha_dot(t) * data + 2.0 * sigma * path.sigma_dot(t)
        assert 2.0 * drift * spread - 2.0 * w == pytest.approx(slope, rel=1e-10, abs=1e-12)
        if eta:
            # the public rectified-flow code has half the correction
            assert 2.0 * (drift - 0.5 * w / sigma * (1.0 - alpha * gain) / sigma) * spread - 2.0 * w != pytest.approx(slope, rel=1e-3)


STEPS = [
    ("ddim", {"eta": 0.5}),
    ("ddim", {"eta": 1.0}),
    ("ancestral", {"variance": "large"}),
    ("euler-maruyama", {"eta": 0.5}),
    ("euler-maruyama", {"eta": 1.0, "diffusion": "sigma"}),
    ("exact-linear", {"eta": 0.5}),
    ("exact-linear", {"eta": 1.0}),
    ("predictor-corrector", {"delta": 0.0}),
    ("heun", {"churn": 10.0}),
]


@pytest.mark.parametrize("path", [VP(), RectifiedFlow()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(("name", "options"), STEPS, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values())))
def test_variances_converge_to_the_marginal(path, name, options, variance):
    """Weak order 1: the variance at the end of a grid nears the path's, its error halving as steps double."""
    data, errors = 0.25, []
    for steps in (200, 400):
        grid = log_uniform(path, steps + 1, n_min=0.1, n_max=5.0, clean=False)
        first, last = grid.instants[0], grid.instants[-1]
        found = variance(SOLVERS[name], grid, data, first.alpha**2 * data + first.sigma**2, **options)
        errors.append(abs(found / (last.alpha**2 * data + last.sigma**2) - 1.0))
    assert errors[1] < 0.1 and math.log2(errors[0] / errors[1]) > 0.8


def test_sde_2m_keeps_the_marginal():
    """Memory makes its variance no recursion; 2,000 samples instead, four standard errors."""
    data, grid = Gaussian([0.0], 0.25), karras(EDM(), 40)
    for eta in (0.5, 1.0):
        x = SOLVERS["sde-2m"](data.denoise, grid, (2000, 1), range(2000), dtype=torch.float64, eta=eta)
        assert x.var().item() == pytest.approx(0.25, abs=4 * 0.25 * math.sqrt(2 / 2000))


# --- the references' own numbers


@pytest.mark.parametrize("sequence", ["uniform", "quad"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_golden_ddim(golden, sequence, eta, recorded):
    arrays, _ = golden("ddim")
    data = Gaussian(arrays["inputs.data_mean"][0], arrays["inputs.data_std"][0] ** 2)
    grid = {"uniform": leading, "quad": quadratic}[sequence](DDPM(), 20)
    assert [int(t) for t in reversed(grid.times)] == arrays[f"outputs.seq.{sequence}"].tolist()
    sampler = Sampler(data.denoise, grid, SOLVERS["ddim"], dtype=torch.float64, eta=eta)
    state = sampler.begin(x=arrays["inputs.x_T"])
    state.noise = recorded(arrays[f"inputs.z_{sequence}"])
    states, images = [state.x], []
    while state.live:
        snapshot = sampler.step(state)
        states.append(snapshot.x)
        images.append(snapshot.denoised())
    torch.testing.assert_close(torch.stack(states), arrays[f"outputs.{sequence}.eta{eta}.x"], rtol=0, atol=1e-10)
    torch.testing.assert_close(torch.stack(images), arrays[f"outputs.{sequence}.eta{eta}.x0"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("sequence", ["uniform", "quad"])
def test_golden_ddpm_with_large_variance(golden, sequence, recorded):
    """The DDIM authors' ddpm_steps, which clips D."""
    arrays, _ = golden("ddim")
    data = Gaussian(arrays["inputs.data_mean"][0], arrays["inputs.data_std"][0] ** 2)
    grid = {"uniform": leading, "quad": quadratic}[sequence](DDPM(), 20)
    sampler = Sampler(data.denoise, grid, SOLVERS["ancestral"], dtype=torch.float64, clip=1.0, variance="large")
    state = sampler.begin(x=arrays["inputs.x_T"])
    state.noise = recorded(arrays[f"inputs.z_{sequence}"])
    states = [state.x]
    while state.live:
        states.append(sampler.step(state).x)
    torch.testing.assert_close(torch.stack(states), arrays[f"outputs.{sequence}.ddpm_steps.x"], rtol=0, atol=1e-10)


class Learned:
    """A network's eps and variance out of a table, as a denoiser."""

    learned_variance = True

    def __init__(self, output, share) -> None:
        self.output, self.share = output, share

    def __call__(self, x, level):
        return (x - level.sigma * self.output) / level.alpha

    def with_variance(self, x, level):
        return self(x, level), self.share


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(("name", "options", "key"), [
    ("ancestral", {"variance": "learned"}, "p_sample"),
    *(("ddim", {"eta": eta}, f"ddim_sample_eta{eta}") for eta in (0.0, 0.5, 1.0)),
])  # fmt: skip
def test_golden_improved_diffusion(golden, schedule, name, options, key, recorded):
    """One step of each sample from its own step of the table, with D clipped and, for p_sample, the learned variance."""
    arrays, config = golden("improved_diffusion")
    path = DDPM(schedule, config["T"])
    for row, t in enumerate(arrays["inputs.t"].tolist()):

        def one(key, row=row):
            return arrays[key][row : row + 1]

        grid = Grid(path, (t, t - 1.0), clean=False) if t else Grid(path, (0.0,))
        model = Learned(one("inputs.model_output"), (one("inputs.var_values") + 1.0) / 2.0)
        sampler = Sampler(model, grid, SOLVERS[name], dtype=torch.float64, clip=1.0, **options)
        state = sampler.begin(x=one(f"outputs.{schedule}.x_t"))
        state.noise = recorded([one("inputs.z")])
        torch.testing.assert_close(sampler.finish(state), one(f"outputs.{schedule}.{key}"), rtol=0, atol=1e-10)


PATHS = {"vp": VP(), "subvp": SubVP(), "ve": VE()}


def score_step(recorded, arrays, name, row, grid, solver, sigma, alpha, **options):
    """(mean, sample) of one step where the score is a given tensor."""
    score, x = arrays[f"outputs.{name}.score"][row : row + 1], arrays["inputs.x"][row : row + 1]

    def denoise(x, level):
        return (x + sigma**2 * score) / alpha

    found = []
    for z in (torch.zeros_like(x), arrays["inputs.z"][row : row + 1]):
        sampler = Sampler(denoise, grid, SOLVERS[solver], dtype=torch.float64, **options)
        state = sampler.begin(x=x)
        state.noise = recorded([z] * 2)
        found.append(sampler.finish(state))
    return found


@pytest.mark.parametrize("name", PATHS)
def test_golden_euler_maruyama(golden, recorded, name):
    arrays, config = golden("score_sde")
    path = PATHS[name]
    for row, t in enumerate(arrays["inputs.t"].tolist()):
        grid = Grid(path, (t, t - 1.0 / config["N"]), clean=False)
        mean, x = score_step(recorded, arrays, name, row, grid, "euler-maruyama", path.sigma(t), path.alpha(t))
        torch.testing.assert_close(mean[0], arrays[f"outputs.{name}.euler_maruyama.x_mean"][row], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(x[0], arrays[f"outputs.{name}.euler_maruyama.x"][row], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_golden_ancestral(golden, recorded, name):
    """VP with beta_t, the large variance; VE with the small one. Between steps of the discrete tables."""
    arrays, config = golden("score_sde")
    if name == "vp":
        path = DDPM()
        torch.testing.assert_close(path.alphas_bar, arrays["outputs.vp.alphas_cumprod"], rtol=1e-12, atol=0)
    else:
        path = EDM(t_min=0.001)
    for row, t in enumerate(arrays["inputs.t"].tolist()):
        index = int(t * (config["N"] - 1))
        times = (index, index - 1) if name == "vp" else (arrays["outputs.ve.discrete_sigmas"][[index, index - 1]]).tolist()
        grid = Grid(path, tuple(map(float, times)), clean=False)
        at, variance = grid.instants[0], "large" if name == "vp" else "small"
        mean, x = score_step(recorded, arrays, name, row, grid, "ancestral", at.sigma, at.alpha, variance=variance)
        torch.testing.assert_close(mean[0], arrays[f"outputs.{name}.ancestral.x_mean"][row], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(x[0], arrays[f"outputs.{name}.ancestral.x"][row], rtol=1e-10, atol=1e-10)


def test_golden_rectified_flow(golden):
    """The reference evaluates at times spaced (1 - eps) / N but steps by 1 / N. Each of its steps but the last, which leaves the path,
    is ours between the two times that it has; its stochastic sampler does not keep the marginals and is no model."""
    arrays, config = golden("rectified_flow")
    data, count = Gaussian(arrays["inputs.data_mean"][0], arrays["inputs.data_std"][0] ** 2), config["sample_N"]
    states = arrays["outputs.euler.x"]
    for i, tau in enumerate(arrays["outputs.euler.t"].tolist()[:-1]):
        grid = Grid(RectifiedFlow(), (1.0 - tau, 1.0 - tau - 1.0 / count), clean=False)
        for solver, options in (("euler", {"clock": "time"}), ("euler-maruyama", {"eta": 0.0})):
            x = SOLVERS[solver](data.denoise, grid, x=states[i], dtype=torch.float64, **options)
            torch.testing.assert_close(x, states[i + 1], rtol=0, atol=1e-10)


def test_an_infinite_diffusion_is_named():
    grid = Grid(RectifiedFlow(), (1.0, 0.5))
    with pytest.raises(UserError, match=r"sampler\.diffusion.*choose sigma"):
        SOLVERS["euler-maruyama"].tapes(grid)
    assert SOLVERS["euler-maruyama"].tapes(grid, diffusion="sigma")


def test_ddim_begins_without_signal():
    """Zero terminal SNR: at alpha = 0 the first step is alpha_s D + sigma_s x."""
    grid = Grid(RectifiedFlow(), (1.0, 0.5))
    for name in ("ddim", "heun", "dpmpp-3m", "unipc", "adams-bashforth"):
        tapes = SOLVERS[name].tapes(Grid(RectifiedFlow(), (1.0, 0.5, 0.2, 0.1)))
        assert dict(tapes[0].result) == pytest.approx({"x": 0.5, "D0": 0.5}), name
        assert all(math.isfinite(value) for tape in tapes for _, value in tape.result)
    assert dict(SOLVERS["ddim"].tapes(grid)[1].result) == {"D0": 1.0}


def test_level_of_a_call_is_that_of_the_grid():
    (tape,) = SOLVERS["ddim"].tapes(Grid(VP(), (0.5,)))
    assert tape.instructions[0].level == Level(VP().alpha(0.5), VP().sigma(0.5))
