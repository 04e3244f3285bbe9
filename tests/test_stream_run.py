"""A run on streams from recipe to events."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import unveil
from unveil import cli
from unveil import recipe as recipes
from unveil.data import synth_stream
from unveil.data.stream_features import Recordings, write_recordings
from unveil.stream_run import StreamRun
from unveil.streams.streaming import Streamer


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few short streams of the kind that ships."""
    folder = tmp_path_factory.mktemp("streams") / "features"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synth_stream, "STREAMS", {"train": 3, "validation": 2, "test": 1})
        patch.setattr(synth_stream, "LENGTH", 90)
        found: Recordings = synth_stream.synth_stream()
    write_recordings(folder, found.about, ((part, each) for part, group in found.parts.items() for each in group))
    return folder


@pytest.fixture(scope="module")
def run(few: Path) -> StreamRun:
    small = {"data.kind": "folder", "data.path": str(few), "data.batch": "8", "model.width": "16", "model.heads": "2", "model.steps": "8"}
    small |= {"model.decoder-heads": "2", "model.decoder-depth": "1", "model.depth": "1", "model.horizon": "2"}
    small |= {"training.steps": "3", "training.compile": "off", "training.dtype": "float32", "evaluation.tokens": "16"}
    recipe = recipes.with_overrides(recipes.load("oadtr-synth"), small.items())
    made = unveil.train(recipe, few.parent / "run", console=False)
    assert isinstance(made, StreamRun)
    return made


def test_a_stream_told_by_the_run_is_that_of_a_streamer(run: StreamRun) -> None:
    part = run.recordings().parts["validation"]
    told = [[row.present for row in rows] for rows in run.sample([each.features_TF for each in part])]
    streamer = Streamer(run.model, 2)  # type: ignore[arg-type]
    for t, rows in enumerate(told):
        scores = streamer.push(["a", "b"], np.stack([each.features_TF[t] for each in part]).astype(np.float32))
        np.testing.assert_allclose(np.stack(rows), scores.present_BC.numpy(), atol=1e-6)


def test_a_detector_that_knows_is_perfect_and_one_that_knows_nothing_is_at_chance(run: StreamRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from unveil.family import StreamRow

    part = run.recordings().parts["validation"]

    def knowing(self: StreamRun, features: object, right: bool = True) -> object:
        for t in range(90):
            rows = [np.eye(9)[each.labels_T[t]] if right else np.full(9, 1 / 9) for each in part]
            ahead = [[np.eye(9)[each.labels_T[min(t + k, 89)]] for k in (1, 2)] for each in part]
            yield [StreamRow(i, t, row, np.array(ahead[i]), t == 89) for i, row in enumerate(rows)]

    monkeypatch.setattr(StreamRun, "sample", knowing)
    found = run.evaluate()
    assert found.map == pytest.approx(1) and found.anticipation == pytest.approx([1, 1]) and (found.delay, found.missed) == (0, 0)
    monkeypatch.setattr(StreamRun, "sample", lambda self, features: knowing(self, features, False))
    found = run.evaluate()
    assert found.map == pytest.approx(found.chance) and found.missed == 1


def test_the_command_line_judges_and_follows(run: StreamRun, few: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cli.main(["evaluate", str(run.path), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["chunks"] == 180 and found["ceiling"] is None and 0 <= found["map"] <= 1
    out = tmp_path / "events.jsonl"
    low = ["--sampler.start", "0.05", "--sampler.stop", "0.01"]
    cli.main(["stream", str(run.path), "--source", str(few), "--part", "test", "--out", str(out), *low])
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events and out.read_text().count("\n") == len(events)
    assert {e["event"] for e in events} == {"start", "end"} and all(e["class"] in run.about.classes[1:] for e in events)
    starts, ends = ([e for e in events if e["event"] == kind] for kind in ("start", "end"))
    assert len(starts) == len(ends)  # whatever goes on ends with its stream
    cli.main(["report", str(run.path)])
    page = (run.path / "report.html").read_text()
    assert "% mAP" in page and "Now and next" in page
    cli.main(["doctor", str(run.path)])
    assert "9 classes, 64 features" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["sample", "RUN"], ("run on streams", "unveil stream")),
        (["chat", "RUN"], ("no run of text",)),
        (["plan", "oadtr-synth"], ("family 'streams'",)),
        (["data", "inspect", "oadtr-synth"], ("no preparation",)),
        (["stream", "RUN", "--num", "9"], ("--num", "got 9", "2 streams")),
        (["stream", "RUN", "--part", "dev"], ("--part", "'dev'", "validation")),
        (["train", "oadtr-synth", "--data", "nowhere"], ("nowhere",)),
        (["train", "oadtr-synth", "--data.kind", "sprites"], ("data.kind", "'sprites'", "extract")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_answered_in_a_line(
    args: list[str],
    said: tuple[str, ...],
    run: StreamRun,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(run.path) if arg == "RUN" else arg for arg in args])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and all(word in error for word in said)
