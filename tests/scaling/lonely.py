"""What a worker of a cluster is asked to do in a test; it needs nothing of ours."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def killed_once(number: int, folder: Path) -> int:
    """The first worker that comes here is killed; whoever begins its task again finds what it left."""
    if not list(folder.glob("begun-*")):
        (folder / f"begun-{number}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number
