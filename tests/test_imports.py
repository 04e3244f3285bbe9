"""What stands above torch must load without it, and quickly."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "tokenizers", "pyarrow", "matplotlib", "datasets"}:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
"""


@pytest.mark.parametrize(
    "work", ["import unveil, unveil.cli, unveil.config, unveil.recipe, unveil.errors", "import unveil.recipe as r; r.load('tiny')"]
)
def test_the_roof_loads_without_torch(work: str) -> None:
    done = subprocess.run([sys.executable, "-c", BLOCK + work], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_needs_no_torch() -> None:
    program = BLOCK + "from unveil.cli import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout and "doctor" in done.stdout


def test_the_run_api_is_imported_when_asked_for() -> None:
    program = "import sys, unveil; assert 'torch' not in sys.modules; unveil.load; assert 'torch' in sys.modules"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0
    with pytest.raises(AttributeError, match="nonsense"):
        import unveil

        unveil.nonsense  # noqa: B018
