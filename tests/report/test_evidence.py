from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from unveil.errors import UserError
from unveil.evaluation.infill import Filling, Gap
from unveil.evaluation.likelihood import BitsPerByte
from unveil.family import Bars, Curve, HeatMap, ImageGrid, Table, TokenTimeline
from unveil.metrics.compression import Score
from unveil.report.evidence import FILE, Evidence, Headline


def test_evidence_comes_back_as_it_was(tmp_path: Path) -> None:
    evidence = Evidence(
        bits=BitsPerByte(1.5, 0.1, 0.0, 4.0, 2.0, 10, 30, 2),
        bound=True,
        headline=Headline(1.0, "u", "n"),
        baselines=[Score("xz", 1.9, 1.5)],
        fillings=[Filling(Gap("f", "a\r\n", "é", "\u2028"), "<x>")],
        samples=["one", "two"],
        views=[Curve("c", [1, 2], {"y": [0.5, 0.25]}, "x", "y"), Table("t", ["a"], [[1], ["b"]]), TokenTimeline("l", ["a"], [1], [0.5])],
        costs={"parameters": 1.0},
    )
    evidence = evidence.with_views(Table("t", ["b"], []), ImageGrid("g", ["QQ=="], ["step 1"], 2, 3, "note"))
    evidence = evidence.with_views(HeatMap("h", {"p": [[0.5, 1.5]]}, [1.0, 2.0], "x", "y", "note"))
    evidence = evidence.with_views(Bars("b", ["x"], [0.5], [0.1]), TokenTimeline("l", ["a"], [1], [0.5], "n", [[1, 1, 2, 3]]))
    assert [view.title for view in evidence.views] == ["c", "t", "g", "h", "b", "l"]
    evidence.save(tmp_path)
    assert Evidence.load(tmp_path) == evidence
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_numpy_and_nan_survive(tmp_path: Path) -> None:
    bits = BitsPerByte(1.5, 0.1, math.nan, math.nan, 2.0, 10, 30, 2)
    Evidence(bits=bits, views=[Curve("c", np.arange(2), {"y": np.array([0.5, math.nan])})]).save(tmp_path)  # type: ignore[arg-type]
    back = Evidence.load(tmp_path)
    assert back.bits is not None and math.isnan(back.bits.draws_stderr)
    curve = back.views[0]
    assert isinstance(curve, Curve) and list(curve.x) == [0, 1] and math.isnan(curve.y["y"][1])


def test_none_is_empty_and_a_damaged_file_is_the_users_to_know(tmp_path: Path) -> None:
    assert Evidence.load(tmp_path) == Evidence()
    for text in ("{", "[]", '{"bits": null}', '{"bits": {"content": 1}, "baselines": []}'):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(UserError, match="not readable as evidence"):
            Evidence.load(tmp_path)
