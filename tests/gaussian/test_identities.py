"""G1 to G5 of the reference sheet, and the probability flow from first principles, on a mixture that is known in closed form.

The derivation: (1) along x_t = alpha x0 + sigma eps a sample moves at alpha' x0 + sigma' eps; averaged over all samples that pass through
x, that is v(x, t) = alpha' D + sigma' e. (2) Mass that moves with v obeys the continuity equation, so the ODE dx/dt = v keeps all the
marginals p_t. (3) v = f x - g^2 score / 2, the form of Song et al. 2021. (4) Along the ODE log p_t changes by -div v, and a volume by its
exponential: the log-determinant of the flow map's Jacobian is the change of log density. (5) In y = x / alpha and n = sigma / alpha all of
this is one ODE, dy/dn = (y - D) / n, whatever the path.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from unveil.gaussian.denoiser import Denoiser
from unveil.gaussian.exact import Gaussian, Mixture
from unveil.gaussian.level import Level
from unveil.gaussian.output import OUTPUTS, from_output, to_output
from unveil.gaussian.path import DDPM, EDM, PATHS, VE, VP, RectifiedFlow, Shifted, SubVP, zero_terminal_snr

ALL = {
    **{name: make() for name, make in PATHS.items()},
    "shifted flow": Shifted(RectifiedFlow(), 3.0),
    "zero terminal snr": zero_terminal_snr(DDPM()),
}
LEVELS = torch.tensor([0.05, 0.2, 0.7, 2.0, 9.0], dtype=torch.float64)

PLANE = Mixture(
    [0.2, 0.5, 0.3],
    [[1.2, -0.4], [-0.8, 0.6], [0.1, 1.5]],
    torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.15, -0.05], [-0.05, 0.4]], [[0.05, 0.0], [0.0, 0.1]]]),
)
LINE = Mixture([0.3, 0.5, 0.2], [[-1.5], [0.4], [1.1]], [0.04, 0.09, 0.3])


def places(path, seed=0):
    """Times of the five levels and a state drawn from p_t at each."""
    t = path.time(LEVELS).clone()
    alpha, sigma = path.level(t)
    noise = torch.randn(len(t), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return t, alpha[:, None] * PLANE.sample(len(t), seed) + sigma[:, None] * noise


def velocity(mixture, path, x, t):
    return to_output("flow", x, mixture.denoise(x, path.level(t)), path, t)


def divergence(field, x):
    """Sum of d field_i / dx_i, by exact derivatives: samples do not mix."""
    parts = [torch.autograd.grad(field[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(x.shape[1])]
    return torch.stack(parts).sum(0)


def runge_kutta(field, x, times):
    for t, s in itertools.pairwise(times):
        h = s - t
        a = field(x, t)
        b = field(x + h / 2 * a, t + h / 2)
        c = field(x + h / 2 * b, t + h / 2)
        d = field(x + h * c, s)
        x = x + h / 6 * (a + 2 * b + 2 * c + d)
    return x


@pytest.mark.parametrize("name", ALL)
def test_velocity_is_the_mean_of_the_samples_own(name):
    """alpha' D + sigma' e = f x - g^2 score / 2."""
    path = ALL[name]
    t, x = places(path)
    drift, diffusion2 = path.drift(t)[:, None], path.diffusion2(t)[:, None]
    song = drift * x - diffusion2 / 2 * PLANE.score(x, path.level(t))
    torch.testing.assert_close(velocity(PLANE, path, x, t), song, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_continuity_equation(name):
    """d log p / dt + v . grad log p + div v = 0, by exact derivatives of the closed-form density in t and x."""
    path = ALL[name]
    t, x = (value.requires_grad_() for value in places(path))
    log_p = PLANE.log_density(x, path.level(t))
    in_t, in_x = torch.autograd.grad(log_p.sum(), (t, x), create_graph=True)
    v = velocity(PLANE, path, x, t)
    transport, spread = (v * in_x).sum(1), divergence(v, x)
    size = in_t.abs() + transport.abs() + spread.abs()
    assert bool(((in_t + transport + spread).abs() < 1e-9 * size).all())


@pytest.mark.parametrize("name", ALL)
def test_fokker_planck_equation(name):
    """dp/dt = -div(f x p) + g^2 / 2 laplacian p: f and g of the path are those of an SDE that has its marginals."""
    path = ALL[name]
    t, x = (value.requires_grad_() for value in places(path))
    p = PLANE.log_density(x, path.level(t)).exp()
    in_t, gradient = torch.autograd.grad(p.sum(), (t, x), create_graph=True)
    f, g2 = path.drift(t.detach()), path.diffusion2(t.detach())
    drifted = divergence(f[:, None] * x * p[:, None], x)
    diffused = g2 / 2 * divergence(gradient, x)
    size = in_t.abs() + drifted.abs() + diffused.abs()
    assert bool(((in_t + drifted - diffused).abs() < 1e-8 * size).all())


@pytest.mark.parametrize("path", [VE(), EDM()])
def test_heat_equation(path):
    """Where alpha = 1, p diffuses as heat does, with n^2 for the time: dp / d(n^2) = laplacian p / 2."""
    t, x = (value.requires_grad_() for value in places(path))
    p = PLANE.log_density(x, path.level(t)).exp()
    in_t, gradient = torch.autograd.grad(p.sum(), (t, x), create_graph=True)
    heat = in_t / (2 * path.n(t.detach()) * path.sigma_dot(t.detach()))
    torch.testing.assert_close(heat, divergence(gradient, x) / 2, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("path", [VP(), SubVP(), RectifiedFlow(), VE()])
def test_log_determinant_is_the_change_of_log_density(path):
    """Solve the ODE from n = 0.1 to n = 5 and differentiate the solution: log |det J| = log p_start(x) - log p_end(map(x))."""
    start, end = path.time(0.1), path.time(5.0)
    x = PLANE.sample(3, seed=4).requires_grad_()
    times = torch.linspace(0, 1, 301, dtype=torch.float64).square() * (end - start) + start
    y = runge_kutta(lambda x, t: velocity(PLANE, path, x, t), x, times.tolist())
    jacobian = torch.stack([torch.autograd.grad(y[:, i].sum(), x, retain_graph=True)[0] for i in range(2)], 1)
    change = PLANE.log_density(x, path.level(start)) - PLANE.log_density(y, path.level(end))
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, change, rtol=0, atol=1e-6)


@pytest.mark.parametrize("path", [VP(), SubVP(), RectifiedFlow(), VE()])
def test_log_determinant_of_the_exact_map_of_a_gaussian(path):
    """The same with no solver at all, from pure noise where the path has it."""
    gaussian = Gaussian([0.3, -1.0], torch.tensor([[0.5, 0.2], [0.2, 0.3]]))
    start, end = path.level(path.t_max), path.level(path.t_min)
    x = torch.tensor([[0.4, -0.9]], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: gaussian.flow_map(x, start, end), x)[0, :, 0]
    change = gaussian.log_density(x, start) - gaussian.log_density(gaussian.flow_map(x, start, end), end)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, change[0], rtol=1e-11, atol=1e-11)


def test_flow_in_one_dimension_is_the_monotone_map():
    """In one dimension the flow cannot reorder mass: the distribution function is constant along it."""

    def cumulative(x, n):
        z = (x - LINE._means_KD.T) / (LINE._spectrum_KD.T + n**2).sqrt()
        return (LINE._log_weights_K.exp() * torch.special.ndtr(z)).sum(1)

    y = torch.tensor([[-30.0], [-4.0], [1.0], [25.0]], dtype=torch.float64)
    levels = torch.logspace(1.3, -2, 400, dtype=torch.float64).tolist()
    end = runge_kutta(lambda y, n: (y - LINE.denoise(y, n)) / n, y, levels)
    torch.testing.assert_close(cumulative(end, levels[-1]), cumulative(y, levels[0]), rtol=1e-6, atol=1e-9)


def test_flow_map_solves_the_ode():
    """G1 against a solver."""
    gaussian = Gaussian([0.3, -1.0], torch.tensor([[0.5, 0.2], [0.2, 0.3]]))
    y = torch.tensor([[8.0, -3.0], [0.2, 5.0]], dtype=torch.float64)
    levels = torch.logspace(1, -3, 800, dtype=torch.float64).tolist()
    end = runge_kutta(lambda y, n: (y - gaussian.denoise(y, n)) / n, y, levels)
    torch.testing.assert_close(end, gaussian.flow_map(y, levels[0], levels[-1]), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("predicts", OUTPUTS)
def test_conversions_round_trip_on_the_mixture(name, predicts):
    """G3, with D the exact one."""
    path = ALL[name]
    t, x = places(path)
    denoised = PLANE.denoise(x, path.level(t))
    output = to_output(predicts, x, denoised, path, t)
    torch.testing.assert_close(from_output(predicts, x, output, path, t), denoised, rtol=1e-12, atol=1e-12)


def test_one_first_order_step_in_many_guises():
    """G4: DDIM, Euler in n, DPM-Solver++ of order 1 and Euler in rectified flow's time are the same step to rounding."""
    vp, flow = VP(), RectifiedFlow()
    levels = torch.logspace(1.5, -2, 12, dtype=torch.float64).tolist()
    y0 = torch.tensor([[20.0, -31.0], [5.0, 40.0]], dtype=torch.float64)

    def ddim(x, now, then):
        denoised = PLANE.denoise(x, now)
        return then.alpha * denoised + then.sigma * (x - now.alpha * denoised) / now.sigma

    def dpm(x, now, then):
        h = math.log(then.alpha / then.sigma) - math.log(now.alpha / now.sigma)
        return then.sigma / now.sigma * x - then.alpha * math.expm1(-h) * PLANE.denoise(x, now)

    def on_path(step, path):
        places = [path.level(path.time(n)) for n in levels]
        x = places[0].alpha * y0
        for now, then in itertools.pairwise(places):
            x = step(x, now, then)
        return x / places[-1].alpha

    in_n = y0
    for now, then in itertools.pairwise(levels):
        in_n = in_n + (then - now) * (in_n - PLANE.denoise(in_n, now)) / now

    in_t = flow.alpha(flow.time(levels[0])) * y0
    for now, then in itertools.pairwise(flow.time(torch.tensor(levels, dtype=torch.float64)).tolist()):
        in_t = in_t + (then - now) * velocity(PLANE, flow, in_t, now)
    in_t = in_t / flow.alpha(flow.time(levels[-1]))

    for other in (on_path(ddim, vp), on_path(ddim, SubVP()), on_path(dpm, vp), on_path(dpm, VE()), in_t):
        torch.testing.assert_close(other, in_n, rtol=0, atol=2e-14)

    naive = vp.alpha(vp.time(levels[0])) * y0
    for now, then in itertools.pairwise(vp.time(torch.tensor(levels, dtype=torch.float64)).tolist()):
        naive = naive + (then - now) * velocity(PLANE, vp, naive, now)
    assert float((naive / vp.alpha(vp.time(levels[-1])) - in_n).abs().max()) > 1e-2


def test_all_flows_end_at_one_place():
    """G5: each path's own ODE, solved in its own time from the same y, ends at the same y."""
    y0 = torch.tensor([[1.1, -7.0], [-4.0, 2.5]], dtype=torch.float64)
    levels = torch.logspace(math.log10(8), math.log10(0.1), 401, dtype=torch.float64)
    ends = []
    for path in (EDM(), VE(), VP(), SubVP(), RectifiedFlow(), Shifted(RectifiedFlow(), 3.0), PATHS["cosine"]()):
        times = path.time(levels).tolist()
        x = runge_kutta(lambda x, t, path=path: velocity(PLANE, path, x, t), path.alpha(times[0]) * y0, times)
        ends.append(x / path.alpha(times[-1]))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=0, atol=1e-9)


def test_a_network_trained_under_one_path_follows_the_flow_of_another():
    """The unification end to end: a velocity network of rectified flow, solved on VP's ODE through ``Denoiser``."""
    flow, vp = RectifiedFlow(), VP()
    gaussian = Gaussian([0.3, -1.0], torch.tensor([[0.5, 0.2], [0.2, 0.3]]))
    denoiser = Denoiser(lambda x, t: to_output("flow", x, gaussian.denoise(x, flow.level(t)), flow, t), "flow", flow)
    x = torch.tensor([[0.5, -0.2], [-1.4, 2.0]], dtype=torch.float64)
    times = vp.time(torch.logspace(2, -2, 600, dtype=torch.float64)).tolist()
    end = runge_kutta(lambda x, t: to_output("flow", x, denoiser(x, vp.level(t)), vp, t), x, times)
    torch.testing.assert_close(end, gaussian.flow_map(x, vp.level(times[0]), vp.level(times[-1])), rtol=1e-7, atol=1e-7)


def test_level_of_a_batch_is_a_level_per_sample():
    x = PLANE.sample(4)
    level = Level(torch.full((4,), 0.8, dtype=torch.float64), torch.full((4,), 0.6, dtype=torch.float64))
    torch.testing.assert_close(PLANE.denoise(x, level), PLANE.denoise(x, Level(0.8, 0.6)), rtol=1e-15, atol=0)
