"""The other half of a scheduler: its steps, as a sampler section of ours, and ours as a scheduler. What it has no word for is left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unveil.config import GaussianSamplerConfig
from unveil.gaussian.path import Shifted
from unveil.interop.schedulers import DEFAULTS, Training

_STEPS = {
    "DDPMScheduler": 250,
    "DDIMScheduler": 50,
    "DPMSolverMultistepScheduler": 20,
    "EulerDiscreteScheduler": 50,
    "EDMEulerScheduler": 18,
    "FlowMatchEulerDiscreteScheduler": 28,
}
"""A config names no number of steps. Of DDPM's 1000 a quarter is what ADM and DiT take."""
_ORDERS = {1: "ddim", 2: "dpmpp-2m", 3: "dpmpp-3m"}
_CLASSES = {"ddim": "DDIMScheduler", "euler": "EulerDiscreteScheduler", "dpmpp-2m": "DPMSolverMultistepScheduler"}
_CLASSES["dpmpp-3m"] = _CLASSES["dpmpp-2m"]


def sampler(scheduler: Mapping[str, Any], training: Training) -> GaussianSamplerConfig:
    """The nearest sampler to a scheduler that ``schedulers.read`` took.

    Not taken over: dynamic thresholding, times between two steps of a table, and the level at which some stop short of the image.
    """
    name = str(scheduler["_class_name"])
    s = {**DEFAULTS[name], **scheduler}
    found: dict[str, Any] = {"steps": _STEPS[name], "clip": s["clip_sample_range"] if s.get("clip_sample") else 0.0}
    if s.get("use_karras_sigmas") or s.get("sigma_schedule") == "karras":
        found |= {"grid": "karras", "rho": s.get("rho")}
    elif s.get("use_exponential_sigmas") or "sigma_schedule" in s:
        found["grid"] = "log-uniform"
    elif "timestep_spacing" in s:
        steps = getattr(training.path, "steps", found["steps"])
        found |= {"grid": s["timestep_spacing"], "steps": min(found["steps"], steps)}
    if isinstance(training.clock, Shifted):
        found["shift"] = training.clock.factor
    match name:
        case "DDPMScheduler":
            variance = s["variance_type"].removeprefix("fixed_").removesuffix("_range")
            return GaussianSamplerConfig(kind="ancestral", variance=variance, **found)
        case "DDIMScheduler":
            return GaussianSamplerConfig(kind="ddim", **found)
        case "DPMSolverMultistepScheduler":
            kind = "sde-2m" if str(s["algorithm_type"]).startswith("sde") else _ORDERS.get(s["solver_order"], "dpmpp-2m")
            return GaussianSamplerConfig(kind=kind, **found)
        case _:
            return GaussianSamplerConfig(kind="euler", **found)


def scheduler(asks: Mapping[str, Any], sampler: GaussianSamplerConfig) -> dict[str, Any]:
    """The config of ``schedulers.settings`` with the sampler's solver, where diffusers has it for this training, and its grid."""
    given = dict(asks)
    if given["_class_name"] == "EDMEulerScheduler":
        return given | ({"rho": sampler.rho} if sampler.rho is not None else {})
    if given["_class_name"] == "FlowMatchEulerDiscreteScheduler":
        return given | {"shift": sampler.shift}
    learned = given["variance_type"] == "learned_range"
    if sampler.kind in _CLASSES and not learned:
        given |= {"_class_name": _CLASSES[sampler.kind], "solver_order": 3 if sampler.kind == "dpmpp-3m" else 2}
    elif sampler.variance is not None and not learned:
        given["variance_type"] = f"fixed_{sampler.variance}"
    if sampler.clip:
        given |= {"clip_sample": True, "clip_sample_range": sampler.clip}
    if sampler.grid == "karras" and "use_karras_sigmas" in DEFAULTS[given["_class_name"]]:
        given["use_karras_sigmas"] = True
    elif sampler.grid in ("leading", "linspace"):
        given["timestep_spacing"] = sampler.grid
    return {key: value for key, value in given.items() if key == "_class_name" or key in DEFAULTS[given["_class_name"]]}
