"""Golden numbers of the public references, and exact data to check against."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor


@pytest.fixture
def golden(data_dir: Path) -> Callable[[str], tuple[dict[str, Tensor], dict[str, Any]]]:
    """Arrays of a golden file as tensors, and its configuration."""

    def load(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        with np.load(data_dir / "golden" / f"{name}.npz") as file:
            arrays = {key: torch.from_numpy(np.asarray(file[key])) for key in file.files if key != "config"}
            return arrays, json.loads(str(file["config"]))

    return load
