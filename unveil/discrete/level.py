"""What a network that is told the noise level hears of a row while it is uncovered: the total noise sigma = -log alpha."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from unveil.data.noise import generator
from unveil.discrete.canvas import Canvas
from unveil.discrete.commit import BLIND
from unveil.discrete.process import Schedule, sigma

Array = np.ndarray[Any, Any]
MOST = 20.0
"""Total noise at time 1, where a schedule has more: e^-20 of the text is left."""


@dataclass(frozen=True)
class Level:
    """Of a row that masks are uncovered in, never more than at time 1.

    Rules that go by time say the time (MDLM, eq. 6, and the hitting times of BD3-LM, appendix B.3), scaled to the masks that are not in the
    open window; what was given does not count, as in SEDD's sampler. Rules that go by confidence have no time: there it is the level at
    which as large a share of the tokens is masked, those of ``keep`` left out.
    """

    schedule: Schedule
    commit: str
    mask: int
    keep: tuple[int, ...] = ()

    def __call__(self, row: Canvas, tokens: Array) -> float:
        """``tokens`` are what the network reads of the row."""
        rate = self._by_time(row) if self.commit in BLIND else self._by_share(tokens)
        highest = min(float(sigma(self.schedule, torch.ones((), dtype=torch.float64))), MOST)
        return highest if rate >= 1.0 else min(-math.log1p(-rate), highest)

    def _by_share(self, tokens: Array) -> float:
        return float((tokens == self.mask).sum()) / int((~np.isin(tokens, self.keep)).sum())

    def _by_time(self, row: Canvas) -> float:
        masks = row.windows.masks
        here, later = masks[row.window], sum(masks[row.window + 1 :])
        if self.commit == "first-hitting":
            # with n masks left the next one is hit where the rate has fallen by a factor u^(1/n)
            u = generator(row.seed, row.window, 0, "hitting times").random(here)
            rate = float(np.prod(u[: row.inside + 1] ** (1.0 / np.arange(here, here - row.inside - 1, -1))))
        else:
            rate = float(self.schedule.mask_rate(torch.tensor(row.clock(0).times[0], dtype=torch.float64)))
        return (later + here * rate) / sum(masks)
