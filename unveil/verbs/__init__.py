"""What a person can ask for, one dataclass per verb: its fields are the arguments, its docstring the help, ``run`` does it.

Whatever is heavy is imported by the verb that needs it.
"""

from __future__ import annotations

from unveil.verbs.judging import Doctor, Evaluate, Report
from unveil.verbs.making import Data, Demo, Inspect, Plan, Prepare, Train
from unveil.verbs.shared import Overrides
from unveil.verbs.uncovering import Chat, Sample

__all__ = ["VERBS", "Chat", "Data", "Demo", "Doctor", "Evaluate", "Inspect", "Overrides", "Plan", "Prepare", "Report", "Sample", "Train"]

VERBS = (Train, Sample, Chat, Evaluate, Report, Data, Demo, Plan, Doctor)
