"""Folders of the hub, with a hub that is not there."""

from __future__ import annotations

import fnmatch
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.mistakes import answered
from unveil.errors import UserError
from unveil.interop import hub


def test_a_folder_is_asked_for_without_code_and_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []

    def snapshot_download(identity: str, allow_patterns: list[str]) -> str:
        asked.append((identity, allow_patterns))
        (tmp_path / "model.safetensors").touch()
        return str(tmp_path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    assert hub.fetched("hub:owner/model") == tmp_path
    ((identity, patterns),) = asked
    assert identity == "owner/model"

    def wanted(name: str) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)

    assert all(wanted(name) for name in ("config.json", "tokenizer.json", "model-00001-of-2.safetensors", "model.safetensors.index.json"))
    assert wanted("vocab.json") and wanted("merges.txt")
    assert wanted("chat_template.jinja")
    assert not any(wanted(name) for name in ("modeling_llada.py", "pytorch_model.bin", "model.ckpt", "weights.pth"))


class LocalEntryNotFoundError(Exception):
    """As the library's, which is no ConnectionError."""


FAILURES: dict[str, tuple[Exception | None, tuple[str, ...]]] = {
    "no network": (ConnectionError("no route to the hub\nand a long story"), ("not on this machine", "go online")),
    "nothing cached": (LocalEntryNotFoundError("a long story"), ("not on this machine", "cannot be reached")),
    "gated": (PermissionError("403: accept the licence\nfirst"), ("cannot be fetched (403: accept the licence)", "look at its name")),
    "pickles alone": (None, ("no safetensors", "run code")),
}


@pytest.mark.parametrize("case", FAILURES)
def test_what_the_hub_does_not_give_is_one_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error, words = FAILURES[case]

    def snapshot_download(identity: str, allow_patterns: list[str]) -> str:
        if error is not None:
            raise error
        return str(tmp_path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    said = answered(["sample", "hub:owner/model"], capsys)
    assert "hub:owner/model: " in said and all(word in said for word in words), said


def test_a_name_that_may_be_the_hub_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert "hub:GSAI-ML/LLaDA-8B-Instruct" in answered(["sample", "GSAI-ML/LLaDA-8B-Instruct"], capsys)
    assert "hub:" not in answered(["sample", "/gone/away"], capsys)


def test_without_the_library_the_remedy_is_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="huggingface_hub is not installed") as caught:
        hub.fetched("hub:owner/model")
    assert "pip install" in caught.value.remedy
