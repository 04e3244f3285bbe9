from __future__ import annotations

import errno
import json
import os
import pickle
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from tests.training.test_unpickle import Hostile
from unveil.errors import UserError
from unveil.training import checkpoint
from unveil.training.parallel import World

ALONE = World()
HOST = {"step": 3, "nested": {"a": [1, 2.5, None, "ä"]}}


def tensors() -> dict[str, torch.Tensor]:
    return {
        "model.a": torch.arange(12.0).view(3, 4),
        "model.half": torch.ones(5, dtype=torch.bfloat16),
        "optimizer.step": torch.tensor(2.0),
        "model.double": torch.full((2,), torch.pi, dtype=torch.float64),
        "model.empty": torch.empty(0),
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return checkpoint.save(tmp_path, 3, tensors(), HOST, ALONE)


def test_a_checkpoint_gives_back_what_it_was_given(saved: Path) -> None:
    loaded, host = checkpoint.load(saved, ALONE)
    assert host == HOST
    assert loaded.keys() == tensors().keys()
    assert all(torch.equal(loaded[name], t) and loaded[name].dtype == t.dtype for name, t in tensors().items())
    assert [p.name for p in saved.parent.iterdir()] == ["step-00000003"]


def test_saving_a_step_again_replaces_it(saved: Path) -> None:
    checkpoint.save(saved.parent, 3, {"x": torch.ones(1)}, {"again": True}, ALONE)
    assert checkpoint.load(saved, ALONE)[1] == {"again": True}
    assert [p.name for p in saved.parent.iterdir()] == ["step-00000003"]


def rewrite_manifest(path: Path) -> None:
    """What an attacker would do who changed a file."""
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"] = {name: [(path / name).stat().st_size, checkpoint._crc(path / name)] for name in manifest["files"]}
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "one bit", "absent"])
def test_a_damaged_file_is_named(saved: Path, name: str, damage: str) -> None:
    file = saved / name
    data = bytearray(file.read_bytes())
    if damage == "absent":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 16
        file.write_bytes(data)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        checkpoint.load(saved, ALONE)


def test_damage_under_a_matching_manifest_is_still_a_users_error(saved: Path) -> None:
    file = saved / "__0_0.distcp"
    file.write_bytes(b"\0" * file.stat().st_size)
    rewrite_manifest(saved)
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load(saved, ALONE)


def test_hostile_metadata_is_refused_and_not_run(saved: Path, tmp_path: Path) -> None:
    (saved / ".metadata").write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    rewrite_manifest(saved)
    with pytest.raises(UserError, match=r"\.metadata: refused"):
        checkpoint.load(saved, ALONE)
    assert not (tmp_path / "ran").exists()


def bytes_entry(metadata: Metadata) -> None:
    metadata.state_dict_metadata["model.a"] = BytesStorageMetadata()


def outside(metadata: Metadata) -> None:
    for info in metadata.storage_data.values():
        info.relative_path = "../../secret"


def enormous(metadata: Metadata) -> None:
    metadata.state_dict_metadata["model.a"].size = torch.Size([1 << 40])  # type: ignore[union-attr]


def wrong_type(metadata: Metadata) -> None:
    metadata.storage_data = "nothing"


@pytest.mark.parametrize("change", [bytes_entry, outside, enormous, wrong_type])
def test_metadata_that_describes_more_than_tensors_is_refused(saved: Path, change: Any) -> None:
    path = saved / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))
    rewrite_manifest(saved)
    with pytest.raises(UserError, match=r"\.metadata: refused"):
        checkpoint.load(saved, ALONE)


def test_another_format_or_number_of_ranks_is_refused(saved: Path) -> None:
    with pytest.raises(UserError, match=r"written by 1 rank\(s\), read by 2"):
        checkpoint.load(saved, World(0, 2))
    manifest = json.loads((saved / "manifest.json").read_text())
    (saved / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(UserError, match="format version 99"):
        checkpoint.load(saved, ALONE)


def test_a_full_disk_leaves_the_previous_checkpoint(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(filesystem.os, "fsync", full)
    with pytest.raises(UserError, match="no space left while the checkpoint of step 4"):
        checkpoint.save(saved.parent, 4, tensors(), HOST, ALONE)
    assert [p.name for p in saved.parent.iterdir()] == ["step-00000003"]
    assert checkpoint.load(saved, ALONE)[1] == HOST


def test_a_file_that_may_not_grow_leaves_the_previous_checkpoint(saved: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))  # the kernel refuses the write, as it does on a full disk
    try:
        with pytest.raises(UserError, match="no space left while the checkpoint of step 4"):
            checkpoint.save(saved.parent, 4, {"x": torch.ones(1 << 16)}, HOST, ALONE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpoint.steps(saved.parent) == [3]
    assert checkpoint.load(saved, ALONE)[1] == HOST


def test_what_a_killed_writer_left_is_no_checkpoint_and_is_cleared_away(saved: Path) -> None:
    stale = saved.parent / ".step-00000004.partial"
    stale.mkdir()
    (stale / "__0_0.distcp").write_bytes(b"half")
    assert checkpoint.steps(saved.parent) == [3]
    checkpoint.save(saved.parent, 5, tensors(), HOST, ALONE)
    assert not stale.exists()


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in range(1, 7):
        checkpoint.save(tmp_path, step, {"x": torch.ones(1)}, {}, ALONE)
    checkpoint.prune(tmp_path, 2, best=3)
    assert checkpoint.steps(tmp_path) == [3, 5, 6]
    checkpoint.prune(tmp_path, 0, best=None)
    assert checkpoint.steps(tmp_path) == [6]
