from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unveil.data.stream_features import About, open_recordings, write_recordings
from unveil.errors import UserError
from unveil.interop.oad_features import Sessions, from_folders, from_pickles, labels_of, read_sessions

NAMES = [f"video_{i}" for i in range(12)]
CLASSES = ("Background", "Dive", "CliffDive", "Ambiguous")
SESSIONS = Sessions(CLASSES, (3,), tuple(NAMES[:10]), tuple(NAMES[10:]))


def made(name: str) -> tuple[Any, Any, Any]:
    """RGB, flow and one-hot labels of a video."""
    length = 3 + NAMES.index(name)
    rng = np.random.default_rng(length)
    labels = np.eye(4)[rng.integers(0, 4, length)]
    return rng.random((length, 5), dtype=np.float32), rng.random((length, 3), dtype=np.float32), labels


def write_pickles(folder: Path, protocol: int = 4) -> list[tuple[Path, Path]]:
    files = []
    for part, names in (("val", NAMES[:10]), ("test", NAMES[10:])):
        annotation, features = folder / f"thumos_{part}_anno.pickle", folder / f"thumos_all_feature_{part}_V3.pickle"
        told = {n: {"anno": made(n)[2], "feature_length": len(made(n)[2])} for n in names}
        annotation.write_bytes(pickle.dumps(told, protocol))
        features.write_bytes(pickle.dumps({n: {"rgb": made(n)[0], "flow": made(n)[1]} for n in names}, protocol))
        files.append((annotation, features))
    return files


def write_folders(root: Path) -> None:
    for i, folder in enumerate(("rgb", "flow", "target_perframe")):
        (root / folder).mkdir()
        for name in NAMES:
            np.save(root / folder / f"{name}.npy", made(name)[i])


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles_and_folders_of_the_same_videos_are_the_same(tmp_path: Path, protocol: int) -> None:
    write_folders(tmp_path)
    pickled = list(from_pickles(SESSIONS, write_pickles(tmp_path, protocol)))
    assert [r.name for _, r in pickled] == NAMES
    assert [part for part, _ in pickled].count("validation") == 3 and [part for part, _ in pickled][10:] == ["test", "test"]
    for (part, one), (other_part, other) in zip(pickled, from_folders(SESSIONS, tmp_path, ("rgb", "flow")), strict=True):
        rgb, flow, labels = made(one.name)
        assert part == other_part and np.array_equal(one.features_TF, np.concatenate([rgb, flow], 1))
        assert np.array_equal(one.features_TF, other.features_TF)
        assert one.labels_T.tolist() == other.labels_T.tolist() == labels.argmax(1).tolist()


def test_they_go_into_our_format(tmp_path: Path) -> None:
    about = About(CLASSES, (3,), 24.0, 6, "tsn", "")
    write_recordings(tmp_path / "ours", about, from_pickles(SESSIONS, write_pickles(tmp_path)))
    found = open_recordings(tmp_path / "ours")
    assert found.width == 8 and [len(found.parts[p]) for p in ("train", "validation", "test")] == [7, 3, 2]


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_a_pickle_with_anything_but_arrays_is_refused(tmp_path: Path) -> None:
    files = write_pickles(tmp_path)
    good = pickle.loads(files[0][1].read_bytes())
    for content, problem in (
        ({**good, "x": Hostile(tmp_path / "ran")}, r"refused: it asks for posix\.mkdir"),
        ({**good, NAMES[0]: {"rgb": "no", "flow": good[NAMES[0]]["flow"]}}, "'video_0' is no array"),
        ({**good, NAMES[0]: {"rgb": np.array(["no"]), "flow": good[NAMES[0]]["flow"]}}, "'video_0' is no array"),
        ({**good, NAMES[0]: good[NAMES[0]]["rgb"]}, "'video_0' has no 'rgb' and 'flow'"),
        ({k: v for k, v in good.items() if k != NAMES[3]}, "video_3: is in the sessions"),
        ({**good, NAMES[0]: {**good[NAMES[0]], "flow": np.zeros((4, 3))}}, "video_0: has 3 labels and features of 3, 4 chunks"),
        ([1], "holds a list"),
    ):
        files[0][1].write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match=problem):
            list(from_pickles(SESSIONS, files))
    assert not (tmp_path / "ran").exists()
    files[0][1].write_bytes(b"\x80\x04 no pickle")
    with pytest.raises(UserError, match="refused: invalid load key"):
        list(from_pickles(SESSIONS, files))


def test_folders_that_lack_or_break_a_file_are_refused(tmp_path: Path) -> None:
    write_folders(tmp_path)
    np.save(tmp_path / "target_perframe" / "video_1.npy", np.zeros((4, 5)))
    with pytest.raises(UserError, match=r"video_1: has labels of shape \[4, 5\], wanted \[T\] or \[T, 4\]"):
        list(from_folders(SESSIONS, tmp_path, ("rgb",)))
    np.save(tmp_path / "target_perframe" / "video_1.npy", np.zeros(3, dtype=int))
    with pytest.raises(UserError, match="video_1: has 3 labels and features of 4 chunks"):
        list(from_folders(SESSIONS, tmp_path, ("rgb",)))
    (tmp_path / "target_perframe" / "video_1.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match=r"video_1\.npy: cannot be read"):
        list(from_folders(SESSIONS, tmp_path, ("rgb",)))


def test_maps_in_space_are_averaged_and_labels_may_be_numbers(tmp_path: Path) -> None:
    for folder, content in (("maps", np.arange(24.0).reshape(2, 3, 2, 2)), ("target", np.array([2, 0])), ("sensor", np.ones((2, 8)))):
        (tmp_path / folder).mkdir()
        for name in ("a", "b"):
            np.save(tmp_path / folder / f"{name}.npy", content)
    sessions = Sessions(CLASSES, (), ("a", "b"), ())
    _, one = next(from_folders(sessions, tmp_path, ("maps", "sensor"), "target"))
    assert one.features_TF.shape == (2, 11) and one.labels_T.tolist() == [2, 0]
    assert one.features_TF[0].tolist() == [1.5, 5.5, 9.5, *[1.0] * 8]


def test_of_several_classes_the_rarer_is_meant() -> None:
    targets = {"a": np.array([[0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]])}
    assert labels_of(targets, SESSIONS)["a"].tolist() == [1, 2, 1, 3, 0, 1]


def test_both_schemas_say_the_same(tmp_path: Path) -> None:
    path = tmp_path / "data_info.json"
    sets = {"train_session_set": NAMES[:10], "test_session_set": NAMES[10:]}
    for about in ({"class_index": CLASSES}, {"class_names": CLASSES, "ignore_index": 3, "fps": 4}):
        path.write_text(json.dumps({"THUMOS": {**about, **sets}}), encoding="utf-8")
        assert read_sessions(path, "THUMOS") == SESSIONS
    path.write_text(json.dumps({"TVSeries": {"class_names": CLASSES[:3], "ignore_index": -100, **sets}}), encoding="utf-8")
    assert read_sessions(path, "TVSeries").ignored == ()
    with pytest.raises(UserError, match="did you mean 'TVSeries'"):
        read_sessions(path, "TVseries")
    path.write_text(json.dumps({"THUMOS": {"class_index": CLASSES}}), encoding="utf-8")
    with pytest.raises(UserError, match="lacks 'train_session_set'"):
        read_sessions(path, "THUMOS")
    path.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_sessions(path, "THUMOS")
