from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers
from torch import Tensor

from unveil.config import SourceConfig, TextDataConfig, TokenizerConfig
from unveil.data.corpus import documents
from unveil.data.loader import BOUNDARIES, Loader, held_out
from unveil.data.shards import Prepared, prepare
from unveil.errors import UserError
from unveil.nn.packed import Packed

Batch = tuple[Packed, dict[str, Tensor]]


class Plain:
    """Neither transforms nor draws."""

    def transform(self, tokens: np.ndarray[Any, Any], rng: np.random.Generator) -> np.ndarray[Any, Any]:
        return tokens

    def draw(self, sample_id: int, epoch: int, length: int, rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
        return {}


def rows(batches: list[Batch]) -> list[dict[str, Any]]:
    """Everything in the batches as plain lists, to compare."""
    return [
        {
            "tokens": b.tokens_T.tolist(),
            "cu": b.cu_seqlens.tolist(),
            "positions": b.positions_T.tolist(),
            "ids": b.sample_ids_N.tolist(),
            "longest": b.max_seqlen,
            **{name: values.tolist() for name, values in noise.items()},
        }
        for b, noise in batches
    ]


@pytest.fixture(scope="module")
def straight(prepared: Prepared, config: TextDataConfig, drawing: Any) -> list[dict[str, Any]]:
    """300 packs in this process: more than an epoch."""
    return rows(list(islice(Loader(prepared, config, 3, drawing), 300)))


def test_packs_are_what_a_network_expects(prepared: Prepared, config: TextDataConfig, drawing: Any) -> None:
    start = prepared.tokenizer.vocabulary.start
    for batch, noise in islice(Loader(prepared, config, 3, drawing), 40):
        plain = Packed.of(batch.split(), batch.sample_ids_N.tolist())
        assert torch.equal(plain.tokens_T, batch.tokens_T) and batch.tokens_T.dtype == torch.int64
        assert torch.equal(plain.positions_T, batch.positions_T) and plain.max_seqlen == batch.max_seqlen
        assert torch.equal(plain.sample_ids_N, batch.sample_ids_N)
        count = len(batch.lengths)
        assert torch.equal(plain.cu_seqlens, batch.cu_seqlens[: count + 1]) and batch.cu_seqlens.dtype == torch.int32
        assert len(batch.cu_seqlens) % BOUNDARIES == 0 and (batch.cu_seqlens[count:] == len(batch.tokens_T)).all()
        assert all(int(s[0]) == start and 2 <= len(s) <= config.context for s in batch.split())
        assert len(batch.tokens_T) <= config.packing_length
        order = list(zip(batch.lengths, batch.sample_ids_N.tolist(), strict=True))
        assert order == sorted(order), "by length, then by sample id"
        assert noise["t"].shape == (count,) and noise["u"].shape == batch.tokens_T.shape


def test_an_epoch_is_the_training_text_and_packs_are_full(prepared: Prepared, config: TextDataConfig) -> None:
    """Every document ends exactly once an epoch, and its tokens are all there."""
    v, store = prepared.tokenizer.vocabulary, prepared.splits["train"][0]
    loader = Loader(prepared, config, 0, Plain())
    want = int(store.lengths.sum() + store.ends.sum())
    seen: dict[int, Tensor] = {}
    used = []
    for batch, noise in islice(loader, 500):
        assert not noise
        used.append(len(batch.tokens_T))
        seen |= dict(zip(batch.sample_ids_N.tolist(), batch.split(), strict=True))
    tokens, first = 0, []
    for sample_id in sorted(seen):
        if tokens == want:
            break
        tokens += len(seen[sample_id]) - 1
        first.append(seen[sample_id])
    assert tokens == want and list(seen) != sorted(seen)
    counts = torch.bincount(torch.cat(first), minlength=v.size)
    expected = np.bincount(np.concatenate([store.tokens(i) for i in range(len(store))]), minlength=v.size)
    assert counts[:256].tolist() == expected[:256].tolist() and counts[v.end] == len(store)
    assert np.mean(used) / config.packing_length > 0.97


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing_and_the_state_counts_only_what_was_handed_out(
    prepared: Prepared, config: TextDataConfig, drawing: Any, straight: list[dict[str, Any]], workers: int
) -> None:
    loader = Loader(prepared, replace(config, workers=workers), 3, drawing)
    assert rows(list(islice(loader, 23))) == straight[:23]
    state = json.loads(json.dumps(loader.state_dict()))
    again = Loader(prepared, config, 3, drawing)
    again.load_state_dict(state)
    assert rows(list(islice(again, 30))) == straight[23:53]


def test_it_resumes_exactly_after_any_batch_also_by_rewinding(
    prepared: Prepared, config: TextDataConfig, drawing: Any, straight: list[dict[str, Any]]
) -> None:
    loader = Loader(prepared, config, 3, drawing)
    states = [loader.state_dict()]
    for _ in range(250):
        next(loader)
        states.append(json.loads(json.dumps(loader.state_dict())))
    assert states[250]["stream"]["epochs"][0] >= 1
    for at in (0, 1, 77, 150, 250):
        loader.load_state_dict(states[at])
        assert loader.state_dict() == states[at]
        assert rows(list(islice(loader, 12))) == straight[at : at + 12]


def test_it_resumes_where_one_piece_finished_two_packs(prepared: Prepared, config: TextDataConfig) -> None:
    config = replace(config, packing_length=config.context, packing="next-fit")
    straight = rows(list(islice(Loader(prepared, config, 3, Plain()), 200)))
    loader = Loader(prepared, config, 3, Plain())
    waiting = 0
    for at in range(1, 150):
        next(loader)
        state = json.loads(json.dumps(loader.state_dict()))
        if state["finished"]:
            waiting += 1
            loader.load_state_dict(state)
            assert rows([next(loader)]) == straight[at : at + 1]
            loader.load_state_dict(state)
    assert waiting > 3


def test_ranks_share_one_order_and_agree_on_the_state(
    prepared: Prepared, config: TextDataConfig, drawing: Any, straight: list[dict[str, Any]]
) -> None:
    ranks = [Loader(prepared, config, 3, drawing, rank, 3) for rank in range(3)]
    batches = [rows(list(islice(loader, 10))) for loader in ranks]
    assert [batches[j % 3][j // 3] for j in range(30)] == straight[:30]
    assert ranks[0].state_dict() == ranks[1].state_dict() == ranks[2].state_dict()
    alone = Loader(prepared, config, 3, drawing)
    alone.load_state_dict(ranks[1].state_dict())
    assert rows(list(islice(alone, 5))) == straight[30:35], "the number of ranks may change on resuming"


def test_families_see_the_same_pieces_and_a_sample_the_same_noise_in_any_pack(
    prepared: Prepared, config: TextDataConfig, drawing: Any
) -> None:
    def samples(loader: Loader, names: tuple[str, ...] = ()) -> dict[int, Any]:
        found = {}
        for batch, noise in islice(loader, 60):
            per_token = [batch.split(noise[n]) for n in names]
            for i, (sample, tokens) in enumerate(zip(batch.sample_ids_N.tolist(), batch.split(), strict=True)):
                found[sample] = (tokens.tolist(), *(p[i].tolist() for p in per_token))
        return found

    plain, drawn = samples(Loader(prepared, config, 3, Plain())), samples(Loader(prepared, config, 3, drawing), ("u",))
    common = plain.keys() & drawn.keys()
    assert len(common) > 200
    assert all(plain[i][0][: len(drawn[i][0])] == drawn[i][0] for i in common), "the transform only cut"
    other = samples(Loader(prepared, replace(config, packing="next-fit", packing_length=300), 3, drawing), ("u",))
    assert len(other.keys() & drawn.keys()) > 200
    assert all(other[i] == drawn[i] for i in other.keys() & drawn.keys())
    assert samples(Loader(prepared, config, 4, Plain())) != plain


def test_a_state_of_other_data_or_cutting_is_refused(prepared: Prepared, config: TextDataConfig, drawing: Any) -> None:
    state = Loader(prepared, config, 3, drawing).state_dict()
    for other in (
        Loader(prepared, config, 4, drawing),
        Loader(prepared, replace(config, context=32), 3, drawing),
        Loader(prepared, replace(config, packing="next-fit"), 3, drawing),
        Loader(prepare(replace(config, validation=0.2)), config, 3, drawing),
    ):
        with pytest.raises(UserError, match="resume with the recipe"):
            other.load_state_dict(state)


def test_a_family_that_makes_a_sequence_too_long_is_told(prepared: Prepared, config: TextDataConfig) -> None:
    class Longer(Plain):
        def transform(self, tokens: np.ndarray[Any, Any], rng: np.random.Generator) -> np.ndarray[Any, Any]:
            return np.concatenate([tokens, tokens])

    with pytest.raises(ValueError, match=r"wanted 2\.\.64"):
        list(islice(Loader(prepared, config, 0, Longer()), 20))
    with pytest.raises(ValueError, match="rank 2 of 2"):
        Loader(prepared, config, 0, Plain(), 2, 2)


def read_back(prepared: Prepared, config: TextDataConfig, split: Any = "test", tokens: int = 0) -> tuple[bytes, int, int, int]:
    """Content of all held-out sequences joined, and how many source bytes, tokens and ends."""
    v = prepared.tokenizer.vocabulary
    text, size, total, ends, next_id = b"", 0, 0, 0, 0
    for packed, content_T, bytes_N, _ in held_out(prepared, config, split, tokens):
        assert len(packed.tokens_T) <= config.packing_length
        assert packed.sample_ids_N.tolist() == list(range(next_id, next_id + len(bytes_N)))
        next_id += len(bytes_N)
        for sequence, content, count in zip(packed.split(), packed.split(content_T), bytes_N.tolist(), strict=True):
            piece = prepared.tokenizer.decode_bytes(sequence[content].tolist())
            assert len(sequence) <= config.context and len(piece) == count
            assert sequence[~content].tolist() in ([v.start], [v.start, v.end])
            ends += int((sequence[~content] == v.end).sum())
            text += piece
        size, total = size + int(bytes_N.sum()), total + len(packed.tokens_T)
    return text, size, total, ends


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_held_out_windows_are_the_text_in_order_each_byte_once(config: TextDataConfig, kind: Any) -> None:
    prepared = prepare(replace(config, tokenizer=TokenizerConfig(kind=kind, vocabulary=300)))
    for split in ("validation", "test"):
        store = prepared.splits[split][0]
        text, size, _, ends = read_back(prepared, config, split)
        source = {d.name: d.data for d in documents(config.sources[0])}
        assert text == b"".join(source[store.name(i)] for i in range(len(store)))
        assert size == len(text) and ends == len(store)


def test_held_out_takes_no_more_tokens_than_asked_and_from_every_source(config: TextDataConfig, prepared: Prepared, tmp_path: Path) -> None:
    assert 900 < read_back(prepared, config, tokens=1000)[2] <= 1000
    (tmp_path / "lines.txt").write_text("\n".join(f"<<the line number {n} of them>>" for n in range(300)))
    lines = SourceConfig(kind="text", path=str(tmp_path), documents="line", weight=3)
    both = prepare(replace(config, sources=(*config.sources, lines)))
    text, _, total, _ = read_back(both, config, tokens=800)
    assert total <= 800 and 500 < text.count(b"<<") * 33 < 650


def test_held_out_without_any_is_an_error_of_the_recipe(config: TextDataConfig) -> None:
    none = replace(config, test=0.0)
    with pytest.raises(UserError, match=r"data\.test: nothing is held out"):
        list(held_out(prepare(none), none, "test"))


@pytest.mark.parametrize("kind", ["words", "bytes"])
def test_a_tokenizer_that_rewrites_text_still_counts_the_bytes_of_the_source(config: TextDataConfig, tmp_path: Path, kind: str) -> None:
    if kind == "words":
        foreign = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0, "w": 1}, unk_token="<unk>"))
        foreign.pre_tokenizer = pre_tokenizers.Whitespace()
    else:
        foreign = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
        foreign.pre_tokenizer = pre_tokenizers.ByteLevel()
        foreign.normalizer = normalizers.Replace(" ", "")
    foreign.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "t.txt").write_text("\n".join(" ".join(f"w {n * w}" for w in range(70)) for n in range(100)))
    source = SourceConfig(kind="text", path=str(tmp_path / "t.txt"), documents="line")
    chosen = replace(config, sources=(source,), tokenizer=TokenizerConfig(kind="file", path=str(tmp_path / "tokenizer.json")))
    prepared = prepare(chosen)
    store = prepared.splits["test"][0]
    assert store.lengths.sum() < store.source_bytes.sum()
    assert sum(int(s.source_bytes_N.sum()) for s in held_out(prepared, chosen, "test")) == store.source_bytes.sum() > 500
