"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of small real data sets; tests that need it skip where it is absent, and say so."""
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("UNVEIL_DATA", root.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}: set UNVEIL_DATA")
    return folder
