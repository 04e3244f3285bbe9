"""From sources to token shards: ``prepare`` reads, splits, trains the tokenizer and encodes, in parallel and only once.

Each folder of the cache is named by a hash of all that shaped it. Files are written aside and renamed, so an interrupted
preparation keeps what is finished and goes on from there, and several processes may prepare the same data at once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unveil.config import CurationConfig, SourceConfig, TextDataConfig, TokenizerConfig
from unveil.data import chats
from unveil.data.columns import cache_folder
from unveil.data.corpus import documents, fingerprint
from unveil.data.curation import KEPT, Judgement, counted, judged, left_out
from unveil.data.overlap import HeldOut
from unveil.data.split import SPLITS, Part, Split, by_document, by_tail
from unveil.data.store import SHARD_FORMAT, Entry, TokenStore, read_shard, write_shard
from unveil.data.tokenizer import Tokenizer
from unveil.data.workers import Failure, Progress, each, processes
from unveil.errors import UserError

SHARD_BYTES = 1 << 22
"""Bytes of text in a shard: the unit of parallel and of resumed work."""

TOKENIZER_BYTES = 1 << 28
"""Text that BPE is trained on, at most; shared evenly by the sources."""


@dataclass(frozen=True)
class Prepared:
    """Encoded text. ``splits`` has "train", "validation" and "test", each with one store per source."""

    tokenizer: Tokenizer
    splits: dict[Split, list[TokenStore]]
    weights: tuple[float, ...]
    """The sources' shares of the training tokens; they sum to 1."""
    near_duplicates: int
    """Training documents left out because they nearly equal held-out text."""
    left_out: dict[str, int]
    """Documents that curation left out of every split, by reason."""
    folder: Path
    shortened: int = 0
    """Conversations that lost their oldest turns to fit into the context."""
    dropped: int = 0
    """Conversations whose last turn alone does not."""


class _Raw(NamedTuple):
    """A shard of a source as it was read; of each of its documents why it is left out, and the split (None: the tail of each is held
    out)."""

    path: Path
    key: str
    source: int
    reasons: list[str]
    assigned: list[Split] | None


class _Checked(NamedTuple):
    """Of a shard: which documents' training parts nearly equal held-out text, and the splits it has parts for."""

    dropped: list[bool]
    splits: list[Split]


class _Work(NamedTuple):
    raw: _Raw
    dropped: list[bool]
    split: Split
    target: Path


def prepare(config: TextDataConfig, workers: int = 0, progress: Progress | None = None) -> Prepared:
    """The recipe's data as token shards, made now or found in the cache. The result does not depend on ``workers`` (processes).

    Raises UserError for sources that cannot be read, an empty corpus, one smaller than a pack, a damaged cache and a full disk.
    """
    if config.context < 4:
        raise UserError("data.context", f"got {config.context}, wanted at least 4: a start token, text and an end token", "raise it")
    report = progress or (lambda stage, done, total: None)
    keys = [_key([source.kind, source.column, source.documents, config.limit, fingerprint(source)]) for source in config.sources]
    tokenizer_file = config.tokenizer.path if config.tokenizer.kind == "file" else ""
    file = Tokenizer.load(tokenizer_file).digest() if tokenizer_file else ""
    shaped: list[Any] = [keys, asdict(config.curation), {**asdict(config.tokenizer), "path": file}]
    shaped += [config.split, config.validation, config.test]
    if any(map(chats.conversations, config.sources)):
        template = chats.template_for(config)
        shaped += [template.source, dict(template.specials), config.context]
    key = _key(shaped)
    folder = cache_folder(config) / "tokens" / key
    try:
        if not _complete(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _fill(folder, key, config, keys, workers, report)
        prepared = _open(folder, key, config)
    except OSError as error:
        raise UserError(
            "data.cache", f"'{folder}' cannot be used ({error.strerror or error})", "free some space or name another folder"
        ) from error
    for source, store in zip(config.sources, prepared.splits["train"], strict=True):
        if not len(store) and prepared.dropped and chats.conversations(source):
            problem = f"{config.context} tokens hold none of the conversations of '{source.path}'"
            raise UserError("data.context", problem, "raise it, or give shorter ones")
        if not len(store):
            problem = f"nothing of '{source.path or source.kind}' is left to train on: all is held out or nearly equal to what is"
            raise UserError("data.sources", problem, "give it more documents, or drop it")
    held: list[tuple[Split, float]] = [("validation", config.validation), ("test", config.test)]
    for split, share in held:
        if share and prepared.dropped and not any(len(store) for store in prepared.splits[split]):
            problem = f"{share:g} holds out conversations of which none fits into data.context = {config.context}"
            raise UserError(f"data.{split}", problem, "raise data.context, or set it to 0")
    tokens = sum(int(s.lengths.sum() + len(s) + s.ends.sum()) for s in prepared.splits["train"])
    if tokens < config.packing_length:
        problem = f"the training text has {tokens} tokens, less than one pack of {config.packing_length}"
        raise UserError("data.packing_length", problem, "give more text or lower it")
    return prepared


def _key(value: Any) -> str:
    return hashlib.blake2b(json.dumps([SHARD_FORMAT, value]).encode(), digest_size=12).hexdigest()


def _complete(folder: Path) -> bool:
    """Whether nothing is left to do; a file that the user deleted is made again."""
    manifest = folder / "prepared.json"
    if not manifest.exists():
        return False
    names = [name for split in SPLITS for names in _read_json(manifest)[split] for name in names]
    return all((folder / name).exists() for name in ["tokenizer.json", *names])


def _open(folder: Path, key: str, config: TextDataConfig) -> Prepared:
    manifest = _read_json(folder / "prepared.json")
    splits: dict[Split, list[TokenStore]] = {
        split: [TokenStore([folder / name for name in names], key) for names in manifest[split]] for split in SPLITS
    }
    total = sum(source.weight for source in config.sources)
    weights = tuple(source.weight / total for source in config.sources)
    tokenizer = Tokenizer.reopen(folder / "tokenizer.json", config.tokenizer)
    left = manifest["near_duplicates"], manifest["left_out"]
    return Prepared(tokenizer, splits, weights, *left, folder, *manifest["misfits"])


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(str(path), "is damaged", "delete it and run `unveil data prepare` again") from error


def _write_json(path: Path, value: Any) -> None:
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    aside.write_text(json.dumps(value), encoding="utf-8")
    aside.replace(path)


# Reading -------------------------------------------------------------------------------------------------------------------------


def _read(source: SourceConfig, limit: int, folder: Path, key: str, report: Callable[[int], None]) -> list[Path]:
    """The source as shards of bytes; those that are there already are not written again."""
    done = folder / "complete.json"
    if not (done.exists() and all((folder / f"{n:05d}.arrow").exists() for n in range(_read_json(done)))):
        folder.mkdir(parents=True, exist_ok=True)
        entries: list[Entry] = []
        count = size = 0

        def close() -> None:
            nonlocal entries, count, size
            if entries and not (path := folder / f"{count:05d}.arrow").exists():
                write_shard(path, entries, np.uint8, key)
            count, size, entries = count + bool(entries), 0, []
            report(count)

        for document in documents(source, limit):
            entries.append(Entry(document.name, np.frombuffer(document.data, np.uint8), len(document.data), document.ends))
            size += len(document.data)
            if size >= SHARD_BYTES:
                close()
        close()
        if not count:
            raise UserError("data.sources", f"the corpus '{source.path or source.kind}' is empty", "give a source with text")
        _write_json(done, count)
    return [folder / f"{n:05d}.arrow" for n in range(_read_json(done))]


def _raw(config: TextDataConfig, keys: Sequence[str], pool: Executor | None, report: Progress) -> list[_Raw]:
    found: list[tuple[Path, str, int]] = []
    for index, (source, key) in enumerate(zip(config.sources, keys, strict=True)):
        folder = cache_folder(config) / "documents" / key
        found += [(path, key, index) for path in _read(source, config.limit, folder, key, lambda done: report("reading", done, 0))]
    names = [read_shard(path, key).names.to_pylist() for path, key, _ in found]
    reasons = [KEPT] * sum(map(len, names))
    if config.curation != CurationConfig():
        tasks = [(*one, config) for one in found]
        reasons = left_out((one for shard in each(pool, _judge, tasks, "judging", report) for one in shard), config.curation)
        if all(reasons):
            raise UserError("data.curation", f"leaves nothing of {len(reasons)} documents ({counted([reasons])})", "loosen its rules")
    why = iter(reasons)
    raws = [_Raw(*one, [next(why) for _ in shard], None) for one, shard in zip(found, names, strict=True)]
    if config.split == "tail":
        return raws
    kept = [name for raw, shard in zip(raws, names, strict=True) for name, reason in zip(shard, raw.reasons, strict=True) if not reason]
    assigned = iter(by_document(kept, config.validation, config.test))
    return [raw._replace(assigned=["train" if reason else next(assigned) for reason in raw.reasons]) for raw in raws]


def _judge(path: Path, key: str, source: int, config: TextDataConfig) -> list[Judgement] | Failure:
    try:
        shard = read_shard(path, key)
        documents = (shard.tokens[a:b].tobytes() for a, b in pairwise(shard.offsets))
        return [judged(_compared(source, config, data), config.curation) for data in documents]
    except UserError as error:
        return Failure(error.field, error.problem, error.remedy)


def _parts(raw: _Raw, config: TextDataConfig) -> Iterator[tuple[int, str, Part, bytes]]:
    """Every part of every document in the shard: the document's row and name, the part, its bytes."""
    shard = read_shard(raw.path, raw.key)
    for row, name in enumerate(shard.names.to_pylist()):
        if raw.reasons[row]:
            continue
        data = shard.tokens[shard.offsets[row] : shard.offsets[row + 1]].tobytes()
        ends = bool(shard.ends[row])
        if raw.assigned is None:
            parts = by_tail(data, ends, config.validation, config.test)
        else:
            parts = [Part(raw.assigned[row], 0, len(data), ends)]
        yield from ((row, name, part, data[part.start : part.stop]) for part in parts)


# Encoding ------------------------------------------------------------------------------------------------------------------------


def _fill(folder: Path, key: str, config: TextDataConfig, keys: Sequence[str], workers: int, report: Progress) -> None:
    with processes(workers) as pool:
        raws = _raw(config, keys, pool, report)
        held_out = folder / "held-out.npz"
        if not held_out.exists():
            parts = ((raw, part, data) for raw in raws for _, _, part, data in _parts(raw, config))
            HeldOut.of(_compared(raw.source, config, data) for raw, part, data in parts if part.split != "train").save(held_out)
        checked = list(each(pool, _check, [(raw, config, held_out) for raw in raws], "comparing", report))
        tokenizer_path = folder / "tokenizer.json"
        if not tokenizer_path.exists():
            report("training the tokenizer", 0, 1)
            Tokenizer.train(config.tokenizer, _tokenizer_text(config, raws, checked)).save(tokenizer_path)
        shards: dict[Split, list[list[str]]] = {split: [[] for _ in config.sources] for split in SPLITS}
        work: list[_Work] = []
        for raw, (dropped, splits) in zip(raws, checked, strict=True):
            for split in splits:
                names = shards[split][raw.source]
                names.append(f"source{raw.source}-{split}-{len(names):05d}.arrow")
                work.append(_Work(raw, dropped, split, folder / names[-1]))
        todo = [(one, config, key, tokenizer_path) for one in work if not one.target.exists()]
        for _ in each(pool, _encode, todo, "encoding", report):
            pass
        counts = [_read_json(path) for path in (_misfits(one.target) for one in work) if path.exists()]
        misfits = [sum(column) for column in zip([0, 0], *counts, strict=True)]
    held: list[tuple[Split, float]] = [("validation", config.validation), ("test", config.test)]
    for split, share in held:
        if share and not any(shards[split]):
            raise UserError(f"data.{split}", f"{share} of this text is less than a character", "raise it or set it to 0")
    near_duplicates = sum(sum(one.dropped) for one in checked)
    curated = counted(raw.reasons for raw in raws)
    found = {"near_duplicates": near_duplicates, "left_out": curated, "misfits": misfits}
    _write_json(folder / "prepared.json", {**shards, **found})


def _tokenizer_text(config: TextDataConfig, raws: Sequence[_Raw], checked: Sequence[_Checked]) -> Iterator[bytes]:
    """What the tokenizer is trained on: training text. Only ``characters`` sees all, for an alphabet tells nothing of the text and a
    held-out character without a token could not be scored."""
    characters = config.tokenizer.kind == "characters"
    template = chats.template_for(config)
    left = [TOKENIZER_BYTES // len(config.sources)] * len(config.sources)
    for raw, (dropped, _) in zip(raws, checked, strict=True):
        for row, name, part, data in _parts(raw, config):
            if chats.conversations(config.sources[raw.source]):
                data = chats.text_of(data, name, template)
            if characters:
                yield data
            elif part.split == "train" and not dropped[row] and left[raw.source] > 0:
                left[raw.source] -= len(data)
                yield data


@lru_cache(maxsize=1)
def _held_out(path: Path) -> HeldOut:
    return HeldOut.load(path)


def _compared(source: int, config: TextDataConfig, data: bytes) -> bytes:
    """What of a document tells whether it is another's copy."""
    return chats.contents(data) if chats.conversations(config.sources[source]) else data


def _check(raw: _Raw, config: TextDataConfig, held_out: Path) -> _Checked | Failure:
    try:
        dropped, splits = [False] * len(read_shard(raw.path, raw.key).names), set()
        for row, _, part, data in _parts(raw, config):
            splits.add(part.split)
            dropped[row] |= part.split == "train" and _held_out(held_out).holds(_compared(raw.source, config, data))
        return _Checked(dropped, [split for split in SPLITS if split in splits])
    except UserError as error:
        return Failure(error.field, error.problem, error.remedy)


@lru_cache(maxsize=1)
def _tokenizer(path: Path, config: TokenizerConfig) -> Tokenizer:
    return Tokenizer.reopen(path, config)


def _misfits(shard: Path) -> Path:
    """Beside a shard: how many of its conversations were shortened, and how many it lacks."""
    return shard.with_suffix(".json")


def _encode(work: _Work, config: TextDataConfig, key: str, tokenizer_path: Path) -> Failure | None:
    tokenizer, template = _tokenizer(tokenizer_path, config.tokenizer), chats.template_for(config)
    misfits = [0, 0]
    try:
        entries = []
        for row, name, part, data in _parts(work.raw, config):
            if part.split != work.split or (part.split == "train" and work.dropped[row]):
                continue
            if not chats.conversations(config.sources[work.raw.source]):
                entries.append(Entry(name, tokenizer.encode(data), len(data), part.ends))
                continue
            found = chats.encode(data, name, tokenizer, template, config.context)
            if found is None:
                misfits[1] += 1
            else:
                misfits[0] += found.shortened
                entries.append(Entry(name, found.tokens, found.source_bytes, True, found.spans))
        if chats.conversations(config.sources[work.raw.source]):
            _write_json(_misfits(work.target), misfits)
        write_shard(work.target, entries, np.uint16 if tokenizer.vocabulary.size <= 2**16 else np.uint32, key)
        return None
    except UserError as error:
        return Failure(error.field, error.problem, error.remedy)
