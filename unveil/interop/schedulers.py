"""A scheduler's config as what the network was trained on: the path, what the output means, what the network is asked.

A scheduler of diffusers is a training and a sampler in one. The first half is read here; the second (its steps, spacing, Karras levels,
clipping) is the sampler's business, and any of ours will do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unveil.errors import UserError, nearest
from unveil.gaussian.denoiser import Denoiser
from unveil.gaussian.output import Output
from unveil.gaussian.path import DDPM, EDM, Path, RectifiedFlow, Shifted
from unveil.gaussian.preconditioning import EDMPreconditioning
from unveil.interop.settings import Settings


@dataclass(frozen=True)
class Training:
    """What ``Denoiser`` has to know of a network, and the path with the scheduler's clock."""

    path: Path
    predicts: Output
    preconditioning: str | None = None
    sigma_data: float = 0.5
    time_scale: float = 1.0
    learned_variance: bool = False
    clock: Path | None = None
    """The path to sample on, where the scheduler shifts its times; the network's own otherwise."""

    def denoiser(self, network: Any) -> Denoiser:
        return Denoiser(
            network,
            self.predicts,
            self.path,
            self.preconditioning,
            self.sigma_data,
            self.time_scale,
            learned_variance=self.learned_variance,
        )


_PREDICTS: dict[str, Output] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_SCHEDULES = {"linear": "linear", "scaled_linear": "quadratic", "squaredcos_cap_v2": "cosine", "sigmoid": "sigmoid"}
_TABLE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "timestep_spacing": "leading",
    "steps_offset": 0,
}
_CLIPPING = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_LEVELS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False, "final_sigmas_type": "zero"}
DEFAULTS: dict[str, dict[str, Any]] = {
    "DDPMScheduler": {**_TABLE, **_CLIPPING, "clip_sample": True, "clip_sample_range": 1.0, "variance_type": "fixed_small"},
    "DDIMScheduler": {**_TABLE, **_CLIPPING, "clip_sample": True, "clip_sample_range": 1.0, "set_alpha_to_one": True},
    "DPMSolverMultistepScheduler": {
        **_TABLE,
        **_CLIPPING,
        **_LEVELS,
        "timestep_spacing": "linspace",
        "solver_order": 2,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
        "use_lu_lambdas": False,
        "use_flow_sigmas": False,
        "flow_shift": 1.0,
        "lambda_min_clipped": None,
        "variance_type": None,
        "use_dynamic_shifting": False,
        "time_shift_type": "exponential",
    },
    "EulerDiscreteScheduler": {
        **_TABLE,
        **_LEVELS,
        "timestep_spacing": "linspace",
        "interpolation_type": "linear",
        "sigma_min": None,
        "sigma_max": None,
        "timestep_type": "discrete",
    },
    "EDMEulerScheduler": {
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        "sigma_data": 0.5,
        "sigma_schedule": "karras",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "rho": 7.0,
        "final_sigmas_type": "zero",
    },
    "FlowMatchEulerDiscreteScheduler": {
        **_LEVELS,
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "use_dynamic_shifting": False,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "invert_sigmas": False,
        "shift_terminal": None,
        "time_shift_type": "exponential",
        "stochastic_sampling": False,
    },
}
"""What each scheduler's settings are where its config leaves them out. Most speak of sampling, and are read by nobody here."""


def read(given: Mapping[str, Any], source: str, in_channels: int, out_channels: int) -> Training:
    """What a scheduler's config says of the network, which has so many channels.

    Raises UserError: an unknown scheduler, a setting that changes what the network is asked and that we do not have, channels that
    contradict the variance.
    """
    name = str(given.get("_class_name", ""))
    if name not in DEFAULTS:
        raise UserError(source, f"_class_name is '{name}', a scheduler that is not read here", nearest(name, DEFAULTS))
    s = Settings(given, DEFAULTS[name], source)
    if name == "EDMEulerScheduler":
        s.require("prediction_type", "epsilon")
        sigma_data = float(s.number("sigma_data"))
        training = Training(EDM(s.number("sigma_min"), s.number("sigma_max")), "F", "edm", sigma_data)
    elif name == "FlowMatchEulerDiscreteScheduler":
        for key in ("use_dynamic_shifting", "invert_sigmas"):
            s.require(key, False)
        steps, shift = s.count("num_train_timesteps"), s.number("shift")
        path = RectifiedFlow(t_min=1 / steps)
        training = Training(path, "flow", time_scale=steps, clock=None if shift == 1 else Shifted(path, shift))
    else:
        training = _table(s, name)
    learned = out_channels == 2 * in_channels
    if not learned and out_channels != in_channels:
        raise UserError(source, f"the network makes {out_channels} channels of {in_channels}", "it wants as many, or twice as many")
    if learned and not isinstance(training.path, DDPM):
        raise UserError(source, f"the network makes {out_channels} channels of {in_channels}, a variance too", "use betas")
    if name == "DDPMScheduler":
        wanted = "learned_range" if learned else "fixed_small or fixed_large"
        if (s.require("variance_type", "fixed_small", "fixed_large", "learned_range") == "learned_range") != learned:
            raise s.refusal("variance_type", s["variance_type"], f"the network's {out_channels} output channels want {wanted}")
    return Training(**{**vars(training), "learned_variance": learned})


def _table(s: Settings, name: str) -> Training:
    """The schedulers over a table of betas."""
    if name == "EulerDiscreteScheduler":
        s.require("timestep_type", "discrete")
    if name == "DPMSolverMultistepScheduler":
        s.require("use_flow_sigmas", False)
    predicts = _PREDICTS[s.require("prediction_type", *_PREDICTS)]
    zero_terminal = bool(s["rescale_betas_zero_snr"])
    if s["trained_betas"] is not None:
        return Training(DDPM(table=tuple(map(float, s["trained_betas"])), zero_terminal=zero_terminal), predicts)
    steps, schedule = s.count("num_train_timesteps"), _SCHEDULES[s.require("beta_schedule", *_SCHEDULES)]
    if schedule == "cosine":
        return Training(DDPM(schedule, steps, zero_terminal=zero_terminal), predicts)
    # theirs are the betas at any number of steps, ours at 1000
    low, high = (s.number(key) * steps / 1000 for key in ("beta_start", "beta_end"))
    return Training(DDPM(schedule, steps, low, high, zero_terminal=zero_terminal), predicts)


def settings(denoiser: Denoiser) -> dict[str, Any]:
    """The config of the scheduler that asks the network what ``denoiser`` asks it. Raises UserError if there is none."""
    d, path = denoiser, denoiser.path
    flow = isinstance(path, RectifiedFlow) and d.predicts == "flow" and d.preconditioning is None
    if flow and d.time_scale >= 2 and float(d.time_scale).is_integer():
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": int(d.time_scale), "shift": 1.0}
    if isinstance(path, EDM) and d.predicts == "F" and isinstance(d.preconditioning, EDMPreconditioning) and d.time_scale == 1:
        found: dict[str, Any] = {"_class_name": "EDMEulerScheduler", "prediction_type": "epsilon", "sigma_data": d.sigma_data}
        return {**found, "sigma_min": path.t_min, "sigma_max": path.t_max}
    theirs = {ours: name for name, ours in _PREDICTS.items()}
    if not isinstance(path, DDPM) or d.predicts not in theirs or d.preconditioning is not None or d.time_scale != 1:
        problem = f"a network that predicts {d.predicts} on {type(path).__name__} with time_scale {d.time_scale:g}"
        known = "a DDPM table with eps, x0 or v, EDM with F, or rectified flow with flow and a time_scale of 1000"
        raise UserError("path.kind", f"no scheduler of diffusers asks {problem}", f"export one trained on {known}")
    found = {"_class_name": "DDPMScheduler", "prediction_type": theirs[d.predicts], "num_train_timesteps": path.steps}
    found |= {"rescale_betas_zero_snr": path.zero_terminal, "clip_sample": False, "timestep_spacing": "trailing"}
    found["variance_type"] = "learned_range" if d.learned_variance else "fixed_small"
    if path.table:
        return {**found, "trained_betas": list(path.table)}
    names = {ours: name for name, ours in _SCHEDULES.items()}
    scale = 1000 / path.steps
    return {**found, "beta_schedule": names[path.schedule], "beta_start": path.beta_min * scale, "beta_end": path.beta_max * scale}


def agreeing(given: Mapping[str, Any], denoiser: Denoiser, in_channels: int, out_channels: int) -> dict[str, Any]:
    """``given``, if it asks the network what ``denoiser`` asks it. Raises UserError otherwise, and as ``read``."""
    other = read(given, "scheduler", in_channels, out_channels).denoiser(denoiser.network)
    names = ("path", "predicts", "preconditioning", "sigma_data", "time_scale", "learned_variance")
    for name in names:
        theirs, ours = getattr(other, name), getattr(denoiser, name)
        if theirs != ours:
            raise UserError("scheduler", f"it says {name} {theirs}, the network was trained with {ours}", "leave it out")
    return dict(given)
