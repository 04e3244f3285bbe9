from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from unveil.errors import UserError
from unveil.gaussian.path import DDPM, EDM, PATHS, VE, VP, Cosine, Level, Path, RectifiedFlow, Shifted, SubVP, Trigonometric

ALL = {
    **{name: make() for name, make in PATHS.items()},
    "shifted flow": Shifted(RectifiedFlow(), 3.0),
    "shifted vp": Shifted(VP(), 0.5),
    "shifted trigonometric": Shifted(Trigonometric(), 2.0),
}
VARIANCE_PRESERVING = ["ddpm", "vp", "cosine", "trigonometric", "shifted vp", "shifted trigonometric"]


@pytest.fixture(params=ALL)
def path(request) -> Path:
    return ALL[request.param]


def inside(path: Path, count: int = 41) -> torch.Tensor:
    """Times strictly inside the range; for the discrete path half-way between its steps, where it is smooth."""
    share = torch.linspace(0.013, 0.987, count, dtype=torch.float64)
    t = path.t_min + (path.t_max - path.t_min) * share
    return t.floor() + 0.5 if isinstance(path, DDPM) else t


def slope(function, t, h):
    """Fourth-order central difference."""
    return (8 * (function(t + h) - function(t - h)) - (function(t + 2 * h) - function(t - 2 * h))) / (12 * h)


def width(path: Path) -> float:
    return 1e-2 if path.t_max > 2 else 1e-4


def test_derivatives_are_those_of_alpha_and_sigma(path):
    t, h = inside(path), width(path)
    for value, derivative in ((path.alpha, path.alpha_dot), (path.sigma, path.sigma_dot)):
        expected = slope(value, t, h)
        torch.testing.assert_close(derivative(t), expected, rtol=1e-7, atol=1e-9 * (1 + float(expected.abs().max())))


def test_noise_level_is_sigma_over_alpha_and_rises(path):
    t = inside(path, 201)
    torch.testing.assert_close(path.n(t), path.sigma(t) / path.alpha(t), rtol=1e-13, atol=0)
    assert bool((path.n(t).diff() > 0).all())


def test_time_is_the_inverse_of_n(path):
    t = inside(path, 201)
    torch.testing.assert_close(path.time(path.n(t)), t, rtol=1e-12, atol=1e-13)
    n = torch.logspace(-7, 1.8, 60, dtype=torch.float64)
    torch.testing.assert_close(path.n(path.time(n)), n, rtol=1e-8 if isinstance(path, DDPM) else 1e-12, atol=0)


def test_drift_and_diffusion_are_those_of_the_marginals(path):
    """f = alpha' / alpha; g^2 = alpha^2 d(n^2) / dt, the noise that a step adds seen from the data (G3)."""
    t, h = inside(path), width(path)
    torch.testing.assert_close(path.drift(t), path.alpha_dot(t) / path.alpha(t), rtol=1e-11, atol=1e-12)
    expected = path.alpha(t).square() * slope(lambda s: path.n(s).square(), t, h)
    # far out n^2 goes through a pole, where a difference quotient is no longer a derivative
    smooth = path.n(t) < 30
    torch.testing.assert_close(path.diffusion2(t)[smooth], expected[smooth], rtol=2e-6, atol=1e-9)


def test_variance_obeys_the_forward_equation(path):
    """V' = 2 f V + g^2 for V = sigma^2, which is what the SDE of f and g says of the noise (G8 on a point mass)."""
    t = inside(path)
    variance_dot = 2 * path.sigma(t) * path.sigma_dot(t)
    torch.testing.assert_close(variance_dot, 2 * path.drift(t) * path.sigma(t).square() + path.diffusion2(t), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
def test_variance_preserving_paths_preserve_variance(name):
    path = ALL[name]
    t = inside(path)
    torch.testing.assert_close(path.alpha(t).square() + path.sigma(t).square(), torch.ones_like(t), rtol=1e-14, atol=0)
    torch.testing.assert_close(path.diffusion2(t), -2 * path.drift(t), rtol=1e-12, atol=0)


def test_closed_forms_of_g_squared():
    t = inside(VP())
    beta = 0.1 + 19.9 * t
    torch.testing.assert_close(VP().diffusion2(t), beta, rtol=1e-15, atol=0)
    torch.testing.assert_close(SubVP().diffusion2(t), beta * (1 - SubVP().alpha(t) ** 4), rtol=1e-11, atol=0)
    torch.testing.assert_close(VE().diffusion2(t), 2 * math.log(5000) * VE().sigma(t).square(), rtol=1e-14, atol=0)
    torch.testing.assert_close(RectifiedFlow().diffusion2(t), 2 * t / (1 - t), rtol=1e-13, atol=0)


def test_floats_and_tensors_agree(path):
    t = float(inside(path)[7])
    for name in ("alpha", "sigma", "alpha_dot", "sigma_dot", "n", "drift", "diffusion2"):
        number, tensor = getattr(path, name)(t), getattr(path, name)(torch.tensor([[t]], dtype=torch.float64))
        assert isinstance(number, float) and tensor.shape == (1, 1) and tensor.dtype == torch.float64
        assert number == pytest.approx(tensor.item(), rel=1e-15)
    assert path.alpha(torch.tensor([0.5])).dtype == torch.float64
    assert path.level(t) == Level(path.alpha(t), path.sigma(t)) and path.level(t).n == pytest.approx(path.n(t), rel=1e-13)


def test_data_end_has_no_noise(path):
    end = path.data_end
    assert path.level(end) == Level(1.0, 0.0) and path.n(end) == 0.0
    assert path.data_end <= path.t_min


def test_golden_ranges_of_the_sheet():
    """Table 2.1 of the reference sheet."""
    linear, cosine, vp = DDPM(), DDPM("cosine"), VP()
    assert float(linear.alphas_bar[-1]) == pytest.approx(4.036e-5, rel=1e-3)
    assert (linear.n(0.0), linear.n(999.0)) == pytest.approx((0.01, 157.41), rel=1e-4)
    assert (cosine.n(0.0), cosine.n(999.0)) == pytest.approx((0.00643, 2.03e4), rel=1e-3)
    assert (vp.n(1.0), vp.n(1e-3), vp.n(1e-5)) == pytest.approx((152.17, 0.010486, 0.0010005), rel=1e-4)
    assert VE().prior_std() == pytest.approx(50) and EDM().prior_std() == 80 and RectifiedFlow().prior_std() == 1


def test_small_noise_keeps_its_digits():
    """n(t) = sqrt(beta_min t) near the data; sqrt(1 - alpha^2) would be off in the eighth digit at 1e-12, and 0 at 1e-16."""
    for t in (1e-12, 1e-16):
        assert VP().sigma(t) == pytest.approx(math.sqrt(0.1 * t), rel=1e-10)
        assert SubVP().sigma(t) == pytest.approx(0.1 * t, rel=1e-10)
        assert VP().time(VP().n(t)) == pytest.approx(t, rel=1e-12)
        slope_at_0 = math.pi * math.tan(0.008 / 1.008 * math.pi / 2) / 1.008
        assert Cosine().sigma(t) == pytest.approx(math.sqrt(slope_at_0 * t), rel=1e-9)


def test_ends_are_exact():
    for path in (RectifiedFlow(), Trigonometric(), Shifted(RectifiedFlow(), 3.0), Shifted(Trigonometric(), 0.3)):
        assert path.level(1.0) == Level(0.0, 1.0) and path.n(1.0) == math.inf and path.time(math.inf) == 1.0
        assert path.level(1.0).n == math.inf
        assert math.isfinite(path.alpha_dot(1.0)) and path.alpha_dot(1.0) < 0
        assert math.isinf(path.drift(1.0)) and math.isinf(path.diffusion2(1.0))
    assert Cosine().time(math.inf) == 1.0 and Cosine().alpha(1.0) == 0.0
    assert VP().sigma_dot(0.0) == math.inf and VP().diffusion2(0.0) == 0.1
    assert Shifted(VP(), 0.5).diffusion2(0.0) == pytest.approx(0.025)


def test_rectified_flow_time_is_a_logistic_of_log_n():
    n = torch.logspace(-3, 3, 13, dtype=torch.float64)
    torch.testing.assert_close(torch.logit(RectifiedFlow().time(n)), torch.log(n), rtol=1e-12, atol=1e-12)


def test_shift_is_that_of_stable_diffusion_3():
    """t -> a t / (1 + (a - 1) t) on rectified flow is n -> a n, applied once (diffusers shifts its sigma_min twice: issue 13243)."""
    t, a = torch.linspace(0.0, 1.0, 33, dtype=torch.float64), 3.0
    shifted = Shifted(RectifiedFlow(), a)
    torch.testing.assert_close(shifted.sigma(t), a * t / (1 + (a - 1) * t), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(shifted.sigma_dot(t), a / (1 + (a - 1) * t).square(), rtol=1e-13, atol=0)
    assert shifted.sigma(0.001) == pytest.approx(0.00299, abs=5e-6)
    torch.testing.assert_close(Shifted(shifted, 1 / a).sigma(t), t, rtol=1e-13, atol=1e-15)


def test_a_shifted_table_goes_on_above_its_own_last_level():
    shifted = Shifted(DDPM(), 3.0)
    assert shifted.n(999.0) == pytest.approx(3 * DDPM().n(999.0), rel=1e-13)
    level = shifted.level(999.0)
    assert level.n == pytest.approx(3 * DDPM().n(999.0), rel=1e-11) and math.hypot(*level) == pytest.approx(1, rel=1e-14)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan])
def test_a_shift_that_is_none_is_refused(factor):
    with pytest.raises(UserError, match=r"path\.shift: got .*above 0"):
        Shifted(VP(), factor)


@pytest.mark.parametrize("name", ["vp", "subvp", "ve"])
def test_golden_score_sde(golden, name):
    """Song's SDEs: mean and standard deviation of x_t, drift and diffusion. His VE has sigma_min at t = 0, as ours has."""
    arrays, config = golden("score_sde")
    kind = {"vp": VP, "subvp": SubVP, "ve": VE}[name]
    path, x, t = kind(**config[name]), arrays["inputs.x"], arrays["inputs.t"]
    per_image = t[:, None, None, None]
    expect = {key: arrays[f"outputs.{name}.{key}"] for key in ("mean", "std", "drift", "diffusion")}
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(path.alpha(per_image) * x, expect["mean"], **close)
    torch.testing.assert_close(path.sigma(t), expect["std"], **close)
    torch.testing.assert_close(path.drift(per_image) * x, expect["drift"], **close)
    torch.testing.assert_close(path.diffusion2(t).sqrt(), expect["diffusion"], **close)


@pytest.mark.parametrize("name", ["vp", "subvp", "ve"])
def test_golden_prior(golden, name):
    """log density of N(0, sigma_max^2) for VE and N(0, 1) otherwise: Song's sub-VP and VP take 1 for sigma(1)."""
    arrays, _ = golden("score_sde")
    z = arrays["inputs.x"].flatten(1)
    std = VE().prior_std() if name == "ve" else 1.0
    log_density = -0.5 * (z / std).square().sum(1) - z.shape[1] * math.log(std * math.sqrt(2 * math.pi))
    np.testing.assert_allclose(log_density, arrays[f"outputs.{name}.prior_logp"], rtol=1e-10)
    assert {"vp": VP(), "subvp": SubVP(), "ve": VE()}[name].prior_std() == pytest.approx(std, abs=1e-4)


def test_golden_edm_losses(golden):
    """The noise levels of EDM's three losses: n(t) of VP at its times, and of VE from 0.02 to 100."""
    arrays, config = golden("edm_losses")
    vp, ve = config["vp"], config["ve"]
    path = VP(vp["beta_min"], vp["beta_min"] + vp["beta_d"])
    t = 1 + arrays["inputs.vp.draw"] * (vp["epsilon_t"] - 1)
    torch.testing.assert_close(path.n(t), arrays["outputs.vp.sigma"], rtol=1e-10, atol=0)
    n = VE(ve["sigma_min"], ve["sigma_max"]).n(arrays["inputs.ve.draw"])
    torch.testing.assert_close(n, arrays["outputs.ve.sigma"], rtol=1e-10, atol=0)


@pytest.mark.parametrize("count", [18, 40])
def test_golden_levels_of_edms_vp_grid(golden, count):
    """EDM's VP grid: t linear from 1 to 1e-3. 1e-9: their last digits go in sqrt(exp(...) - 1)."""
    arrays, _ = golden("edm_samplers")
    t = torch.linspace(1, 1e-3, count, dtype=torch.float64)
    torch.testing.assert_close(VP().n(t), arrays[f"outputs.sigma_steps.vp_N{count}"], rtol=1e-9, atol=0)


@pytest.mark.parametrize("case", ["loss", "reflow_uniform", "reflow_t0", "reflow_t1", "reflow_4"])
def test_golden_rectified_flow(golden, case):
    """x_t of the reference at 1 - t: its time runs from noise (z0) to data. A reflow pair is interpolated like any other."""
    arrays, _ = golden("rectified_flow")
    noise = arrays["inputs.loss.z0" if case == "loss" else "inputs.z0"]
    level = RectifiedFlow().level(1 - arrays[f"outputs.{case}.t"][:, None, None, None])
    torch.testing.assert_close(
        level.alpha * arrays["inputs.data"] + level.sigma * noise, arrays[f"outputs.{case}.x_t"], rtol=1e-10, atol=1e-10
    )


def test_a_path_of_ones_own_needs_six_formulas():
    """EDM's other reading of VE, n = sqrt(t), as a user would write it."""

    @dataclass(frozen=True)
    class Heat(Path):
        t_min: float = 0.02**2
        t_max: float = 100.0**2

        def _n(self, t):
            return t.sqrt()

        def _time(self, n):
            return n.square()

        def _alpha(self, t):
            return torch.ones_like(t)

        _sigma = _n

        def _alpha_dot(self, t):
            return torch.zeros_like(t)

        def _sigma_dot(self, t):
            return 0.5 / t.sqrt()

    assert Heat().diffusion2(7.0) == pytest.approx(1.0) and Heat().drift(7.0) == 0.0
    assert Shifted(Heat(), 2.0).diffusion2(7.0) == pytest.approx(4.0)
