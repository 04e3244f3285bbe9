"""The loop: rows that no neighbour changes, tapes that compute what the solvers' functions say, and images at the end."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from unveil.errors import UserError
from unveil.gaussian.denoiser import Denoiser
from unveil.gaussian.exact import Gaussian, Mixture
from unveil.gaussian.grid import Grid, karras, linspace, trailing, uniform
from unveil.gaussian.path import DDPM, EDM, VP, RectifiedFlow, zero_terminal_snr
from unveil.gaussian.sampler import Sampler
from unveil.gaussian.solver import Past, Solver, Step
from unveil.gaussian.solvers import SOLVERS, ancestral, ddim, dpmpp_2m, euler, heun
from unveil.gaussian.tape import Raw

MIXTURE = Mixture([0.4, 0.6], [[-0.8, 0.2, 0.5], [0.6, -0.4, 0.1]], 0.05)
PLANNED = {name: one for name, one in SOLVERS.items() if isinstance(one, Solver)}
VARIANTS = [
    *((name, {}) for name in PLANNED),
    ("ddim", {"eta": 0.7}),
    ("heun", {"churn": 5.0, "churn_min": 0.1, "churn_max": 20.0}),
    ("midpoint", {"clock": "time"}),
    ("ancestral", {"variance": "large"}),
    ("unipc", {"order": 3}),
    ("adams-bashforth", {"order": 3}),
    ("exponential-ab", {"order": 3}),
    ("predictor-corrector", {"corrections": 2}),
    ("sde-2m", {"eta": 0.4}),
]
variants = pytest.mark.parametrize(
    ("name", "options"), VARIANTS, ids=[f"{name}-{'-'.join(map(str, options.values()))}" for name, options in VARIANTS]
)
GRID = karras(VP(), 7, n_min=0.02, n_max=40.0)


def sampler(name, options, denoiser=MIXTURE.denoise, grid=GRID, **settings):
    return Sampler(denoiser, grid, PLANNED[name], **{"dtype": torch.float64, **settings}, **options)


class Network(nn.Module):
    """Small, smooth, and a different answer for every input, time and condition."""

    def __init__(self, seed: int = 0, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.inner, self.outer = nn.Linear(5, 16).double(), nn.Linear(16, channels).double()

    def forward(self, x: Tensor, noise: Tensor, shift: Tensor | None = None) -> Tensor:
        extra = torch.zeros_like(noise) if shift is None else shift.to(x)
        return self.outer(torch.tanh(self.inner(torch.cat([x, torch.log1p(noise.abs())[:, None].to(x), extra[:, None].to(x)], 1))))


# --- one tape, one function


@variants
def test_a_tape_computes_what_the_function_says(name, options):
    """The plain twin: the solver's own function on tensors, step after step, with the history as it left it."""
    solver, fast = PLANNED[name], sampler(name, options)
    state, values = fast.begin((2, 3), [3, 4]), solver.options(**options)
    slow, past, noise = state.x, (), Sampler(MIXTURE.denoise, GRID, ancestral, dtype=torch.float64).begin((2, 3), [3, 4]).noise
    for t, s in zip(GRID.instants, GRID.instants[1:], strict=False):
        kept = []
        parts = MIXTURE.denoise, noise.draw, lambda low, high: None, lambda x: x, lambda *vectors, to=kept: to.extend(vectors)
        step = Step(GRID.path, t, s, slow, past, GRID.steps, *parts)
        slow = solver.function(step, **values)
        past = (Past(t, tuple(kept)), *past)
        torch.testing.assert_close(fast.step(state).x, slow, rtol=1e-10, atol=1e-10)


OUTPUTS = [("eps", VP()), ("x0", VP()), ("v", VP()), ("score", VP()), ("flow", RectifiedFlow()), ("F", EDM())]


@variants
def test_a_fused_network_samples_the_same(name, options):
    """The denoiser's linear map inside the coefficients, and out of them."""
    denoiser = Denoiser(Network(), "v", VP())
    fused, plain = sampler(name, options, denoiser), sampler(name, options, lambda x, level: denoiser(x, level))
    assert isinstance(next(i for i in fused.tapes[0].instructions if isinstance(i, Raw)), Raw)
    assert not any(isinstance(i, Raw) for i in plain.tapes[0].instructions)
    first, second = fused.begin((3, 3), range(3)), plain.begin((3, 3), range(3))
    while first.live:
        a, b = fused.step(first), plain.step(second)
        torch.testing.assert_close(a.x, b.x, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(a.denoised(), b.denoised(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("predicts", "path"), OUTPUTS, ids=[p for p, _ in OUTPUTS])
@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp-2m"])
def test_every_output_is_fused(predicts, path, name):
    denoiser = Denoiser(Network(), predicts, path)
    found, expected = (sampler(name, {}, one).sample((2, 3), [1, 2]) for one in (denoiser, lambda x, level: denoiser(x, level)))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_rectified_flow_is_one_pass_a_step():
    """x + (s - t) u, and nothing else: the solver's and the denoiser's maps cancel."""
    steps = Sampler(Denoiser(lambda x, t: x, "flow", RectifiedFlow()), uniform(RectifiedFlow(), 4), euler).tapes
    for tape, t, s in zip(steps[:-1], uniform(RectifiedFlow(), 4).times, uniform(RectifiedFlow(), 4).times[1:], strict=False):
        assert tape.result[0] == ("x", 1.0)
        assert dict(tape.result)["F0"] == pytest.approx(s - t)


# --- rows


@variants
def test_a_sample_is_the_same_alone_and_in_a_batch(name, options):
    ours = sampler(name, options)
    together = ours.sample((4, 3), [11, 12, 13, 14])
    for row, seed in enumerate([11, 12, 13, 14]):
        torch.testing.assert_close(ours.sample((1, 3), [seed])[0], together[row], rtol=1e-11, atol=1e-11)


@variants
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_rows_at_different_steps_go_on_as_they_would_have(name, options, fused):
    """Split, joined, behind and ahead of each other: requests are numbered on, and each ends where it would alone."""
    if fused:
        denoiser = Denoiser(Network(), "v", VP())
    ours = sampler(name, options, denoiser if fused else MIXTURE.denoise)
    straight = ours.sample((4, 3), [1, 2, 3, 4])
    state = ours.begin((2, 3), [1, 2])
    ours.step(state)
    ours.step(state)
    first, second = state.select([0]), state.select([1])
    ours.step(second)
    joined = second.join(first).join(ours.begin((2, 3), [3, 4]))
    ends = {}
    while joined.live:
        snapshot = ours.step(joined)
        ends.update({r: x for r, x, f in zip(snapshot.requests, snapshot.x, snapshot.final, strict=True) if f})
    assert sorted(ends) == [1, 2, 4, 5]
    for request, row in ((1, 1), (2, 0), (4, 2), (5, 3)):
        torch.testing.assert_close(ends[request], straight[row], rtol=1e-9, atol=1e-9)


def test_rows_at_different_steps_share_calls_of_the_network():
    calls = []

    def denoise(x, level):
        calls.append(len(x))
        return MIXTURE.denoise(x, level)

    ours = sampler("dpmpp-2m", {}, denoise)
    state = ours.begin((2, 3), [0, 1])
    ours.step(state)
    ours.step(state)
    joined = state.join(ours.begin((3, 3), [2, 3, 4]))
    for _ in range(2):
        calls.clear()
        ours.step(joined)
        assert calls == [5]  # one needs its history, the other has none yet


def test_conditions_go_with_their_rows():
    denoiser = Denoiser(Network(), "v", VP())
    ours = sampler("heun", {}, denoiser)
    shift = torch.tensor([0.0, 1.0, -2.0])
    together = ours.sample((3, 3), [5, 5, 5], shift=shift)
    assert (together[0] - together[1]).abs().max() > 1e-3
    state = ours.begin((3, 3), [5, 5, 5], shift=shift)
    ours.step(state)
    end = ours.finish(state.select([2, 0]))
    torch.testing.assert_close(end, together[[0, 2]], rtol=1e-10, atol=1e-10)  # in the order of requests


def test_a_snapshot_never_changes():
    for name in ("ddim", "dpmpp-3m", "unipc", "predictor-corrector"):
        ours = sampler(name, {}, Denoiser(Network(), "v", VP()))
        state = ours.begin((2, 3), [0, 1])
        shots = [ours.step(state) for _ in range(GRID.steps)]
        again = sampler(name, {}, Denoiser(Network(), "v", VP()))
        state = again.begin((2, 3), [0, 1])
        for shot in shots:
            now = again.step(state)
            assert torch.equal(shot.x, now.x) and torch.equal(shot.denoised(), now.denoised())
            assert shot.requests == [0, 1] and shot.final == [shot.step == GRID.steps] * 2


@variants
def test_the_last_step_is_the_denoised_image(name, options):
    ours = sampler(name, options)
    state = ours.begin((2, 3), [0, 1])
    while state.live:
        snapshot = ours.step(state)
    torch.testing.assert_close(snapshot.x, snapshot.denoised(), rtol=0, atol=0)


def test_float32_is_float64_rounded():
    """The same seeds and noise in either; the error is that of rounding."""
    for name in ("ddim", "heun", "dpmpp-2m", "ancestral"):
        narrow, wide = (sampler(name, {}, dtype=dtype).sample((3, 3), range(3)) for dtype in (torch.float32, torch.float64))
        assert narrow.dtype == torch.float32 and wide.dtype == torch.float64
        torch.testing.assert_close(narrow.double(), wide, rtol=0, atol=2e-5)


def test_no_state_is_left_in_the_global_generator():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    sampler("ancestral", {}).sample((2, 3), [0, 1])
    assert torch.equal(torch.random.get_rng_state(), before)


# --- inversion


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("heun", 2), ("dpmpp-2m", 2), ("unipc", 3), ("adams-bashforth", 2)])
def test_inversion_is_the_same_step_backwards(name, order):
    """There and back again: the distance from the start falls with the order of the solver."""
    start, errors = torch.tensor([[0.5, -1.0, 0.3], [1.0, 0.2, -0.7]], dtype=torch.float64), []
    for steps in (40, 80):
        grid = karras(EDM(), steps, n_min=0.1, n_max=5.0, clean=False)
        latent = PLANNED[name](MIXTURE.denoise, grid.reversed(), x=start, dtype=torch.float64)
        errors.append((PLANNED[name](MIXTURE.denoise, grid, x=latent, dtype=torch.float64) - start).abs().max().item())
    assert errors[1] < 0.05 and math.log2(errors[0] / errors[1]) > order - 0.4


def test_a_latent_is_that_of_the_flow_map():
    data = Gaussian([0.3, 0.1], [0.2, 0.4])
    grid = karras(VP(), 200, n_min=0.01, n_max=50.0, clean=False)
    first, last = grid.instants[-1].level, grid.instants[0].level
    images = torch.tensor([[0.5, -0.4], [0.0, 0.2]], dtype=torch.float64)
    latent = heun(data.denoise, grid.reversed(), x=images, dtype=torch.float64)
    torch.testing.assert_close(latent, data.flow_map(images, first, last), rtol=0, atol=2e-3)


# --- what a user meets


def test_the_example_of_the_design():
    images = heun(Denoiser(lambda x, t: x, "eps", VP()), karras(EDM(), steps=18), shape=(16, 3, 4, 4), seeds=range(16))
    assert images.shape == (16, 3, 4, 4) and images.dtype == torch.float32 and images.isfinite().all()


def test_learned_variance_of_a_network():
    """Between the small and the large variance, and equal to them at the ends of its scale."""

    def with_share(value):
        def network(x, t):
            return torch.cat([0.1 * x, torch.full_like(x, value)], 1)

        return Denoiser(network, "eps", DDPM(), learned_variance=True)

    grid, shape = linspace(DDPM(), 8), (3, 2, 2, 2)
    plain = Denoiser(lambda x, t: 0.1 * x, "eps", DDPM())
    for value, variance in ((-1.0, "small"), (1.0, "large")):
        found = ancestral(with_share(value), grid, shape, range(3), dtype=torch.float64, variance="learned")
        torch.testing.assert_close(
            found, ancestral(plain, grid, shape, range(3), dtype=torch.float64, variance=variance), rtol=1e-9, atol=1e-9
        )
    with pytest.raises(UserError, match=r"sampler\.variance: got 'learned' for a network that learned none"):
        ancestral(plain, grid, shape, range(3), variance="learned")


def test_clip_holds_the_image_and_every_solver_takes_its_eps_from_it():
    grid = trailing(DDPM(), 10)
    denoiser = Denoiser(lambda x, t: 0.1 * x, "eps", DDPM())
    for solver in (ddim, dpmpp_2m, ancestral):
        ours = Sampler(denoiser, grid, solver, clip=0.5, dtype=torch.float64)
        state = ours.begin((2, 3), [0, 1])
        while state.live:
            snapshot = ours.step(state)
            assert snapshot.denoised().abs().max() <= 0.5
        assert snapshot.x.abs().max() <= 0.5
        bounded = Sampler(lambda x, level: denoiser(x, level).clamp(-0.5, 0.5), grid, solver, dtype=torch.float64)
        torch.testing.assert_close(snapshot.x, bounded.sample((2, 3), [0, 1]), rtol=1e-12, atol=1e-12)


def test_zero_terminal_snr():
    """The first step begins without signal; v says the image there, and eps is refused by the denoiser."""
    path = zero_terminal_snr(DDPM())
    data = Gaussian([0.4, -0.3], 0.01)
    for solver in (ddim, heun, dpmpp_2m):
        x = solver(data.denoise, trailing(path, 30), (200, 2), range(200), dtype=torch.float64)
        assert (x.mean(0) - torch.tensor([0.4, -0.3])).abs().max() < 4 * 0.1 / math.sqrt(200)


def test_an_empty_state_steps_to_nothing():
    ours = sampler("heun", {})
    state = ours.begin((1, 3), [0]).select([])
    assert ours.step(state).requests == [] and state.live == 0


MISTAKES = [
    (lambda: sampler("heun", {"eta": 0.5}), r"sampler\.eta: 'heun' has no such option"),
    (lambda: sampler("ddim", {"eta": 1.5}), r"sampler\.eta: got 1\.5 for 'ddim'; choose from 0 to 1"),
    (lambda: sampler("ddim", {"eta": -0.1}), r"sampler\.eta: got -0\.1"),
    (lambda: sampler("ddim", {"eta": math.nan}), r"sampler\.eta: got nan"),
    (lambda: sampler("ancestral", {"variance": "none"}), r"sampler\.variance: got none.*small or large or learned"),
    (lambda: sampler("unipc", {"order": 4}), r"sampler\.order: got 4 for 'unipc'; choose a whole number from 1 to 3"),
    (lambda: sampler("unipc", {"order": 2.5}), r"sampler\.order: got 2\.5"),
    (lambda: sampler("dpmpp-3m", {}, grid=karras(EDM(), 2)), r"sampler\.steps: 'dpmpp-3m' needs at least 3 steps, got 2"),
    (lambda: sampler("unipc", {"order": 3}, grid=karras(EDM(), 2)), r"sampler\.steps: 'unipc' needs at least 3 steps"),
    (lambda: sampler("ancestral", {}, grid=GRID.reversed()), r"sampler\.solver: 'ancestral' draws noise, which has no inverse"),
    (lambda: sampler("ddim", {}, grid=GRID.reversed()).sample((1, 3), [0]), r"sampler\.grid: increasing times invert"),
    (lambda: sampler("ddim", {}).sample((2, 3), [0]), r"sampler\.seeds: got 1 for 2 samples"),
    (lambda: sampler("ddim", {}, dtype=torch.bfloat16), r"sampler\.dtype"),
    (lambda: sampler("ddim", {}, clip=0.0), r"sampler\.clip: got 0"),
    (
        lambda: sampler("ddim", {}, Denoiser(lambda x, t: x[:, :1], "v", VP())).sample((1, 3), [0]),
        r"denoiser\.network: got an output of shape",
    ),
]


@pytest.mark.parametrize(("make", "message"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_condition_of_another_batch_is_refused():
    with pytest.raises(ValueError, match="of the batch"):
        sampler("ddim", {}).begin((2, 3), [0, 1], shift=torch.zeros(3))
    with pytest.raises(ValueError, match="a shape, or a state"):
        sampler("ddim", {}).begin()


def test_one_step_grids_return_the_image_of_the_prior():
    grid = Grid(EDM(), (80.0,))
    x = ddim(MIXTURE.denoise, grid, (2, 3), [0, 1], dtype=torch.float64)
    start = Sampler(MIXTURE.denoise, grid, ddim, dtype=torch.float64).begin((2, 3), [0, 1]).x
    torch.testing.assert_close(x, MIXTURE.denoise(start, 80.0), rtol=0, atol=0)
