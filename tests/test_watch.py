"""Colours, and lines where there is no terminal."""

from __future__ import annotations

from unveil.watch import RAMP, colour, printable


def _lightness(hexadecimal: str) -> float:
    red, green, blue = (int(hexadecimal[i : i + 2], 16) for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue


def test_colours_run_from_early_to_late_and_rise_in_lightness() -> None:
    shades = [colour(step, 9) for step in range(1, 10)]
    assert shades[0] == "#{:02x}{:02x}{:02x}".format(*RAMP[0]) and shades[-1] == "#{:02x}{:02x}{:02x}".format(*RAMP[-1])
    lightness = [_lightness(shade) for shade in shades]
    assert lightness == sorted(lightness) and len(set(lightness)) == 9 and lightness[0] > 100
    assert all(len(colour(step, 3)) == 7 for step in (1, 3, 50)), "more steps than expected stay a colour"


def test_what_a_model_writes_cannot_steer_the_terminal() -> None:
    text = printable("a\x1b[2J\x04\x9b\x7f\tb\n")
    assert text == "a\u241b[2J\u2404\ufffd\u2421\tb\n"
