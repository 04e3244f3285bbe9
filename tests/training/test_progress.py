from __future__ import annotations

import pytest

from unveil.training.progress import Bar

VALUES = {"train/nll": 1.5, "train/ce 0.0-0.1": 9.0, "lr": 0.1, "eval/bits": 2.0}


def test_off_a_terminal_a_run_writes_some_lines_with_what_matters(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar(True, 0, 200) as bar:
        for _ in range(200):
            bar.advance()
            bar.note(VALUES, 12345.0, 67.0, 0.25, "tok")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 20
    assert lines[0] == "step 10/200  nll 1.500  eval/bits 2.000  12,345 tok/s  25% of peak  67 s left"


def test_nothing_is_shown_to_those_who_did_not_ask(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar(False, 0, 2) as bar:
        bar.advance()
        bar.note(VALUES, 1.0, 1.0, 0.1, "tok")
        bar.say("hello")
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
