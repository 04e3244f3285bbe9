"""Schedulers as paths: the same tables, and step by step the same samples where theirs are right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

import diffusers

from unveil.errors import UserError
from unveil.gaussian.denoiser import Denoiser
from unveil.gaussian.grid import Grid, karras, trailing
from unveil.gaussian.path import DDPM, EDM, VP, RectifiedFlow, Shifted
from unveil.gaussian.path import Path as NoisePath
from unveil.gaussian.solvers import ancestral, ddim, dpmpp_2m, euler
from unveil.interop import schedulers
from unveil.interop.diffusers import load, save
from unveil.interop.folder import WEIGHTS

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")

Make = Callable[..., Any]
STEPS = 10


def read(scheduler: Any, channels: tuple[int, int] = (3, 3)) -> schedulers.Training:
    given = json.loads(json.dumps({**scheduler.config, "_class_name": type(scheduler).__name__}, default=list))
    return schedulers.read(given, "scheduler_config.json", *channels)


TABLES: list[dict[str, Any]] = [
    {},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"num_train_timesteps": 100, "beta_end": 0.2},
    {"trained_betas": [0.1, 0.2, 0.3]},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
]
KINDS = ["DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"]
SIGMOID: dict[str, Any] = {"beta_schedule": "sigmoid", "num_train_timesteps": 100}
"""DDPM's alone."""


@pytest.mark.parametrize(("kind", "given"), [*((kind, given) for kind in KINDS for given in TABLES), ("DDPMScheduler", SIGMOID)])
def test_tables_are_theirs(kind: str, given: dict[str, Any]) -> None:
    scheduler = getattr(diffusers, kind)(**given)
    path = read(scheduler).path
    assert isinstance(path, DDPM)
    expected = scheduler.alphas_cumprod.double()
    torch.testing.assert_close(path.alphas_bar, expected, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize(("theirs", "ours"), [("epsilon", "eps"), ("sample", "x0"), ("v_prediction", "v")])
def test_predictions_have_our_names(theirs: str, ours: str) -> None:
    assert read(diffusers.DDIMScheduler(prediction_type=theirs)).predicts == ours


def test_a_shift_of_times_is_the_samplers() -> None:
    """The network is asked at the shifted time itself, so its own path has no shift."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    training = read(scheduler)
    assert training.path == RectifiedFlow(t_min=0.001) and isinstance(training.clock, Shifted)
    times = torch.linspace(1, 1000, 1000, dtype=torch.float64) / 1000
    torch.testing.assert_close(training.clock.sigma(times), scheduler.sigmas.double().flip(0)[:1000], rtol=1e-6, atol=0)


# Step by step ----------------------------------------------------------------------------------------------------------------


def pipeline(model: Any, scheduler: Any, folder: Path) -> Denoiser:
    """Ours, from their files."""
    name = "unet" if isinstance(model, diffusers.UNet2DModel) else "transformer"
    model.save_pretrained(folder / name)
    scheduler.save_pretrained(folder / "scheduler")
    index = {name: ["diffusers", type(model).__name__], "scheduler": ["diffusers", type(scheduler).__name__]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return load(folder).denoiser


@torch.no_grad()
def their_steps(model: Any, scheduler: Any, x: Tensor, condition: dict[str, Tensor] | None = None, **options: Any) -> list[Tensor]:
    """Every state of their loop, from ``x`` on."""
    states = []
    for t in scheduler.timesteps:
        inside = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        output = model(inside, t.expand(len(x)), **(condition or {})).sample
        x = scheduler.step(output, t, x, **options).prev_sample
        states.append(x)
    return states


def compare(sampler: Any, x: Tensor, expected: list[Tensor], tolerance: float = 2e-5, **condition: Tensor) -> None:
    state = sampler.begin(x=x, **condition)
    for theirs in expected:
        ours = sampler.step(state).x
        torch.testing.assert_close(ours, theirs.to(ours), rtol=0, atol=tolerance * max(1.0, float(theirs.abs().max())))


def start(path: NoisePath) -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * path.prior_std()


@pytest.mark.parametrize("predicts", ["epsilon", "sample", "v_prediction"])
def test_ddim_step_by_step(predicts: str, unet: Make, tmp_path: Path) -> None:
    model = unet()
    scheduler = diffusers.DDIMScheduler(prediction_type=predicts, clip_sample=False, timestep_spacing="trailing")
    denoiser = pipeline(model, scheduler, tmp_path)
    scheduler.set_timesteps(STEPS)
    grid, x = trailing(denoiser.path, STEPS), start(denoiser.path)
    assert [int(t) for t in grid.times] == scheduler.timesteps.tolist()
    compare(ddim.sampler(denoiser, grid), x, their_steps(model, scheduler, x))


def noises(sampler: Any, x: Tensor) -> Callable[..., Tensor]:
    """Their noise: ours, draw by draw."""
    noise = sampler.begin(x=x).noise
    return lambda *_, **__: noise.draw().clone()


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm_step_by_step_with_the_same_noise(variance: str, unet: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = unet()
    scheduler = diffusers.DDPMScheduler(variance_type=variance, timestep_spacing="trailing", num_train_timesteps=100, beta_end=0.1)
    denoiser = pipeline(model, scheduler, tmp_path)
    scheduler.set_timesteps(STEPS)
    sampler = ancestral.sampler(denoiser, trailing(denoiser.path, STEPS), clip=1.0, variance=variance.removeprefix("fixed_"))
    x = start(denoiser.path)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", noises(sampler, x))
    # their last step is to the image, and adds the large noise all the same
    compare(sampler, x, their_steps(model, scheduler, x)[: STEPS - (variance == "fixed_large")])


def test_a_learned_variance_step_by_step(dit: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = dit(out_channels=6)
    with torch.no_grad():
        model.proj_out_2.weight.mul_(0.05)  # a share of variances far from [-1, 1] overflows
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range", timestep_spacing="trailing")
    denoiser = pipeline(model, scheduler, tmp_path)
    scheduler.set_timesteps(STEPS)
    sampler = ancestral.sampler(denoiser, trailing(denoiser.path, STEPS), clip=1.0, variance="learned")
    x, classes = start(denoiser.path), torch.tensor([0, 5])
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", noises(sampler, x))
    compare(sampler, x, their_steps(model, scheduler, x, {"class_labels": classes})[:-1], 1e-4, classes=classes)


def test_euler_step_by_step(unet: Make, tmp_path: Path) -> None:
    """Theirs moves y = x / alpha; the two meet at every step."""
    model = unet()
    scheduler = diffusers.EulerDiscreteScheduler(timestep_spacing="trailing")
    denoiser = pipeline(model, scheduler, tmp_path)
    scheduler.set_timesteps(STEPS)
    grid, x = trailing(denoiser.path, STEPS), start(denoiser.path)
    levels = [instant.alpha for instant in grid.instants]
    expected = [alpha * y for alpha, y in zip(levels[1:], their_steps(model, scheduler, x / levels[0]), strict=True)]
    compare(euler.sampler(denoiser, grid), x, expected)


def test_dpm_solver_step_by_step(unet: Make, tmp_path: Path) -> None:
    model = unet()
    scheduler = diffusers.DPMSolverMultistepScheduler(timestep_spacing="trailing", solver_order=2)
    denoiser = pipeline(model, scheduler, tmp_path)
    scheduler.set_timesteps(20)  # from 15 on theirs lowers the order in the last step alone, as ours does
    grid, x = trailing(denoiser.path, 20), start(denoiser.path)
    compare(dpmpp_2m.sampler(denoiser, grid), x, their_steps(model, scheduler, x))


def test_edm_step_by_step(unet: Make, tmp_path: Path) -> None:
    model = unet()
    scheduler = diffusers.EDMEulerScheduler(sigma_max=10.0, sigma_data=0.4)
    denoiser = pipeline(model, scheduler, tmp_path)
    scheduler.set_timesteps(STEPS)
    x = start(denoiser.path)
    compare(euler.sampler(denoiser, karras(denoiser.path, STEPS)), x, their_steps(model, scheduler, x))


def test_flow_matching_step_by_step(unet: Make, tmp_path: Path) -> None:
    model = unet()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    denoiser = pipeline(model, scheduler, tmp_path)
    scheduler.set_timesteps(STEPS)
    x, grid = start(denoiser.path), Grid(denoiser.path, tuple(scheduler.sigmas[:-1].tolist()))
    compare(euler.sampler(denoiser, grid), x, their_steps(model, scheduler, x))


# Back, and what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DDPMScheduler(num_train_timesteps=200, beta_end=0.05, prediction_type="sample"),
        diffusers.DDPMScheduler(beta_schedule="scaled_linear"),
        diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", rescale_betas_zero_snr=True),
        diffusers.DDPMScheduler(trained_betas=[0.1, 0.2, 0.3]),
        diffusers.EDMEulerScheduler(sigma_data=0.3, sigma_max=60.0),
        diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=500),
    ],
)
def test_what_was_read_is_written_again(scheduler: Any) -> None:
    training = read(scheduler)
    again = schedulers.settings(training.denoiser(torch.nn.Identity()))
    assert schedulers.read(json.loads(json.dumps(again)), "there", 3, 3) == training
    getattr(diffusers, again["_class_name"]).from_config(again)


@pytest.mark.parametrize(
    "denoiser",
    [
        Denoiser(torch.nn.Identity(), "eps", VP()),
        Denoiser(torch.nn.Identity(), "x0", EDM(), "edm"),
        Denoiser(torch.nn.Identity(), "flow", RectifiedFlow()),
        Denoiser(torch.nn.Identity(), "eps", Shifted(DDPM(), 2.0)),
    ],
)
def test_what_no_scheduler_asks_is_not_exported(denoiser: Denoiser) -> None:
    with pytest.raises(UserError, match="no scheduler of diffusers"):
        schedulers.settings(denoiser)


def test_a_given_scheduler_is_written_as_it_stands(unet: Make, tmp_path: Path) -> None:
    denoiser = pipeline(unet(), diffusers.DDIMScheduler(steps_offset=1), tmp_path / "theirs")
    save(tmp_path / "ours", denoiser, scheduler=load(tmp_path / "theirs").scheduler)
    at = Path("scheduler") / "scheduler_config.json"
    assert json.loads((tmp_path / "ours" / at).read_text()) == json.loads((tmp_path / "theirs" / at).read_text())
    assert (tmp_path / "ours" / "unet" / WEIGHTS).is_file()


def test_a_given_scheduler_of_another_training_is_refused(unet: Make, tmp_path: Path) -> None:
    denoiser = pipeline(unet(), diffusers.DDIMScheduler(), tmp_path / "theirs")
    with pytest.raises(UserError, match="it says predicts v"):
        save(tmp_path / "ours", denoiser, scheduler={"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"})


@pytest.mark.parametrize(
    ("given", "channels", "wanted"),
    [
        ({"_class_name": "DDPMSchedular"}, (3, 3), "did you mean 'DDPMScheduler'"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned"}, (3, 6), "variance_type is 'learned'"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned_range"}, (3, 3), "3 output channels want fixed_small"),
        ({"_class_name": "DDPMScheduler"}, (3, 6), "6 output channels want learned_range"),
        ({"_class_name": "DDIMScheduler"}, (3, 4), "4 channels of 3"),
        ({"_class_name": "EDMEulerScheduler"}, (3, 6), "6 channels of 3, a variance too"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "laplace"}, (3, 3), "beta_schedule is 'laplace'"),
        ({"_class_name": "DDIMScheduler", "beta_start": "low"}, (3, 3), "a number is wanted"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}, (3, 3), "only 'epsilon'"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}, (3, 3), "use_dynamic_shifting is true"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, (3, 3), "only 'discrete'"),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, (3, 3), "use_flow_sigmas is true"),
    ],
)
def test_schedulers_that_are_refused(given: dict[str, Any], channels: tuple[int, int], wanted: str) -> None:
    with pytest.raises(UserError, match=wanted) as error:
        schedulers.read(given, "scheduler_config.json", *channels)
    assert "scheduler_config.json" in str(error.value) and "\n" not in str(error.value)


def test_zero_terminal_snr_with_eps_is_refused() -> None:
    with pytest.raises(UserError, match="zero terminal SNR"):
        read(diffusers.DDIMScheduler(rescale_betas_zero_snr=True)).denoiser(torch.nn.Identity())
