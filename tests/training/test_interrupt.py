from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from unveil.training.interrupt import Interrupt, Interrupted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Interrupt() as interrupt:
        assert not interrupt.requested
        os.kill(os.getpid(), number)
        assert interrupt.requested
    assert signal.getsignal(number) is before


def test_the_second_signal_leaves_at_once() -> None:
    code = """
import os, signal
from unveil.training.interrupt import Interrupt
with Interrupt():
    os.kill(os.getpid(), signal.SIGTERM)
    print("first", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("second")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "first\n")


def test_a_run_in_another_thread_leaves_the_signals_alone() -> None:
    seen: list[object] = []

    def body() -> None:
        with Interrupt():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_an_interrupted_run_ends_the_process_with_status_0() -> None:
    assert Interrupted(5).code == 0 and Interrupted(5).step == 5
