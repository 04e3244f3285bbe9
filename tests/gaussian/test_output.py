from __future__ import annotations

import math

import pytest
import torch

from unveil.gaussian.output import OUTPUTS, Point, from_output, inverse_row, row, target, to_output
from unveil.gaussian.path import DDPM, EDM, PATHS, RectifiedFlow, Trigonometric, zero_terminal_snr

B = 6


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(B, 2, 3, dtype=torch.float64, generator=generator) for _ in range(2))


def times(path):
    return torch.linspace(path.t_min, path.t_max, B + 2, dtype=torch.float64)[1:-1]


def mixed(path, t, x0, eps):
    level = path.level(t[:, None, None])
    return level.alpha * x0 + level.sigma * eps


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("predicts", OUTPUTS)
def test_every_output_round_trips(pair, name, predicts):
    """G3: D -> output -> D, and the sample's own pair -> target -> x0, for a time per sample."""
    path, (x0, eps) = PATHS[name](), pair
    t = times(path)
    x = mixed(path, t, x0, eps)
    there = to_output(predicts, x, x0, path, t)
    scale = float(1 + path.n(t).max())
    torch.testing.assert_close(from_output(predicts, x, there, path, t), x0, rtol=0, atol=1e-14 * scale)
    torch.testing.assert_close(there, target(predicts, x0, eps, path, t), rtol=1e-9, atol=1e-12)


def test_targets_are_the_papers_own(pair):
    x0, eps = pair
    flow, cosine = RectifiedFlow(), Trigonometric()
    t = times(flow)
    alpha, sigma = (value[:, None, None] for value in cosine.level(t))
    torch.testing.assert_close(target("flow", x0, eps, flow, t), eps - x0)  # Liu et al.'s X1 - X0 with time turned round
    torch.testing.assert_close(target("v", x0, eps, cosine, t), alpha * eps - sigma * x0)
    torch.testing.assert_close(target("score", x0, eps, cosine, t), -eps / sigma)
    # v is the velocity of the trigonometric path per unit of angle
    torch.testing.assert_close(target("flow", x0, eps, cosine, t), math.pi / 2 * target("v", x0, eps, cosine, t))
    # and minus EDM's F for data of standard deviation 1
    torch.testing.assert_close(target("F", x0, eps, cosine, t, sigma_data=1.0), -target("v", x0, eps, cosine, t))


def test_f_is_edms_own_target(pair):
    """(y0 - c_skip y) / c_out (EDM, eq. 8)."""
    x0, eps = pair
    t, s = torch.tensor([0.01, 0.1, 0.5, 1.0, 10.0, 80.0], dtype=torch.float64), 0.37
    n = t[:, None, None]
    skip, out = s**2 / (n**2 + s**2), n * s / torch.sqrt(n**2 + s**2)
    torch.testing.assert_close(target("F", x0, eps, EDM(), t, s), (x0 - skip * (x0 + n * eps)) / out, rtol=1e-9, atol=1e-12)


def test_target_variance_of_f_is_one():
    """With data of standard deviation sigma_data, at every level and scale."""
    for path in (EDM(), RectifiedFlow(), DDPM()):
        p, q = row("F", Point.of(path, times(path)), sigma_data=0.3)
        torch.testing.assert_close((0.3 * p).square() + q.square(), torch.ones_like(p), rtol=1e-13, atol=0)


def test_golden_rectified_flow_velocity(golden):
    """The reference's velocity is D - e: time runs the other way. Its one Euler step is t of 1 / N from velocities at
    eps + i (1 - eps) / N, so that time and state part by eps; here its states and times are taken as they are."""
    arrays, config = golden("rectified_flow")
    x, t, path = arrays["outputs.euler.x"], arrays["outputs.euler.t"], RectifiedFlow()
    mean, std = arrays["inputs.data_mean"], arrays["inputs.data_std"]
    for i in range(config["sample_N"]):
        ours = 1 - float(t[i])
        level = path.level(ours)
        denoised = mean + level.alpha * std**2 / (level.alpha**2 * std**2 + level.sigma**2) * (x[i] - level.alpha * mean)
        velocity = -to_output("flow", x[i], denoised, path, ours)
        torch.testing.assert_close(x[i] + velocity / config["sample_N"], x[i + 1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["vp", "subvp", "ve"])
def test_golden_score(golden, name):
    """Song's score of a Gaussian data set is the score output of its denoiser."""
    arrays, config = golden("score_sde")
    path = {"vp": PATHS["vp"], "subvp": PATHS["sub-vp"], "ve": PATHS["ve"]}[name](**config[name])
    x, t, mean, std = (arrays[f"inputs.{key}"] for key in ("x", "t", "data_mean", "data_std"))
    alpha, sigma = path.level(t[:, None, None, None])
    denoised = mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean)
    score = arrays[f"outputs.{name}.score"]
    # a score made of D has its rounding divided by sigma^2; exact.Gaussian.score, which is not, is held to 1e-10
    atol = 1e-10 + 1e-15 / float(sigma.min()) ** 2
    torch.testing.assert_close(to_output("score", x, denoised, path, t), score, rtol=1e-10, atol=atol)
    torch.testing.assert_close(from_output("score", x, score, path, t), denoised, rtol=1e-10, atol=1e-9)


def test_golden_learned_eps(golden):
    """improved-diffusion's pred_xstart from eps and from x0."""
    arrays, config = golden("improved_diffusion")
    path = DDPM("linear", config["T"])
    x, output, t = arrays["outputs.linear.x_t"], arrays["inputs.model_output"], arrays["inputs.t"].double()
    for predicts, name in (("eps", "EPSILON"), ("x0", "START_X")):
        expected = arrays[f"outputs.linear.{name}.FIXED_SMALL.clip0.pred_xstart"]
        torch.testing.assert_close(from_output(predicts, x, output, path, t), expected, rtol=1e-10, atol=1e-10)


def test_ends_that_are_defined_are_exact(pair):
    x0, eps = pair
    terminal = zero_terminal_snr(DDPM())
    for predicts, path, t in (("v", terminal, 999.0), ("flow", RectifiedFlow(), 1.0), ("F", Trigonometric(), 1.0), ("x0", terminal, 999.0)):
        # at alpha = 0 the state is the noise: the output alone decides D
        output = target(predicts, x0, eps, path, t)
        torch.testing.assert_close(from_output(predicts, eps, output, path, t), x0, rtol=1e-12, atol=1e-12)
    for predicts in ("x0", "v", "flow", "F"):
        output = target(predicts, x0, eps, RectifiedFlow(), 0.0)
        torch.testing.assert_close(from_output(predicts, x0, output, RectifiedFlow(), 0.0), x0, rtol=0, atol=0)


def test_eps_at_alpha_0_is_not_finite():
    a, b = inverse_row("eps", Point.of(RectifiedFlow(), 1.0))
    assert not math.isfinite(a) and not math.isfinite(b)


def test_dtype_is_that_of_the_data(pair):
    x0, eps = (value.float() for value in pair)
    t = times(RectifiedFlow())
    assert target("flow", x0, eps, RectifiedFlow(), t).dtype == torch.float32
    assert to_output("v", x0, eps, RectifiedFlow(), 0.5).dtype == torch.float32
