"""What is known of a run beside its training log: held-out scores, infills, samples and views, as one JSON file in its directory.

A page can so be drawn again, alone or beside other runs, without the network, the data or the machine that made it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from unveil.errors import UserError
from unveil.evaluation.infill import Filling, Gap
from unveil.evaluation.likelihood import BitsPerByte
from unveil.family import Bars, Curve, HeatMap, ImageGrid, Table, TokenTimeline, View
from unveil.metrics.compression import Score

FILE = "evidence.json"
VIEWS: dict[str, Callable[..., View]] = {kind.__name__: kind for kind in (Curve, Table, Bars, TokenTimeline, ImageGrid, HeatMap)}


@dataclass(frozen=True)
class Headline:
    """A run in one number."""

    value: float
    unit: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    bits: BitsPerByte | None = None
    bound: bool = False
    """``bits`` bounds the cost from above; it is not the cost itself."""
    headline: Headline | None = None
    """What stands in the place of ``bits`` where there are none."""
    baselines: Sequence[Score] = ()
    fillings: Sequence[Filling] = ()
    samples: Sequence[str] = ()
    views: Sequence[View] = ()
    costs: Mapping[str, float] = field(default_factory=dict)
    """What the training log does not say: ``parameters``, ``flops_per_token`` or ``flops_per_image`` (forward and backward),
    ``peak_flops``, ``memory_bytes``."""

    def with_views(self, *views: View, headline: Headline | None = None) -> Evidence:
        """These views in the place of those with their titles, or behind the others; and a headline, where one is given."""
        titles = {view.title for view in views}
        kept = [view for view in self.views if view.title not in titles]
        return replace(self, views=[*kept, *views], headline=headline or self.headline)

    def save(self, directory: Path) -> None:
        """Write ``evidence.json`` into the run's directory, whole or not at all."""
        data = asdict(self) | {"views": [{"kind": type(view).__name__, **asdict(view)} for view in self.views]}
        aside = directory / f"{FILE}.tmp"
        aside.write_text(json.dumps(data, indent=1, default=_plain), encoding="utf-8")
        os.replace(aside, directory / FILE)

    @staticmethod
    def load(directory: Path) -> Evidence:
        """Read it back; empty evidence where the run was never evaluated. Raises UserError for a file that is no evidence."""
        path = directory / FILE
        if not path.exists():
            return Evidence()
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            return Evidence(
                bits=None if data["bits"] is None else BitsPerByte(**data["bits"]),
                bound=data["bound"],
                headline=Headline(**data["headline"]) if data.get("headline") else None,
                baselines=[Score(**score) for score in data["baselines"]],
                fillings=[Filling(Gap(**each["gap"]), each["text"]) for each in data["fillings"]],
                samples=data["samples"],
                views=[VIEWS[view.pop("kind")](**view) for view in data["views"]],
                costs=data["costs"],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                str(path), f"not readable as evidence of a run ({error})", "delete it; `unveil train --resume` on the run writes it again"
            ) from None


def _plain(value: Any) -> Any:
    """Numpy scalars and arrays, which families put into views, as JSON's own types."""
    return value.tolist()
