from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unveil.config import SourceConfig, TextDataConfig, TokenizerConfig
from unveil.data import shards
from unveil.data.corpus import documents
from unveil.data.shards import Prepared, cache_folder, prepare
from unveil.errors import UserError


def test_every_document_is_in_one_split_with_its_exact_bytes(prepared: Prepared, config: TextDataConfig) -> None:
    source = {d.name: d.data for d in documents(config.sources[0])}
    found = {}
    for stores in prepared.splits.values():
        for i in range(len(stores[0])):
            found[stores[0].name(i)] = prepared.tokenizer.decode_bytes(stores[0].tokens(i))
            assert stores[0].source_bytes[i] == len(found[stores[0].name(i)])
            assert stores[0].ends[i]
    assert found == source
    assert all(len(stores[0]) for stores in prepared.splits.values())
    assert prepared.weights == (1.0,)


def test_the_result_is_the_same_with_processes_and_after_an_interruption(
    config: TextDataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 1 << 14)
    straight = prepare(replace(config, cache=str(tmp_path / "a")))

    class Stop(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "encoding" and done == 2:
            raise Stop

    broken = replace(config, cache=str(tmp_path / "b"))
    with pytest.raises(Stop):
        prepare(broken, progress=stop)
    folder = cache_folder(broken) / "tokens" / straight.folder.name
    kept = {p.name: p.stat().st_mtime_ns for p in folder.glob("source*.arrow")}
    assert len(kept) == 2
    seen: list[tuple[str, int, int]] = []
    again = prepare(broken, workers=2, progress=lambda *row: seen.append(row))
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept, "finished shards are not made twice"
    files = {p.name: p.read_bytes() for p in straight.folder.iterdir()}
    assert {p.name: p.read_bytes() for p in again.folder.iterdir()} == files
    assert ("encoding", len(files) - 5, len(files) - 5) in seen
    seen.clear()
    prepare(broken, progress=lambda *row: seen.append(row))
    assert not seen, "the second time all is there"
    (folder / next(iter(kept))).unlink()
    prepare(broken)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == files, "a deleted shard is made again"


def test_a_script_without_a_main_guard_prepares_in_processes(corpus: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from unveil.config import SourceConfig, TextDataConfig, TokenizerConfig\n"
        "from unveil.data import shards\n"
        "shards.SHARD_BYTES = 1 << 14\n"
        f"source = SourceConfig(kind='text', path={str(corpus)!r})\n"
        f"config = TextDataConfig(sources=(source,), tokenizer=TokenizerConfig(kind='bytes'), cache={str(tmp_path / 'cache')!r})\n"
        "print(len(shards.prepare(config, workers=2).splits['train'][0]))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 40


def test_whatever_shapes_the_shards_changes_their_folder(config: TextDataConfig, prepared: Prepared) -> None:
    assert prepare(replace(config, context=32, packing_length=256, workers=3)).folder == prepared.folder
    changes = [
        {"validation": 0.2},
        {"test": 0.0},
        {"split": "tail"},
        {"limit": 20_000},
        {"tokenizer": TokenizerConfig(vocabulary=300)},
    ]
    folders = {prepare(replace(config, **change)).folder for change in changes}
    assert len(folders | {prepared.folder}) == len(changes) + 1


def test_tails_end_where_their_document_ends_and_characters_know_them_all(config: TextDataConfig) -> None:
    tails = prepare(replace(config, split="tail", tokenizer=TokenizerConfig(kind="characters")))
    for split, ends in (("train", False), ("validation", False), ("test", True)):
        store = tails.splits[split][0]
        assert len(store) and (store.ends == ends).all()
    source = {d.name: d.data for d in documents(config.sources[0])}
    joined: dict[str, bytes] = dict.fromkeys(source, b"")
    for split in ("train", "validation", "test"):
        store = tails.splits[split][0]
        for i in range(len(store)):
            joined[store.name(i)] += tails.tokenizer.decode_bytes(store.tokens(i))
    assert joined == source


def test_training_documents_nearly_equal_to_held_out_ones_are_left_out_and_counted(
    config: TextDataConfig, prepared: Prepared, tmp_path: Path
) -> None:
    held = prepared.splits["validation"][0]
    for d in documents(config.sources[0]):
        (tmp_path / d.name).write_bytes(d.data)
    longest = int(np.argmax(held.lengths))
    copy = prepared.tokenizer.decode_bytes(held.tokens(longest))
    assert len(copy) > 500
    (tmp_path / "copy-3.txt").write_bytes(copy + b" and a word more")
    more = prepare(replace(config, sources=(SourceConfig(kind="text", path=str(tmp_path)),)))
    assert prepared.near_duplicates == 0 and more.near_duplicates == 1
    for split in ("train", "validation", "test"):
        old, new = ([s.name(i) for i in range(len(s))] for s in (prepared.splits[split][0], more.splits[split][0]))
        assert old == new


def test_sources_keep_their_own_stores_and_shares(config: TextDataConfig, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("\n".join(f"the line number {n} of them" for n in range(300)))
    lines = SourceConfig(kind="text", path=str(tmp_path), documents="line", weight=3)
    both = prepare(replace(config, sources=(*config.sources, lines)))
    assert both.weights == (0.25, 0.75)
    assert len(both.splits["train"]) == 2
    assert all(both.splits["train"][1].name(i).startswith("lines.txt:") for i in range(len(both.splits["train"][1])))


def write(folder: Path, **texts: bytes) -> SourceConfig:
    for name, data in texts.items():
        (folder / f"{name}.txt").write_bytes(data)
    return SourceConfig(kind="text", path=str(folder))


def test_bad_corpora_and_settings_are_named(config: TextDataConfig, tmp_path: Path) -> None:
    small = replace(config, sources=(write(tmp_path, a=b"x" * 99, b=b"y" * 99, c=b"z" * 99, d=b"v" * 99),))
    with pytest.raises(UserError, match=r"data\.packing_length: the training text has \d+ tokens, less than one pack of 512"):
        prepare(small)
    with pytest.raises(UserError, match=r"data\.context: got 3"):
        prepare(replace(config, context=3))
    alone = tmp_path / "alone"
    alone.mkdir()
    with pytest.raises(UserError, match=r"the corpus '.*alone' is empty"):
        prepare(replace(config, sources=(write(alone, a=b""),)))
    with pytest.raises(UserError, match=r"data\.split"):
        prepare(replace(config, sources=(write(alone, a=b"word " * 500),)))
    with pytest.raises(UserError, match="less than a character"):
        prepare(replace(config, sources=(write(alone, a=b"a"),), split="tail", validation=0.0, test=1e-18))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"data\.cache"):
        prepare(replace(config, cache=str(tmp_path / "file")))


def test_a_damaged_cache_is_refused_and_mended_by_deleting_the_file(config: TextDataConfig, tmp_path: Path) -> None:
    config = replace(config, cache=str(tmp_path))
    folder = prepare(config).folder
    for path in [*sorted(folder.glob("source*.arrow"))[:1], folder / "prepared.json", folder / "tokenizer.json"]:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match=path.name):
            prepare(config)
        path.unlink()
        prepare(config)
        assert path.read_bytes() == whole


def test_preparing_needs_no_torch() -> None:
    code = "import sys, unveil.data.inspection, unveil.data.stream; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_the_cache_is_the_recipes_or_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNVEIL_CACHE", "/elsewhere")
    assert cache_folder(TextDataConfig()) == Path("/elsewhere")
    assert cache_folder(TextDataConfig(cache="/here")) == Path("/here")
    monkeypatch.delenv("UNVEIL_CACHE")
    assert cache_folder(TextDataConfig()) == Path.home() / ".cache" / "unveil"
