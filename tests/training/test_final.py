from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.training.toy import VOCABULARY, network
from unveil.errors import UserError
from unveil.training import final
from unveil.training.weights import weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    final.write(tmp_path / "final", network(), {"family": "toy", "vocabulary": VOCABULARY})
    return tmp_path / "final"


def test_what_was_written_is_read(folder: Path) -> None:
    model = network()
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    final.read(folder, model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), network().parameters(), strict=True))
    assert final.read_config(folder)["family"] == "toy"
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("change", ["missing", "extra", "misshapen", "truncated", "corrupt header", "absent"])
def test_bad_weights_name_the_file_and_the_weight(folder: Path, change: str) -> None:
    path = folder / "model.safetensors"
    tensors = {name: t.clone() for name, t in weights(network()).items()}
    data = path.read_bytes()
    wanted = {"missing": "'norm.weight' is missing", "extra": "'other'", "misshapen": r"'norm.weight' has shape \[3\]"}
    if change in wanted:
        tensors |= {"extra": {"other": torch.zeros(1)}, "misshapen": {"norm.weight": torch.zeros(3)}}.get(change, {})
        if change == "missing":
            del tensors["norm.weight"]
        save_file(tensors, path)
    elif change == "absent":
        path.unlink()
    else:
        path.write_bytes(data[:-100] if change == "truncated" else b"\xff" * 100 + data[100:])
    expected = wanted.get(change, "is missing" if change == "absent" else "truncated or corrupted")
    with pytest.raises(UserError, match=f"model.safetensors: .*{expected}"):
        final.read(folder, network())


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"vocabulary": 3, "format_version": 99}', '{"vocabulary": "3", "format_version": 1}', None]
)
def test_a_bad_config_is_refused(folder: Path, text: str | None) -> None:
    path = folder / "config.json"
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        final.read_config(folder)


def test_a_tokenizer_of_another_size_is_refused(folder: Path) -> None:
    final.check_tokenizer(folder, "tokenizer.json", VOCABULARY)
    with pytest.raises(UserError, match=r"tokenizer\.json: has 31 tokens.*has 32"):
        final.check_tokenizer(folder, "tokenizer.json", 31)
