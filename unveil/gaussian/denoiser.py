"""What the network's output means: a network, whatever it predicts and under whatever path it was trained, as D = E[x0 | x_t].

D depends on y = x / alpha and n = sigma / alpha alone. So a level of any path is first carried to the time t' at which the network's own
path has the same n: x' = x hypot(alpha', sigma') / hypot(alpha, sigma), which is x alpha' / alpha and holds at alpha = 0 too. There the
network is asked what it was trained on, and the answer is D of the caller's level as well. That is EDM's unification (Karras et al. 2022,
section 2 and appendix C): training under one path and sampling under another is exact, for every output and every preconditioning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unveil.errors import UserError, nearest
from unveil.gaussian.level import Level, Path
from unveil.gaussian.output import OUTPUTS, Output, Point, along, inverse_row
from unveil.gaussian.path import DDPM, EDM, Shifted
from unveil.gaussian.preconditioning import PRECONDITIONINGS, Preconditioning

REMEMBERED = 4096
"""Levels whose coefficients are kept; a grid has far fewer."""


class Coefficients(NamedTuple):
    """D = skip x + out network(into x, noise): Python floats for a whole batch, or float64 tensors ``[B]``."""

    skip: Any
    out: Any
    into: Any
    noise: Any


class Denoiser(nn.Module):
    """A network as D = E[x0 | x_t = x] at any level of any path.

    Args:
        network: (x_in ``[B, ...]``, c_noise ``[B]``, **condition) -> a tensor like x_in, or with twice the channels where
            ``learned_variance``. Any callable, with any shape of data.
        predicts: what the output means, one of ``OUTPUTS``; "F" is what ``preconditioning`` says (EDM's where there is none).
        path: the path it was trained under. Without a preconditioning the network gets x_t of this path and its time t, held
            within the trained range t_min ... t_max.
        preconditioning: "edm", "vp", "ve", "iddpm" (a column of EDM's Table 1, or an object of its kind): the network gets c_in y and
            c_noise instead of x_t and t.
        sigma_data: standard deviation of the data, for "F" and EDM's preconditioning.
        time_scale: factor of c_noise, for networks made to read 1000 t.
        learned_variance: the second half of the channels is an interpolation of log variances (Nichol & Dhariwal 2021, eq. 15).

    Raises:
        UserError: an unknown output or preconditioning, sigma_data not above 0; eps, score or the F of an eps network with a table of
            zero terminal SNR, where they do not say what the image is (Lin et al. 2024).
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        predicts: Output = "eps",
        path: Path | None = None,
        preconditioning: str | Preconditioning | None = None,
        sigma_data: float = 0.5,
        time_scale: float = 1.0,
        learned_variance: bool = False,
    ) -> None:
        super().__init__()
        if predicts not in OUTPUTS:
            raise UserError("denoiser.predicts", f"got '{predicts}'", nearest(predicts, OUTPUTS))
        if not 0.0 < sigma_data < math.inf:
            raise UserError("denoiser.sigma_data", f"got {sigma_data}", "give the standard deviation of the data, above 0")
        if isinstance(preconditioning, str):
            if preconditioning not in PRECONDITIONINGS:
                raise UserError("denoiser.preconditioning", f"got '{preconditioning}'", nearest(preconditioning, PRECONDITIONINGS))
            preconditioning = PRECONDITIONINGS[preconditioning](sigma_data)
        self.network = network
        self.predicts, self.path, self.preconditioning = predicts, path or EDM(), preconditioning
        self.sigma_data, self.time_scale, self.learned_variance = sigma_data, time_scale, learned_variance
        self._remembered: dict[Level, Coefficients] = {}
        if _ends_without_signal(self.path) and self._blind_without_signal():
            raise UserError(
                "denoiser.predicts",
                f"got '{predicts}' with zero terminal SNR, where the last step holds no signal and noise says nothing of the image",
                "predict v, x0 or flow, or keep the table as it was",
            )

    def forward(self, x: Tensor, level: Level, **condition: Any) -> Tensor:
        """D, of the shape and dtype of x.

        Args:
            x: x_t ``[B, ...]`` at ``level``, of any path.
            level: alpha and sigma, both floats or both ``[B]``.
            condition: what else the network takes.

        Raises:
            UserError: one level (floats) at which the output does not determine D, such as eps at alpha = 0.
        """
        return self._denoise(x, level, condition)[0]

    def with_variance(self, x: Tensor, level: Level, **condition: Any) -> tuple[Tensor, Tensor]:
        """D, and the share f in [0, 1] (not clipped) of log beta in the learned log variance f log beta + (1 - f) log beta-tilde.

        Raises:
            ValueError: the network does not learn its variance.
        """
        denoised, share = self._denoise(x, level, condition)
        if share is None:
            raise ValueError("with_variance needs learned_variance=True")
        return denoised, share

    def coefficients(self, level: Level) -> Coefficients:
        """The linear map around the network at a level, in float64; for one level it is computed once and remembered."""
        if isinstance(level.alpha, Tensor):
            return self._coefficients(level.alpha.double(), torch.as_tensor(level.sigma).double())
        known = self._remembered.get(level)
        if known is None:
            values = self._coefficients(*(torch.tensor(value, dtype=torch.float64) for value in level))
            known = Coefficients(*(value.item() for value in values))
            if not all(map(math.isfinite, known)):
                raise UserError(
                    "sampler.grid",
                    f"a network that predicts {self.predicts} cannot say the image at alpha = {level.alpha:.4g}, sigma = {level.sigma:.4g}",
                    "stay between the first and the last noise level that it was trained on",
                )
            if len(self._remembered) >= REMEMBERED:
                self._remembered.clear()
            self._remembered[level] = known
        return known

    def _coefficients(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        n = sigma / alpha
        time = self.path.time(n)
        point = Point.of(self.path, time)
        carried = torch.hypot(point.alpha, point.sigma) / torch.hypot(alpha, sigma)
        if self.preconditioning is None:
            into, noise = carried, time.clamp(self.path.t_min, self.path.t_max)
        else:
            scalings = self.preconditioning.scalings(n)
            into, noise = scalings.into / alpha, scalings.noise
        if self.predicts == "F" and self.preconditioning is not None:
            skip, out = scalings.skip / alpha, scalings.out
        else:
            a, out = inverse_row(self.predicts, point, self.sigma_data)
            skip = a * carried
        return Coefficients(skip, out, into, self.time_scale * noise)

    def _denoise(self, x: Tensor, level: Level, condition: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        skip, out, into, noise = self.coefficients(level)
        inside = x.to(self._network_dtype(x))
        if isinstance(into, Tensor):
            inside = inside * along(into, inside)
        elif into != 1.0:
            inside = inside * into
        output, raw = self.answer(inside, noise, condition)
        share = None if raw is None else (raw.to(x.dtype) + 1.0) / 2.0
        if isinstance(skip, Tensor):
            return along(skip, x) * x + along(out, x) * output.to(x.dtype), share
        if skip == 0.0:
            return (output if out == 1.0 else output * out).to(x.dtype), share
        return x.mul(skip).add_(output, alpha=out), share

    def answer(self, inside: Tensor, noise: float | Tensor, condition: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """What the network itself says, without the linear map: its output, and the raw variance where it learns one.

        Args:
            inside: the network's input ``[B, ...]``, scaled already, in the network's dtype.
            noise: c_noise, one for all or ``[B]``.

        Raises:
            UserError: an output that is not shaped like the input.
        """
        # a time in bfloat16 takes 999 for 1000
        wide = torch.promote_types(inside.dtype, torch.float32)
        if isinstance(noise, Tensor):
            times = noise.to(inside.device, wide).expand(len(inside))
        else:
            times = torch.full((len(inside),), noise, dtype=wide, device=inside.device)
        output, raw = self.network(inside, times, **condition), None
        if self.learned_variance:
            output, raw = output.chunk(2, dim=1)
        if output.shape != inside.shape:
            raise UserError(
                "denoiser.network",
                f"got an output of shape {tuple(output.shape)} for an input of {tuple(inside.shape)}",
                "return a tensor like the input, or twice its channels with learned_variance=True",
            )
        return output, raw

    def _network_dtype(self, x: Tensor) -> torch.dtype:
        """The dtype of the network's first parameter; that of x where it has none."""
        parameter = next(self.parameters(), None)
        return x.dtype if parameter is None else parameter.dtype

    def _blind_without_signal(self) -> bool:
        """Whether the output says nothing of the image at alpha = 0: D is then x / 0 and more."""
        if self.predicts == "F":
            kind = self.preconditioning
            return kind is not None and not math.isfinite(kind.scalings(torch.tensor(math.inf, dtype=torch.float64)).out.item())
        return self.predicts in ("eps", "score")


def _ends_without_signal(path: Path) -> bool:
    """Whether a discrete path's last step has alpha = 0: every sample begins there, unlike the open end of a continuous path."""
    while isinstance(path, Shifted):
        path = path.path
    return isinstance(path, DDPM) and path.alpha(path.t_max) == 0.0
