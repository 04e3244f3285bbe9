"""The verb that chooses an average of the weights after training: average."""

from __future__ import annotations

from dataclasses import dataclass

from tyro.conf import Positional

from unveil.verbs.shared import Overrides, no_settings


@dataclass(frozen=True)
class Average:
    """Average a run's weights over any share of its training, from the averages that training.ema_widths kept."""

    path: Positional[str]
    """A run directory."""
    width: float
    """Relative width of the average (sigma_rel): 0.05 is short, 0.25 long."""
    step: int | None = None
    """Average up to this step; up to the end if not given."""

    def run(self, overrides: Overrides) -> None:
        no_settings(overrides, "average")
        from unveil.average import average

        folder = average(self.path, self.width, self.step)
        print(f"{folder}\n  unveil sample {folder}\n  unveil evaluate {folder}")
