"""Features and labels of videos in the forms of other projects: OadTR's pickles, and the folders of LSTR, TeSTra, MAT, MiniROAD and TRN.

What is read here goes into our one format by ``unveil.data.stream_features.write_recordings``. A pickle may hold arrays and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unveil.data.split import Split, by_document
from unveil.data.stream_features import Recording
from unveil.errors import UserError, nearest
from unveil.training import unpickle

AMBIGUOUS = "Ambiguous"
"""THUMOS' class of chunks that nobody is scored on."""
HELD_OUT = 0.1
"""Share of the training videos that make the validation part, by a hash of their names: the published sessions have none."""
_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_ALLOWED = (
    "numpy.ndarray",
    "numpy.dtype",
    "_codecs.encode",
    *(f"{module}.{name}" for module in _MODULES for name in ("_reconstruct", "scalar")),
    "numpy.core.numeric._frombuffer",
    "numpy._core.numeric._frombuffer",
)
_REMEDY = "take the whole file, as its authors published it"

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Sessions:
    """A data set by its annotation file: class names by label, labels never scored, and the videos of both published parts."""

    classes: tuple[str, ...]
    ignored: tuple[int, ...]
    train: tuple[str, ...]
    test: tuple[str, ...]

    def part(self) -> dict[str, Split]:
        """Of each video, a tenth of the training ones held out."""
        return dict(zip(self.train, by_document(self.train, HELD_OUT, 0.0), strict=True)) | dict.fromkeys(self.test, "test")


def read_sessions(path: Path, dataset: str) -> Sessions:
    """A ``data_info.json`` in either schema: OadTR's and TRN's (``class_index``; what is called Ambiguous is ignored), or LSTR's
    (``class_names``, ``ignore_index``, of which a negative one ignores nothing).

    Raises UserError where it cannot be read, has no such data set, or lacks a field.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(str(path), f"cannot be read as JSON ({error})", "give the data set's data_info.json") from error
    if not isinstance(found, dict) or dataset not in found:
        raise UserError("dataset", f"'{path}' has no '{dataset}'", nearest(dataset, found if isinstance(found, dict) else ()))
    about = found[dataset]
    try:
        classes = tuple(about["class_index"] if "class_index" in about else about["class_names"])
        given = about["ignore_index"] if "ignore_index" in about else classes.index(AMBIGUOUS) if AMBIGUOUS in classes else -1
        return Sessions(classes, (given,) if given > 0 else (), tuple(about["train_session_set"]), tuple(about["test_session_set"]))
    except (KeyError, TypeError) as error:
        raise UserError(str(path), f"'{dataset}' lacks {error}", "give class names and both session sets") from error


def from_pickles(sessions: Sessions, files: Sequence[tuple[Path, Path]]) -> Iterator[tuple[Split, Recording]]:
    """Streams of OadTR's pickles, RGB and flow side by side.

    Args:
        files: pairs of an annotation (video to ``{'anno': [T, C], 'feature_length': T}``, or to the array itself as CoOadTR has it) and the
            features (video to ``{'rgb': [T, F], 'flow': [T, F]}``).

    Raises:
        UserError: a pickle with anything but arrays; a video of the sessions that none has; lengths or classes that differ.
    """
    targets: dict[str, Array] = {}
    features: dict[str, Mapping[str, Any]] = {}
    for annotation, feature in files:
        for name, told in _pickle(annotation).items():
            targets[name] = _array(told["anno"] if isinstance(told, Mapping) and "anno" in told else told, annotation, name)
        for name, streams in _pickle(feature).items():
            if not isinstance(streams, Mapping) or not {"rgb", "flow"} <= streams.keys():
                raise UserError(str(feature), f"'{name}' has no 'rgb' and 'flow'", _REMEDY)
            features[name] = {kind: _array(streams[kind], feature, name) for kind in ("rgb", "flow")}
    wanted = sessions.part()
    for name in wanted:
        if name not in targets or name not in features:
            raise UserError(name, "is in the sessions and not in the pickles", "give the pickles of both parts")
    labels = labels_of({name: targets[name] for name in wanted}, sessions)
    for name, part in wanted.items():
        yield part, _recording(name, [features[name]["rgb"], features[name]["flow"]], labels[name])


def from_folders(
    sessions: Sessions, root: Path, features: Sequence[str], target: str = "target_perframe"
) -> Iterator[tuple[Split, Recording]]:
    """Streams of folders with an array per video, ``<root>/<folder>/<video>.npy``.

    Args:
        features: folders whose arrays ``[T, F]`` are set side by side, as ``rgb_kinetics_resnet50`` and ``flow_kinetics_bninception``;
            of arrays ``[T, F, H, W]``, as TRN keeps those of HDD, the mean over space.
        target: folder of labels, ``[T]`` or one-hot ``[T, C]``; ``target`` in TRN's form.

    Raises:
        UserError: a file that is missing or damaged; lengths or classes that differ.
    """
    wanted = sessions.part()
    labels = labels_of({name: _npy(root / target / f"{name}.npy") for name in wanted}, sessions)
    for name, part in wanted.items():
        yield part, _recording(name, [_npy(root / folder / f"{name}.npy") for folder in features], labels[name])


def labels_of(targets: Mapping[str, Array], sessions: Sessions) -> dict[str, Array]:
    """One class for each chunk, int64 ``[T]``, of labels ``[T]`` or sets of classes ``[T, C]``.

    Where several are set, an ignored class gives way, and then the one with more chunks in all: THUMOS has every cliff dive as a dive too,
    and the rarer class says more. Where none is set it is background. Raises UserError for arrays of another number of classes.
    """
    count = len(sessions.classes)
    for name, target in targets.items():
        if target.ndim not in (1, 2) or (target.ndim == 2 and target.shape[1] != count):
            problem = f"has labels of shape {list(target.shape)}, wanted [T] or [T, {count}]"
            raise UserError(name, problem, "take labels and class names of one data set")
    frequency = sum((np.asarray(t, dtype=bool).sum(0) for t in targets.values() if t.ndim == 2), np.zeros(count, dtype=np.int64))
    order = sorted(range(count), key=lambda c: (c == 0, c in sessions.ignored, frequency[c]))
    found = {}
    for name, target in targets.items():
        if target.ndim == 1:
            found[name] = target.astype(np.int64)
        else:
            chosen = np.array(order)[np.asarray(target, dtype=bool)[:, order].argmax(1)]
            found[name] = np.where(np.asarray(target, dtype=bool).any(1), chosen, 0)
    return found


def _recording(name: str, parts: Sequence[Array], labels: Array) -> Recording:
    if len({len(labels), *(len(part) for part in parts)}) > 1:
        lengths = ", ".join(str(len(part)) for part in parts)
        raise UserError(name, f"has {len(labels)} labels and features of {lengths} chunks", "make both from the same chunks")
    flat = [part.mean(tuple(range(2, part.ndim))) if part.ndim > 2 else part.reshape(len(part), -1) for part in parts]
    return Recording(name, np.concatenate(flat, 1).astype(np.float32), labels)


def _pickle(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            found = unpickle.load(file, _ALLOWED, str(path))
    except OSError as error:
        raise UserError(str(path), f"cannot be read ({error.strerror or error})", _REMEDY) from error
    except UserError as error:
        raise UserError(error.field, error.problem, _REMEDY) from None
    if not isinstance(found, Mapping):
        raise UserError(str(path), f"holds a {type(found).__name__}, wanted a dictionary by video", _REMEDY)
    return found


def _array(value: Any, path: Path, name: str) -> Array:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf" or not value.ndim:
        raise UserError(str(path), f"'{name}' is no array of numbers", _REMEDY)
    return value


def _npy(path: Path) -> Array:
    try:
        return _array(np.load(path, allow_pickle=False), path, path.stem)
    except (OSError, ValueError, EOFError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(str(path), f"cannot be read as an array ({reason})", "give one .npy of numbers per video") from error
