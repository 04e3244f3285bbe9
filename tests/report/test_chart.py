from __future__ import annotations

import math

import pytest

from unveil.report.chart import POINTS, bars, decades, draw, short, smooth, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.13, 0.31, [0.15, 0.2, 0.25, 0.3]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (3, 3, [3]),
        (0, 2e6, [0, 5e5, 1e6, 1.5e6, 2e6]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"), [(0.12345, "0.123"), (999.4, "999"), (1000, "1 k"), (2_605_056, "2.61 M"), (3.2e11, "320 G"), (-1500, "-1.5 k")]
)
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text


def test_smoothing_keeps_a_constant_a_line_and_the_mean_of_the_middle() -> None:
    assert smooth([2.0] * 50, 0.2) == pytest.approx([2.0] * 50)
    line = [float(i) for i in range(101)]
    assert smooth(line, 0.1)[10:90] == pytest.approx(line[10:90])
    assert smooth(line, 0.1)[0] == pytest.approx(sum(range(6)) / 6)
    assert smooth([1.0, 5.0]) == [1.0, 5.0]
    assert smooth([]) == []


def test_points_stand_where_their_values_say() -> None:
    chart = draw("t", [("a", [0, 50, 100], [0.0, 5.0, 10.0]), ("b", [100], [math.nan])])
    assert chart is not None
    (line,) = chart.lines
    scale = {tick.label: tick.at for tick in chart.y_ticks}
    assert [point[1] for point in line.points] == [scale["0"], pytest.approx((scale["0"] + scale["10"]) / 2), scale["10"]]
    assert line.path == f"M0 {100 - scale['0']:g}L50 50L100 {round(100 - scale['10'], 2):g}"
    assert all(0 <= tick.at <= 100 for tick in chart.y_ticks + chart.x_ticks)
    assert draw("t", [("b", [1], [math.inf])]) is None


def test_long_lines_are_thinned_and_keep_their_ends() -> None:
    chart = draw("t", [("a", range(10_000), [float(i) for i in range(10_000)])])
    assert chart is not None
    assert len(chart.lines[0].points) <= POINTS + 1
    assert chart.lines[0].points[0][2] == 0 and chart.lines[0].points[-1][2] == 9_999


def test_a_flat_line_has_a_place() -> None:
    chart = draw("t", [("a", [1, 2], [3.0, 3.0])])
    assert chart is not None and [point[1] for point in chart.lines[0].points] == [50.0, 50.0]


def test_bars_are_ordered_and_to_scale() -> None:
    made = bars([("short", 1.0, "base", "", 0.0), ("long", 3.9, "run-0", "bound", 0.1)])
    assert [(bar.name, bar.width) for bar in made] == [("long", 97.5), ("short", 25.0)]


def test_on_a_logarithmic_axis_equal_ratios_stand_equally_far_apart() -> None:
    chart = draw("t", [("a", [10, 100, 1000], [1.0, 2.0, 3.0])], log_x=True)
    assert chart is not None and [point[0] for point in chart.lines[0].points] == [0, 50, 100]
    assert [(tick.label, tick.at) for tick in chart.x_ticks][::3] == [("10", 0), ("100", 50), ("1 k", 100)]
    assert all(0 <= tick.at <= 100 for tick in chart.x_ticks)
    assert [point[2] for point in chart.lines[0].points] == [10, 100, 1000], "the readout tells x itself"


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(5, 50, [5, 10, 20, 50]), (1, 1e6, [10**k for k in range(7)]), (18, 35, [20]), (3, 3, [])]
)
def test_decades(low: float, high: float, expected: list[float]) -> None:
    assert decades(low, high) == pytest.approx(expected)
