"""Folders of the hub, with a hub that is not there."""

from __future__ import annotations

import fnmatch
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import unveil
from unveil.errors import UserError
from unveil.interop import hub


def test_a_folder_is_asked_for_without_code_and_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []

    def snapshot_download(identity: str, allow_patterns: list[str]) -> str:
        asked.append((identity, allow_patterns))
        return str(tmp_path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    assert hub.fetched("hub:owner/model") == tmp_path
    ((identity, patterns),) = asked
    assert identity == "owner/model"

    def wanted(name: str) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)

    assert all(wanted(name) for name in ("config.json", "tokenizer.json", "model-00001-of-2.safetensors", "model.safetensors.index.json"))
    assert wanted("chat_template.jinja")
    assert not any(wanted(name) for name in ("modeling_llada.py", "pytorch_model.bin", "model.ckpt", "weights.pth"))


def test_offline_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(identity: str, allow_patterns: list[str]) -> str:
        raise ConnectionError("no route to the hub\nand a long story")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    with pytest.raises(UserError, match=r"cannot be fetched \(no route to the hub\)") as caught:
        unveil.load("hub:owner/model")
    assert caught.value.field == "hub:owner/model" and "\n" not in str(caught.value)


def test_without_the_library_the_remedy_is_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="huggingface_hub is not installed") as caught:
        hub.fetched("hub:owner/model")
    assert "pip install" in caught.value.remedy
