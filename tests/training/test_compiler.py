from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import unveil.training.compiler as compiler


def _library(folder: Path) -> bytes:
    linker = shutil.which("g++") or shutil.which("c++")
    if linker is None or sys.platform != "linux":
        pytest.skip("no compiler that writes ELF libraries")
    (folder / "a.cpp").write_text("int one() { return 1; }")
    subprocess.run([linker, "-shared", "-fPIC", "-o", "a.so", "a.cpp"], cwd=folder, check=True)
    return (folder / "a.so").read_bytes()


def _aged(path: Path, content: bytes, seconds: float = 3600.0) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))
    return path


def test_truncated_libraries_go_and_whole_ones_stay(tmp_path: Path) -> None:
    (source := tmp_path / "source").mkdir()
    content = _library(source)
    good = _aged(tmp_path / "a" / "whole.so", content)
    torn = [_aged(tmp_path / "b" / f"{n}.so", content[:n]) for n in (0, 40, len(content) // 2, len(content) - 1)]
    fresh = _aged(tmp_path / "c" / "being_written.so", content[:40], seconds=0)
    assert sorted(compiler.drop_torn_libraries(tmp_path)) == sorted(torn)
    assert good.exists() and fresh.exists() and not any(p.exists() for p in torn)
    assert compiler.drop_torn_libraries(tmp_path) == []
