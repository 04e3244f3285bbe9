"""What a number in a recipe may be."""

from __future__ import annotations

from typing import Annotated, NamedTuple


class Range(NamedTuple):
    """What a number may be: ``low <= value <= high``, or ``low < value`` where the bound itself is left out."""

    low: float
    high: float = float("inf")
    open: bool = False


Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Share = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(0, open=True)]
NonNegative = Annotated[float, Range(0)]
