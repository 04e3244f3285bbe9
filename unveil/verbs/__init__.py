"""What a person can ask for, one dataclass per verb: its fields are the arguments, its docstring the help, ``run`` does it.

Whatever is heavy is imported by the verb that needs it.
"""

from __future__ import annotations

from unveil.verbs.averaging import Average
from unveil.verbs.comparing import Compare
from unveil.verbs.converting import Convert
from unveil.verbs.judging import Doctor, Evaluate, Report
from unveil.verbs.making import Data, Demo, Inspect, Plan, Prepare, Train
from unveil.verbs.scaling import FitScale, PlanScale, Scaling, SweepScale
from unveil.verbs.shared import Overrides
from unveil.verbs.streaming import Stream
from unveil.verbs.uncovering import Chat, Sample

__all__ = [
    "VERBS",
    "Average",
    "Chat",
    "Compare",
    "Convert",
    "Data",
    "Demo",
    "Doctor",
    "Evaluate",
    "FitScale",
    "Inspect",
    "Overrides",
    "Plan",
    "PlanScale",
    "Prepare",
    "Report",
    "Sample",
    "Scaling",
    "Stream",
    "SweepScale",
    "Train",
]

VERBS = (Train, Sample, Chat, Stream, Evaluate, Compare, Average, Convert, Report, Data, Demo, Plan, Scaling, Doctor)
