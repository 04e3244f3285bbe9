"""Streams as features and labels per chunk: in memory, and as one folder on disk whatever made them.

On disk: ``streams.json`` says what the features are and lists the streams; each stream is a memory-mapped Arrow file of its own with a
checksum, a row per chunk: ``features`` float16 ``[F]``, ``label`` int64. Folders in other projects' forms are read by
``unveil.interop.oad_features``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from unveil.data.columns import read_columns, write_columns
from unveil.data.split import SPLITS, Split
from unveil.errors import UserError, nearest

STREAM_FORMAT = 1
MANIFEST = "streams.json"
_REMEDY = "extract the features again, or take a clean copy of the folder"

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class About:
    """What features are: no two kinds can be told apart by their numbers."""

    classes: tuple[str, ...]
    """Names by label; 0 is the background."""
    ignored: tuple[int, ...]
    """Labels of chunks that are neither trained on nor scored, as THUMOS' Ambiguous (21)."""
    frame_rate: float
    """Frames a second."""
    chunk: int
    """Frames that a chunk stands for, the present being its last."""
    extractor: str
    digest: str
    """Of the extractor's weights; empty where they are not known."""

    @property
    def rate(self) -> float:
        """Chunks a second."""
        return self.frame_rate / self.chunk


class Recording(NamedTuple):
    """One stream: ``features_TF`` float16 or float32, ``labels_T`` int64."""

    name: str
    features_TF: Array
    labels_T: Array


@dataclass(frozen=True)
class Recordings:
    """The streams of each part. ``folder`` is where they are mapped from, None where they are in memory."""

    about: About
    parts: Mapping[Split, tuple[Recording, ...]]
    folder: Path | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Mapped files are mapped again by the process that takes them, and not copied."""
        return (open_recordings, (self.folder,)) if self.folder else (Recordings, (self.about, self.parts))

    @property
    def width(self) -> int:
        """Features of a chunk."""
        return int(next(r.features_TF.shape[1] for part in self.parts.values() for r in part))

    @property
    def key(self) -> str:
        """Of what they are and of the length of each: what a training goes on with must have the same."""
        lengths = {part: [(r.name, len(r.labels_T)) for r in found] for part, found in self.parts.items()}
        return _digest({**asdict(self.about), "lengths": lengths})


class Segment(NamedTuple):
    """From ``start`` up to ``end``, in seconds, of the class of this name."""

    start: float
    end: float
    name: str


def chunk_labels(segments: Sequence[Segment], chunks: int, about: About) -> Array:
    """Labels int64 ``[chunks]`` of a stream.

    Chunk i covers [i, i + 1) / rate. A segment has every chunk that it touches: from floor(rate x start) up to, but not with,
    ceil(rate x end), as the public THUMOS labels of four chunks a second were made. Where segments overlap, the one that begins later
    has the chunk, and an ignored class gives way to any other. What lies behind the last chunk is cut off.

    Raises:
        UserError: a class that there is not; a segment that does not end after it begins, or begins before the stream.
    """
    labels = np.zeros(chunks, dtype=np.int64)
    for segment in segments:
        if segment.name not in about.classes:
            raise UserError("class", f"got '{segment.name}' for a segment", nearest(segment.name, about.classes))
        if not 0 <= segment.start < segment.end < float("inf"):
            span = f"'{segment.name}' from {segment.start:g} to {segment.end:g} s"
            raise UserError("segment", f"{span} is no span of the stream", "give seconds, the start below the end")
    placed = [(about.classes.index(s.name), s) for s in segments]
    for label, segment in sorted(placed, key=lambda one: (one[0] not in about.ignored, one[1].start)):
        # 1e-6 of a chunk: 2.0000000001 s are 8 chunks at 4 a second, not the beginning of a ninth
        labels[int(np.floor(about.rate * segment.start + 1e-6)) : int(np.ceil(about.rate * segment.end - 1e-6))] = label
    return labels


def write_recordings(folder: Path, about: About, streams: Iterable[tuple[Split, Recording]]) -> None:
    """Write each stream as it comes; the manifest last, so that what was interrupted is no folder of features.

    Raises:
        UserError: features and labels of different lengths, widths that differ, numbers that float16 does not hold, an unknown label, two
            streams of one name, or no stream.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key, listed, width = _digest(asdict(about)), list[dict[str, Any]](), 0
    for part, recording in streams:
        width = width or recording.features_TF.shape[-1]
        _check(recording, about, width)
        if any(recording.name == other["name"] for other in listed):
            raise UserError(recording.name, "names two streams", "give each stream a name of its own")
        with np.errstate(over="ignore"):
            features = np.ascontiguousarray(recording.features_TF, dtype=np.float16)
        if not np.isfinite(features).all():
            raise UserError(recording.name, "has features that are not finite in float16", "scale them to within 65,504, or repair them")
        columns = {
            "features": pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), width),
            "label": pa.array(recording.labels_T.astype(np.int64)),
        }
        file = f"{len(listed):05d}.arrow"
        write_columns(folder / file, columns, STREAM_FORMAT, f"{key} {recording.name}")
        listed.append({"name": recording.name, "part": part, "file": file})
    if not listed:
        raise UserError(str(folder), "was given no stream", "name a source with streams")
    manifest = {"format": STREAM_FORMAT, **asdict(about), "width": width, "streams": listed}
    aside = folder / f"{MANIFEST}.{os.getpid()}.tmp"
    aside.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    aside.replace(folder / MANIFEST)


def open_recordings(folder: Path) -> Recordings:
    """Map and check every stream of a folder. Raises UserError where one is missing or damaged, or the folder is none of ours."""
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != STREAM_FORMAT:
            raise UserError(str(path), f"has format {found['format']}, this unveil reads {STREAM_FORMAT}", _REMEDY)
        about = About(
            tuple(found["classes"]), tuple(found["ignored"]), found["frame_rate"], found["chunk"], found["extractor"], found["digest"]
        )
        listed = [(one["name"], one["part"], one["file"]) for one in found["streams"]]
    except OSError as error:
        raise UserError(str(path), f"cannot be read ({error.strerror or error})", "name a folder of features") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(str(path), "is damaged", _REMEDY) from error
    key = _digest(asdict(about))
    parts: dict[Split, list[Recording]] = {part: [] for part in SPLITS}
    for name, part, file in listed:
        columns = read_columns(folder / file, ("features", "label"), STREAM_FORMAT, f"{key} {name}")
        features = columns["features"].values.to_numpy(zero_copy_only=True).reshape(-1, found["width"])
        parts[part].append(Recording(name, features, columns["label"].to_numpy(zero_copy_only=True)))
    return Recordings(about, {part: tuple(streams) for part, streams in parts.items()}, folder)


def _check(recording: Recording, about: About, width: int) -> None:
    name, features, labels = recording
    if features.ndim != 2 or len(features) != len(labels) or not len(labels):
        shapes = f"features {list(features.shape)} and labels {list(labels.shape)}"
        raise UserError(name, f"{shapes} are not one of each per chunk", "make both from the same chunks")
    if features.shape[1] != width:
        raise UserError(name, f"{features.shape[1]} features a chunk, the streams before it have {width}", "use one extractor for all")
    if wrong := sorted(set(labels.tolist()) - set(range(len(about.classes)))):
        raise UserError(name, f"label {wrong[0]} is none of the {len(about.classes)} classes", "correct the labels, or name all classes")


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps([STREAM_FORMAT, content], sort_keys=True).encode(), digest_size=12).hexdigest()
