"""Inpainting with any denoiser: after every step the known part is put in place, with the noise that it would have there.

That is the replacement of score SDEs (Song et al. 2021, appendix I.2). What is generated has not seen what is put beside it, so RePaint
(Lugmayr et al. 2022, algorithm 1) takes each step several times, with the noise of the step put back in between: the two get to agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unveil.errors import UserError
from unveil.gaussian.grid import Grid, Instant
from unveil.gaussian.sampler import Sampler, State
from unveil.gaussian.solver import Solver
from unveil.gaussian.solvers.stochastic import ancestral
from unveil.gaussian.tape import Draw, Let, Tape


class Inpainter(Sampler):
    """A sampler that is told a part of each image.

    Args:
        resamples: how often each step is taken; 1 is plain replacement, RePaint's choice is 10.
        solver, options: as of ``Sampler``.

    Raises:
        UserError: fewer than 1 resample; a solver that draws no noise, whose state would never mix with what is put in, or one that
            remembers earlier steps.
    """

    def __init__(
        self,
        denoiser: Callable[..., Tensor],
        grid: Grid,
        solver: Solver = ancestral,
        *,
        resamples: int = 1,
        dtype: torch.dtype = torch.float32,
        clip: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(denoiser, grid, solver, dtype=dtype, clip=clip, **options)
        if resamples < 1:
            raise UserError("sampler.resamples", f"got {resamples}", "take every step at least once")
        if not solver.traits(**options).draws or self._reach:
            raise UserError(
                "sampler.solver", f"'{solver.name}' cannot inpaint", "choose one that draws noise and has no memory, such as ancestral"
            )
        pairs = zip(self.tapes, grid.instants, grid.instants[1:], strict=False)
        self.tapes = tuple(one for tape, t, s in pairs for one in _repeated(tape, t, s, resamples))

    def begin(self, known: Tensor, mask: Tensor, seeds: Sequence[int], **condition: Tensor) -> State:  # type: ignore[override]
        """A row per image.

        Args:
            known: ``[B, ...]``; only what the mask shows of it matters.
            mask: true where the image is known; broadcasts with ``known``.
            seeds: one per image.
        """
        shown = torch.broadcast_to(mask.to(torch.bool), known.shape)
        return super().begin(known.shape, seeds, given={"known": known.to(self.dtype), "mask": shown}, **condition)

    def sample(self, known: Tensor, mask: Tensor, seeds: Sequence[int], **condition: Tensor) -> Tensor:  # type: ignore[override]
        """From ``begin`` to the grid's end, ``[B, ...]``."""
        return self.finish(self.begin(known, mask, seeds, **condition))


def _repeated(tape: Tape, t: Instant, s: Instant, times: int) -> list[Tape]:
    """The step with the known part put in place at its end, and before each repetition the way back from s to t."""
    draw = () if s.sigma == 0.0 else (Draw("known noise"),)
    noise = () if s.sigma == 0.0 else (("known noise", s.sigma),)
    once = replace(tape, instructions=(*tape.instructions, *draw), given=(("known", s.alpha), *noise))
    if times == 1 or s.sigma == 0.0:
        return [once]
    ratio = t.alpha / s.alpha
    back = Let("x", (("x", ratio), ("noise back", math.sqrt(t.sigma**2 - (ratio * s.sigma) ** 2))))
    again = replace(once, instructions=(Draw("noise back"), back, *once.instructions))
    return [once] + [again] * (times - 1)
