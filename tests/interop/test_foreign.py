"""Folders of diffusers as runs: the recipe that they are read as, and what any solver makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers

import unveil
from unveil import convert
from unveil.config import GaussianSamplerConfig
from unveil.errors import UserError
from unveil.gaussian.model import path_of
from unveil.gaussian.path import DDPM, EDM, RectifiedFlow
from unveil.gaussian.sampling import grid_of
from unveil.image_run import ImageRun
from unveil.interop import foreign, sampling, schedulers
from unveil.interop.diffusers import load

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")

Make = Callable[..., Any]
STEPS = 5


def written(model: Any, scheduler: Any, folder: Path, **index: Any) -> Path:
    name = "unet" if isinstance(model, diffusers.UNet2DModel) else "transformer"
    model.save_pretrained(folder / name)
    scheduler.save_pretrained(folder / "scheduler")
    index |= {name: ["diffusers", type(model).__name__], "scheduler": ["diffusers", type(scheduler).__name__]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def loaded(folder: Path) -> ImageRun:
    run = unveil.load(folder)
    assert isinstance(run, ImageRun)
    return run


SCHEDULERS = [
    diffusers.DDPMScheduler(),
    diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction"),
    diffusers.DDIMScheduler(num_train_timesteps=300, beta_end=0.05, prediction_type="sample"),
    diffusers.DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"),
    diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", num_train_timesteps=100),
    diffusers.DDPMScheduler(trained_betas=[0.1, 0.2, 0.3]),
    diffusers.EulerDiscreteScheduler(use_karras_sigmas=True),
    diffusers.EDMEulerScheduler(sigma_data=0.3, sigma_max=60.0),
    diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=500, shift=3.0),
]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: type(s).__name__)
def test_the_recipe_says_all_that_the_scheduler_said_of_the_network(scheduler: Any, unet: Make, tmp_path: Path) -> None:
    folder = written(unet(), scheduler, tmp_path)
    theirs, run = load(folder).denoiser, loaded(folder)
    ours: Any = run.family.build()
    for name in ("path", "predicts", "preconditioning", "sigma_data", "time_scale", "learned_variance"):
        assert getattr(ours.denoiser, name) == getattr(run.model.denoiser, name) == getattr(theirs, name), name
    assert ours.network.config == run.model.network.config
    assert grid_of(run.recipe.sampler, run.family.path).path == load(folder).path
    assert torch.isfinite(run.generate(1, steps=3)).all()


@pytest.mark.parametrize("path", [DDPM(table=(0.1, 0.2)), DDPM("cosine", 100), EDM(0.01, 20.0), RectifiedFlow(t_min=0.01)])
def test_a_path_goes_into_a_recipe_and_back(path: Any) -> None:
    assert path_of(foreign.section(path)) == path


def test_ddim_is_theirs_to_the_last_step(unet: Make, tmp_path: Path) -> None:
    """Their own pipeline, from our noise."""
    theirs = unet()
    folder = written(theirs, diffusers.DDIMScheduler(clip_sample=False), tmp_path)
    pipeline = diffusers.DDIMPipeline(theirs, diffusers.DDIMScheduler.from_pretrained(folder / "scheduler"))
    pipeline.set_progress_bar_config(disable=True)
    run = loaded(folder)
    assert (run.recipe.sampler.kind, run.recipe.sampler.grid, run.recipe.sampler.steps) == ("ddim", "leading", 50)
    steps = list(run.sample(2, steps=STEPS, seed=3))
    x = run.family.latents([3, 4]).float()
    pipeline.scheduler.set_timesteps(STEPS)
    first = run.with_sampler(steps=STEPS).family._sampler(run.model).grid.instants[0]
    x = x * first.sigma
    with torch.no_grad():
        for t, ours in zip(pipeline.scheduler.timesteps, steps, strict=True):
            x = pipeline.scheduler.step(pipeline.unet(x, t).sample, t, x).prev_sample
            torch.testing.assert_close(torch.from_numpy(ours.x), x, rtol=0, atol=2e-5 * max(1.0, float(x.abs().max())))


def test_classes_and_guidance_are_theirs(dit: Make, tmp_path: Path) -> None:
    """Guidance on all channels, in the noise: the same as ours in the image, since both are linear."""
    theirs, weight = dit(), 3.0
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    run = loaded(written(theirs, scheduler, tmp_path))
    assert run.classes == tuple("01234")
    steps = list(run.sample(2, label="3", steps=STEPS, guidance=weight))
    scheduler.set_timesteps(STEPS)
    x = run.family.latents([0, 1]).float() * run.with_sampler(steps=STEPS).family._sampler(run.model).grid.instants[0].sigma
    with torch.no_grad():
        for t, ours in zip(scheduler.timesteps, steps, strict=True):
            told, free = (theirs(x, t.expand(2), torch.full((2,), label)).sample for label in (3, 5))
            x = scheduler.step(free + weight * (told - free), t, x).prev_sample
            torch.testing.assert_close(torch.from_numpy(ours.x), x, rtol=0, atol=1e-4 * max(1.0, float(x.abs().max())))


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "heun", "steps": 4},
        {"kind": "dpmpp-3m", "steps": 4},
        {"kind": "euler", "steps": 4, "path": "edm", "n_min": 0.01, "n_max": 50},
        {"kind": "ddim", "steps": 4, "path": "rectified-flow"},
        {"steps": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["DDPMScheduler", "EDMEulerScheduler"])
def test_any_solver_and_any_path_samples_it(kind: str, settings: dict[str, Any], unet: Make, tmp_path: Path) -> None:
    run = loaded(written(unet(), getattr(diffusers, kind)(), tmp_path))
    *_, last = run.sample(2, **settings)
    assert last.final and last.x.shape == (2, 3, 8, 8) and torch.isfinite(torch.from_numpy(last.x)).all()


def test_classes_without_a_null_class_want_one(unet: Make, tmp_path: Path) -> None:
    run = loaded(written(unet(num_class_embeds=3), diffusers.DDIMScheduler(), tmp_path))
    assert run.generate(1, label="2", steps=2).shape == (1, 3, 8, 8)
    with pytest.raises(UserError, match="label: not given"):
        run.generate(1)
    with pytest.raises(UserError, match="without a null class"):
        run.generate(1, label="2", guidance=2.0)


def test_classes_have_the_names_of_the_index(dit: Make, tmp_path: Path) -> None:
    names = {str(i): name for i, name in enumerate(["tench", "shark", "cock", "hen", "jay"])}
    run = loaded(written(dit(), diffusers.DDIMScheduler(), tmp_path, id2label=names))
    assert run.label("hen") == run.label("3") == 3
    with pytest.raises(UserError, match="did you mean 'shark'"):
        run.label("sharc")
    again = loaded(convert.convert(convert.convert(tmp_path, tmp_path / "ours"), tmp_path / "theirs"))
    assert again.classes == tuple(names.values())


def test_a_folder_without_an_index_and_one_with_all_its_files_at_the_top(unet: Make, tmp_path: Path) -> None:
    theirs, scheduler = unet(), diffusers.DDIMScheduler()
    whole = loaded(written(theirs, scheduler, tmp_path / "whole")).generate(1, steps=2)
    theirs.save_pretrained(tmp_path / "parts" / "unet")
    scheduler.save_pretrained(tmp_path / "parts" / "scheduler")
    theirs.save_pretrained(tmp_path / "flat")
    scheduler.save_pretrained(tmp_path / "flat")
    theirs.save_pretrained(tmp_path / "beside")
    scheduler.save_pretrained(tmp_path / "beside" / "scheduler")
    for name in ("parts", "flat", "beside"):
        assert torch.equal(loaded(tmp_path / name).generate(1, steps=2), whole)


def test_a_size_that_is_not_known_is_asked_for(unet: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sample_size"):
        unveil.load(written(unet(sample_size=None), diffusers.DDIMScheduler(), tmp_path))


def test_a_variance_that_is_learned_stays_learned(dit: Make, tmp_path: Path) -> None:
    model = dit(out_channels=6)
    with torch.no_grad():
        model.proj_out_2.weight.mul_(0.005)  # a share of variances far from [-1, 1] overflows
    run = loaded(written(model, diffusers.DDPMScheduler(variance_type="learned_range"), tmp_path))
    assert run.recipe.objective.weighting == "hybrid" and run.recipe.sampler.variance == "learned"
    assert torch.isfinite(run.generate(1, steps=3)).all()


# Samplers ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheduler", "wanted"),
    [
        (diffusers.DDPMScheduler(clip_sample_range=2.0), {"kind": "ancestral", "variance": "small", "clip": 2.0, "grid": "leading"}),
        (diffusers.DDPMScheduler(num_train_timesteps=100, variance_type="fixed_large"), {"variance": "large", "steps": 100}),
        (diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing"), {"kind": "ddim", "clip": 0.0, "grid": "trailing"}),
        (diffusers.DPMSolverMultistepScheduler(solver_order=3), {"kind": "dpmpp-3m", "grid": "linspace", "steps": 20}),
        (
            diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", use_karras_sigmas=True),
            {"kind": "sde-2m", "grid": "karras"},
        ),
        (diffusers.EulerDiscreteScheduler(), {"kind": "euler", "grid": "linspace", "steps": 50}),
        (diffusers.EDMEulerScheduler(rho=5.0), {"kind": "euler", "grid": "karras", "rho": 5.0, "steps": 18}),
        (diffusers.EDMEulerScheduler(sigma_schedule="exponential"), {"grid": "log-uniform", "rho": None}),
        (diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), {"kind": "euler", "grid": "auto", "shift": 3.0}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_scheduler_is_the_nearest_sampler_and_back(scheduler: Any, wanted: dict[str, Any]) -> None:
    given = json.loads(json.dumps({**scheduler.config, "_class_name": type(scheduler).__name__}, default=list))
    training = schedulers.read(given, "there", 3, 3)
    found = sampling.sampler(given, training)
    assert {name: getattr(found, name) for name in wanted} == wanted
    again = sampling.scheduler(schedulers.settings(training.denoiser(torch.nn.Identity())), found)
    if found.kind != "sde-2m" and found.grid != "log-uniform":
        assert sampling.sampler(again, schedulers.read(again, "here", 3, 3)) == found
    getattr(diffusers, again["_class_name"]).from_config(again)


def test_a_solver_that_they_lack_leaves_ddpm() -> None:
    asks = schedulers.settings(schedulers.Training(DDPM(), "eps").denoiser(torch.nn.Identity()))
    assert sampling.scheduler(asks, GaussianSamplerConfig(kind="heun"))["_class_name"] == "DDPMScheduler"


def test_another_solver_leaves_the_options_of_the_one_before_behind(unet: Make, tmp_path: Path) -> None:
    run = loaded(written(unet(), diffusers.DDPMScheduler(), tmp_path))
    assert run.with_sampler(steps=3).recipe.sampler.variance == run.with_sampler(kind="ancestral").recipe.sampler.variance == "small"
    heun = run.with_sampler(kind="heun").recipe.sampler
    assert (heun.variance, heun.grid, heun.clip) == (None, "leading", 1.0)
    assert run.with_sampler(path="edm").recipe.sampler.grid == "auto"
    assert run.with_sampler(path="edm", grid="karras").recipe.sampler.grid == "karras"
