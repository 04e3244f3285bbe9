from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from unveil.errors import UserError
from unveil.gaussian.denoiser import Denoiser
from unveil.gaussian.exact import Mixture
from unveil.gaussian.level import Level
from unveil.gaussian.output import OUTPUTS, to_output
from unveil.gaussian.path import DDPM, EDM, PATHS, RectifiedFlow, Shifted, Trigonometric, zero_terminal_snr
from unveil.gaussian.preconditioning import PRECONDITIONINGS, EDMPreconditioning

B = 5
LEVELS = torch.logspace(-1.5, 1.5, B, dtype=torch.float64)


@pytest.fixture
def mixture():
    generator = torch.Generator().manual_seed(1)
    return Mixture([0.3, 0.7], torch.randn(2, 1, 2, 2, dtype=torch.float64, generator=generator), [0.1, 0.3])


@pytest.fixture
def y():
    return torch.randn(B, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


class Wild(nn.Module):
    """A network with no meaning at all, which shows every digit of what it is given."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))

    def forward(self, x, noise):
        return torch.sin(self.weight * x) + torch.cos(0.01 * noise).reshape(-1, *[1] * (x.ndim - 1)) * x.square()


def at(path, n):
    return path.level(path.time(n))


def per_sample(values):
    return values[:, None, None, None]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("predicts", OUTPUTS)
def test_an_exact_network_is_the_exact_denoiser(mixture, y, name, predicts):
    """Whatever it predicts and under whatever path it was trained: on its own path, and on levels of no path at all."""
    path = PATHS[name]()
    denoiser = Denoiser(lambda x, t: to_output(predicts, x, mixture.denoise(x, path.level(t)), path, t), predicts, path)
    for level in (at(path, LEVELS.clamp(max=20)), Level(torch.rand(B).double() + 0.2, torch.rand(B).double() + 0.3)):
        torch.testing.assert_close(denoiser(y, level), mixture.denoise(y, level), rtol=0, atol=1e-12)
    torch.testing.assert_close(denoiser(y, Level(0.6, 0.7)), mixture.denoise(y, Level(0.6, 0.7)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", PRECONDITIONINGS)
def test_every_column_of_table_1_is_the_exact_denoiser(mixture, y, kind):
    """c_in and c_noise are undone by a network that knows its column; VP's and VE's time gives the level, EDM's too."""
    path = RectifiedFlow()
    column = PRECONDITIONINGS[kind](0.5)
    n = column.nearest(LEVELS) if kind == "iddpm" else LEVELS

    def network(x, noise):
        skip, out, into, expected = column.scalings(n)
        torch.testing.assert_close(noise, expected)
        y = x / per_sample(into)
        return (mixture.denoise(y, n) - per_sample(skip) * y) / per_sample(out)

    level = at(path, n)
    torch.testing.assert_close(Denoiser(network, "F", preconditioning=kind)(y, level), mixture.denoise(y, level), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("trained", "predicts"), [*itertools.product([*PATHS, "edm column", "vp column"], OUTPUTS)])
def test_trained_under_one_path_sampled_under_another(y, trained, predicts):
    """EDM's unification as an identity: with a plain network of any tensor, D is one function of (y, n). Every path that x = alpha y
    may come from gives the same D, digit for digit up to rounding, a level per sample and one for all alike."""
    column = trained.split()[0] if "column" in trained else None
    denoiser = Denoiser(Wild(), predicts, EDM() if column else PATHS[trained](), column)
    found = []
    for path in (EDM(), *(make() for make in PATHS.values()), Shifted(RectifiedFlow(), 3.0)):
        level = at(path, LEVELS)
        found.append(denoiser(per_sample(level.alpha) * y, level))
        alone = at(path, float(LEVELS[2]))
        torch.testing.assert_close(denoiser(alone.alpha * y[2:3], alone), found[-1][2:3], rtol=1e-9, atol=1e-11)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-8, atol=1e-10)


def test_whole_trajectories_agree_across_paths(y):
    """DDIM steps on each path, over the same noise levels, with a network trained on the discrete cosine table."""
    denoiser = Denoiser(Wild(), "v", DDPM("cosine"))
    levels = torch.logspace(1.5, -2, 15, dtype=torch.float64).tolist()

    def end(path):
        x = at(path, levels[0]).alpha * 10 * y
        for now, then in itertools.pairwise([at(path, n) for n in levels] + [Level(1.0, 0.0)]):
            denoised = denoiser(x, now)
            x = then.alpha * denoised + then.sigma / now.sigma * (x - now.alpha * denoised)
        return x

    expected = end(EDM())
    for path in (PATHS["vp"](), PATHS["sub-vp"](), RectifiedFlow(), Trigonometric(), DDPM()):
        torch.testing.assert_close(end(path), expected, rtol=1e-9, atol=1e-9)


def test_no_preconditioning_shows_the_network_its_own_path(y):
    seen = {}

    def network(x, noise):
        seen.update(x=x, noise=noise)
        return x

    path = DDPM()
    Denoiser(network, "eps", path)(y, path.level(400.0))
    assert torch.equal(seen["x"], y) and seen["noise"].tolist() == pytest.approx([400.0] * B, abs=1e-9)
    # the same noise level on EDM's path arrives at the network's own scale
    n = path.n(400.0)
    Denoiser(network, "eps", path, time_scale=0.5)(y, Level(1.0, n))
    torch.testing.assert_close(seen["x"], path.alpha(400.0) * y)
    assert seen["noise"].tolist() == pytest.approx([200.0] * B, abs=1e-9)
    # a time between steps is a time; beyond the trained range it is held, while the scale stays that of the level
    Denoiser(network, "x0", path)(y, Level(1.0, 1e-3))
    assert seen["noise"].tolist() == [0.0] * B
    torch.testing.assert_close(seen["x"], y / math.sqrt(1 + 1e-6))
    Denoiser(network, "x0", path)(y, Level(torch.ones(B).double(), torch.full((B,), 1000.0).double()))
    assert seen["noise"].tolist() == [999.0] * B


def test_outputs_are_free_of_the_preconditioning(mixture, y):
    """EDM's input scaling with eps as the output: c_in and c_noise of the column, D from eps."""

    def network(x, noise):
        n = torch.exp(4 * noise)
        y = x * per_sample(torch.sqrt(n.square() + 0.25))
        return (y - mixture.denoise(y, n)) / per_sample(n)

    level = at(RectifiedFlow(), LEVELS)
    denoiser = Denoiser(network, "eps", RectifiedFlow(), "edm")
    torch.testing.assert_close(denoiser(y, level), mixture.denoise(y, level), rtol=0, atol=1e-11)
    given = Denoiser(network, "eps", RectifiedFlow(), EDMPreconditioning(0.5))
    assert torch.equal(given(y, level), denoiser(y, level))


def test_alpha_0_is_exact_where_the_output_says_the_image(mixture, y):
    for predicts, path in (("flow", RectifiedFlow()), ("v", zero_terminal_snr(DDPM())), ("F", Trigonometric()), ("x0", RectifiedFlow())):
        denoiser = Denoiser(lambda x, t, p=path, o=predicts: to_output(o, x, mixture.denoise(x, p.level(t)), p, t), predicts, path)
        expected = mixture.denoise(y, Level(0.0, 1.0))
        torch.testing.assert_close(denoiser(y, path.level(path.t_max)), expected, rtol=0, atol=1e-12)
        tensors = Level(torch.zeros(B).double(), torch.ones(B).double())
        torch.testing.assert_close(denoiser(y, tensors), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("predicts", ["eps", "score"])
def test_zero_terminal_snr_is_refused_for_noise(predicts):
    for path in (zero_terminal_snr(DDPM()), Shifted(zero_terminal_snr(DDPM("cosine")), 2.0)):
        with pytest.raises(UserError, match=f"denoiser.predicts: got '{predicts}' with zero terminal SNR.*predict v, x0 or flow"):
            Denoiser(Wild(), predicts, path)


def test_zero_terminal_snr_is_refused_for_the_f_of_an_eps_network():
    path = zero_terminal_snr(DDPM())
    for kind in ("vp", "ve", "iddpm"):
        with pytest.raises(UserError, match="zero terminal SNR"):
            Denoiser(Wild(), "F", path, kind)
    for predicts in ("v", "x0", "flow", "F"):
        Denoiser(Wild(), predicts, path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"predicts": "epsilon"}, "denoiser.predicts: got 'epsilon'; did you mean 'eps'"),
        ({"preconditioning": "emd"}, "denoiser.preconditioning: got 'emd'; did you mean 'edm'"),
        ({"sigma_data": 0.0}, "denoiser.sigma_data: got 0.0"),
    ],
)
def test_what_is_unknown_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Denoiser(Wild(), **arguments)


@pytest.mark.parametrize(("predicts", "kind"), [("eps", None), ("score", None), ("F", "edm"), ("F", "vp"), ("v", "ve")])
def test_levels_that_cannot_be_answered_are_refused(y, predicts, kind):
    """eps at alpha = 0, and ln n at n = infinity: one line, and no silent nan."""
    with pytest.raises(UserError, match=r"sampler.grid: .*alpha = 0"):
        Denoiser(Wild(), predicts, RectifiedFlow(), kind)(y, Level(0.0, 1.0))


def test_outputs_of_a_wrong_shape_are_refused(y):
    with pytest.raises(UserError, match=r"denoiser.network: got an output of shape \(5, 2, 2, 2\) for an input of \(5, 1, 2, 2\)"):
        Denoiser(lambda x, noise: torch.cat([x, x], 1))(y, Level(1.0, 1.0))
    with pytest.raises(UserError, match=r"denoiser\.network"):
        Denoiser(lambda x, noise: x.repeat(1, 3, 1, 1), learned_variance=True)(y, Level(1.0, 1.0))


def test_golden_learned_variance(golden):
    """improved-diffusion's interpolated log variance, f log beta + (1 - f) log beta-tilde, from the second half of the channels."""
    arrays, config = golden("improved_diffusion")
    path, x, steps = DDPM("linear", config["T"]), arrays["outputs.linear.x_t"], arrays["inputs.t"]
    both = torch.cat([arrays["inputs.model_output"], arrays["inputs.var_values"]], 1)
    denoiser = Denoiser(lambda x, noise: both, "eps", path, learned_variance=True)
    level = path.level(steps.double())
    denoised, share = denoiser.with_variance(x, level)
    expected = {key: arrays[f"outputs.linear.EPSILON.LEARNED_RANGE.clip0.{key}"] for key in ("pred_xstart", "log_variance")}
    torch.testing.assert_close(denoised, expected["pred_xstart"], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(denoiser(x, level), denoised, rtol=0, atol=0)
    high = per_sample(path.betas[steps].log())
    low = per_sample(arrays["outputs.linear.posterior_log_variance_clipped"][steps])
    torch.testing.assert_close(share * high + (1 - share) * low, expected["log_variance"], rtol=1e-10, atol=1e-10)


def test_variance_that_is_not_learned_is_not_given(y):
    with pytest.raises(ValueError, match="learned_variance"):
        Denoiser(Wild()).with_variance(y, Level(1.0, 1.0))


def test_dtypes(y):
    """The state keeps its dtype, the network gets its own, and a time never falls below float32."""
    seen = []

    class Low(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones((), dtype=torch.bfloat16))

        def forward(self, x, noise):
            seen.append((x.dtype, noise.dtype, noise[0].item()))
            return x * self.weight

    path = DDPM()
    denoiser = Denoiser(Low(), "eps", path)
    level = path.level(torch.full((B,), 998.0).double())
    for state in (y, y.float(), y.bfloat16()):
        for where in (level, path.level(998.0)):
            assert denoiser(state, where).dtype == state.dtype
    assert {(dtype, noise) for dtype, noise, _ in seen} == {(torch.bfloat16, torch.float32)}
    assert all(time == pytest.approx(998, abs=1e-3) for _, _, time in seen)


def test_conditions_reach_the_network(y):
    denoiser = Denoiser(lambda x, noise, classes: per_sample(classes.double()) * torch.ones_like(x), "x0")
    assert denoiser(y, Level(1.0, 2.0), classes=torch.arange(B))[:, 0, 0, 0].tolist() == list(range(B))


def test_gradients_reach_network_and_state(y):
    denoiser = Denoiser(Wild(), "F", preconditioning="edm")
    for level in (Level(0.8, 0.6), Level(torch.full((B,), 0.8).double(), torch.full((B,), 0.6).double())):
        x = y.clone().requires_grad_()
        denoiser.zero_grad()
        denoiser(x, level).sum().backward()
        step = 1e-6
        slope = (denoiser(y + step, level) - denoiser(y - step, level)) / (2 * step)
        torch.testing.assert_close(x.grad, slope.detach(), rtol=1e-6, atol=1e-8)
        assert denoiser.network.weight.grad.abs() > 0


def test_what_is_remembered_is_right_after_copying(y):
    denoiser = Denoiser(Wild(), "eps", DDPM())
    level = Level(0.8, 0.6)
    before = denoiser(y, level)
    assert torch.equal(denoiser(y, level), before) and torch.equal(copy.deepcopy(denoiser)(y, level), before)
    assert list(denoiser.state_dict()) == ["network.weight"]
    for i in range(5000):
        denoiser.coefficients(Level(0.8, 0.6 + i * 1e-5))
    assert len(denoiser._remembered) <= 4096 and torch.equal(denoiser(y, level), before)
