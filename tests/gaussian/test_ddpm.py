from __future__ import annotations

import math

import pytest
import torch

from unveil.errors import UserError
from unveil.gaussian.path import DDPM, VP, Cosine, Level, Shifted, zero_terminal_snr


@pytest.mark.parametrize(("schedule", "steps"), [("linear", 100), ("linear", 1000), ("cosine", 100), ("cosine", 1000)])
def test_golden_named_schedules(golden, schedule, steps):
    """improved-diffusion's named schedules; the linear one is scaled by 1000 / T."""
    arrays, _ = golden("improved_diffusion")
    torch.testing.assert_close(DDPM(schedule, steps).betas, arrays[f"outputs.betas.{schedule}_{steps}"], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_golden_tables(golden, schedule):
    """alphas_bar, and the posterior's table, which is made of the levels of two steps alone."""
    arrays, config = golden("improved_diffusion")
    path = DDPM(schedule, config["T"])
    expect = {key: arrays[f"outputs.{schedule}.{key}"] for key in ("alphas_cumprod", "posterior_variance", "x_t")}
    torch.testing.assert_close(path.alphas_bar, expect["alphas_cumprod"], rtol=1e-10, atol=1e-10)
    steps = torch.arange(config["T"]).double()
    now, before = path.level(steps), path.level(steps - 1)
    # sigma_s^2 tau with tau = 1 - (n_s / n_t)^2: step -1 is the data, so the first entry is 0
    variance = before.sigma.square() * (1 - (before.n / now.n).square())
    torch.testing.assert_close(variance, expect["posterior_variance"], rtol=1e-10, atol=1e-10)
    level = path.level(arrays["inputs.t"].double()[:, None, None, None])
    x_t = level.alpha * arrays["inputs.x_start"] + level.sigma * arrays["inputs.noise"]
    torch.testing.assert_close(x_t, expect["x_t"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", ["1000_250", "1000_ddim25", "1000_ddim50", "1000_10-15-20", "300_10-15-20", "100_7"])
def test_golden_respaced_betas(golden, case):
    """A respaced process needs no table of its own: its betas are 1 - abar_t / abar_s of the steps that are kept."""
    arrays, _ = golden("improved_diffusion")
    path = DDPM("linear", int(case.split("_")[0]))
    kept = arrays[f"outputs.respace.{case}"].double()
    alphas_bar = path.alpha(torch.cat([torch.tensor([path.data_end]), kept])).square()
    torch.testing.assert_close(1 - alphas_bar[1:] / alphas_bar[:-1], arrays[f"outputs.respace.{case}.betas_linear"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "schedule"), [("linear", "linear"), ("quad", "quadratic"), ("sigmoid", "sigmoid")])
def test_golden_ddim_schedules(golden, name, schedule):
    """ermongroup/ddim does not scale its betas to T = 100 as we do: ten times smaller ends give its table."""
    arrays, config = golden("ddim")
    steps = config["beta_tables_T"]
    path = DDPM(schedule, steps, config["beta_start"] * steps / 1000, config["beta_end"] * steps / 1000)
    torch.testing.assert_close(path.betas, arrays[f"outputs.betas.{name}"], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", ["const", "jsd"])
def test_golden_ddim_tables_as_given(golden, name):
    """Any table of betas is a path; "jsd", 1 / T ... 1 / 1, ends without signal."""
    betas = golden("ddim")[0][f"outputs.betas.{name}"]
    path = DDPM(table=tuple(betas.tolist()))
    assert path.steps == 100 and torch.equal(path.betas, betas)
    torch.testing.assert_close(path.alphas_bar, (1 - betas).cumprod(0), rtol=1e-12, atol=1e-16)
    assert (path.n(99.0) == math.inf) == (name == "jsd")
    if name == "jsd":
        # abar_i = (T - 1 - i) / T by telescoping
        torch.testing.assert_close(path.alphas_bar, torch.arange(99, -1, -1).double() / 100, rtol=1e-12, atol=0)


def test_golden_ddim_steps(golden):
    """Twenty steps of eta 0 through the path's levels, from its own predictions of the image: the reference's alpha of step -1 is 1."""
    arrays, config = golden("ddim")
    path = DDPM("linear", config["T"], config["beta_start"], config["beta_end"])
    for kind in ("uniform", "quad"):
        visited = [*reversed(arrays[f"outputs.seq.{kind}"].tolist()), -1]
        for i in range(20):
            x, x0 = arrays[f"outputs.{kind}.eta0.0.x"][i], arrays[f"outputs.{kind}.eta0.0.x0"][i]
            now, then = path.level(float(visited[i])), path.level(float(visited[i + 1]))
            moved = then.alpha * x0 + then.sigma * (x - now.alpha * x0) / now.sigma
            torch.testing.assert_close(moved, arrays[f"outputs.{kind}.eta0.0.x"][i + 1], rtol=1e-10, atol=1e-10)


def test_levels_at_the_steps_are_the_table():
    path = DDPM()
    abar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    steps = torch.arange(1000).double()
    torch.testing.assert_close(path.alphas_bar, abar, rtol=1e-12, atol=0)
    torch.testing.assert_close(path.alpha(steps), abar.sqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(path.sigma(steps), (1 - abar).sqrt(), rtol=1e-11, atol=0)
    torch.testing.assert_close(path.time(path.n(steps)), steps, rtol=0, atol=1e-10)


def test_between_the_steps_log_n_is_linear():
    path = DDPM("cosine", 50)
    logs = [math.log(path.n(t)) for t in (20.0, 20.25, 20.5, 21.0)]
    assert logs[1] - logs[0] == pytest.approx((logs[3] - logs[0]) / 4) and logs[2] - logs[0] == pytest.approx((logs[3] - logs[0]) / 2)
    # below step 0 it goes to the data at -1, above the last step on as it came
    assert path.n(-1.0) == 0 and 0 < path.n(-0.5) < path.n(0.0)
    assert path.n(50.0) / path.n(49.0) == pytest.approx(path.n(49.0) / path.n(48.0))


def test_tables_tend_to_the_continuous_paths():
    """The linear table at step i is VP at t = (i + 1) / T, the cosine table the continuous cosine; the gap falls with 1 / T."""
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    for schedule, limit in (("linear", VP()), ("cosine", Cosine())):
        gaps = [(DDPM(schedule, steps).n(t * steps - 1) / limit.n(t) - 1).abs().max().item() for steps in (1000, 4000)]
        assert gaps[0] < 2e-2 and (gaps[1] < 0.3 * gaps[0] or gaps[1] < 1e-12)


def test_other_numbers_of_steps_end_as_noisy():
    """Betas scale by 1000 / T, so abar_T stays small; unscaled, 100 steps would leave n = 1.3."""
    for steps in (100, 250, 4000):
        assert DDPM(steps=steps).n(steps - 1.0) == pytest.approx(DDPM().n(999.0), rel=0.5)


def test_zero_terminal_snr():
    plain, path = DDPM(), zero_terminal_snr(DDPM())
    assert path.level(999.0) == Level(0.0, 1.0) and path.n(999.0) == math.inf and path.time(math.inf) == 999.0
    assert path.n(0.0) == pytest.approx(plain.n(0.0), rel=1e-10)
    # Lin et al., algorithm 1, in the shape that it has in public code
    root = (1 - plain.betas).cumprod(0).sqrt()
    rescaled = (root - root[-1]) * root[0] / (root[0] - root[-1])
    torch.testing.assert_close(path.alphas_bar.sqrt(), rescaled, rtol=1e-12, atol=1e-15)
    t = torch.tensor([997.3, 998.0, 998.5, 998.999], dtype=torch.float64)
    assert bool(path.n(t).isfinite().all()) and bool((path.n(t).diff() > 0).all())
    torch.testing.assert_close(path.time(path.n(t)), t, rtol=1e-13, atol=0)
    assert Shifted(path, 2.0).level(999.0) == Level(0.0, 1.0)
    assert path.alpha_dot(999.0) == pytest.approx((path.alpha(999.0) - path.alpha(998.99)) / 0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDPM("cosin"), r"path\.schedule: got 'cosin'; did you mean 'cosine'"),
        (lambda: DDPM(steps=0), r"path\.steps: got 0"),
        (lambda: DDPM(steps=10), r"path\.beta_max: got betas from 0\.01 to 2 over 10 steps"),
        (lambda: DDPM(beta_min=0.0), r"path\.beta_max"),
        (lambda: DDPM(table=(0.1, 1.0, 0.1)), r"path\.beta_max"),
        (lambda: DDPM(table=(0.1, math.nan)), r"path\.beta_max"),
        (lambda: zero_terminal_snr(DDPM("cosine", 1)), r"path\.steps: got 1 with zero terminal SNR"),
    ],
)
def test_tables_that_are_none_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
