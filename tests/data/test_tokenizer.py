from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from unveil.config import TokenizerConfig
from unveil.data import tokenizer as module
from unveil.data.tokenizer import SPECIALS, Tokenizer
from unveil.errors import UserError

CODE = b"def main(argument):\n        return self._value + 1234567890\n\n\n    # ------\r\n" * 20
HARD = [
    b"",
    bytes(range(256)),
    np.random.default_rng(0).bytes(2000),
    "naïve 中文 \U0001f600 \u0301 \u2028 \ufeff x".encode(),
    b"a<|end|>b<|mask|> <0x41>",
    b"\xed\xa0\x80 \xff\n\n \n  \t",
    CODE,
]


@pytest.fixture(scope="module", params=["bytes", "characters", "bpe"])
def trained(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.train(TokenizerConfig(kind=request.param, vocabulary=400), HARD)


def test_any_bytes_come_back_exactly_also_from_disk_and_from_another_process(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path / "tokenizer.json")
    copies = [trained, Tokenizer.load(tmp_path / "tokenizer.json"), pickle.loads(pickle.dumps(trained))]
    for data in HARD:
        ids = trained.encode(data)
        assert ids.dtype == np.int64
        for copy in copies:
            assert np.array_equal(copy.encode(data), ids)
            assert copy.decode_bytes(ids) == data
            assert copy.decode(ids) == data.decode("utf-8", "replace")
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]


def test_specials_are_the_last_six_and_never_read_from_text(trained: Tokenizer) -> None:
    v = trained.vocabulary
    assert v.specials == tuple(range(v.size - 6, v.size))
    assert [trained.name(i) for i in v.specials] == list(SPECIALS)
    assert not set(trained.encode(HARD[4]).tolist()) & set(v.specials)
    ids = [v.start, *trained.encode("ab").tolist(), v.end]
    assert trained.decode(ids) == "ab"
    assert trained.decode(ids, specials=True) == "<|start|>ab<|end|>"
    lengths = trained.byte_lengths()
    assert lengths is not None and lengths[trained.encode(CODE)].sum() == len(CODE) and not lengths[list(v.specials)].any()


def test_bpe_is_deterministic_and_splits_digits_and_newlines() -> None:
    one, two = (Tokenizer.train(TokenizerConfig(vocabulary=400), HARD) for _ in range(2))
    assert one.digest() == two.digest()
    pieces = [one.decode_bytes([i]) for i in one.encode(CODE)]
    assert all(len(p) == 1 for p in pieces if any(48 <= b < 58 for b in p))
    assert not any(b"\n" in p and p.strip(b"\n") for p in pieces)
    assert b"       " in pieces, "indentation but its last space is one token"
    assert len(pieces) < len(CODE) / 2


def test_long_text_is_cut_where_it_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.train(TokenizerConfig(vocabulary=400), [CODE])
    whole = tokenizer.encode(CODE)
    for size in range(100, 200):
        monkeypatch.setattr(module, "_CHUNK", size)
        assert np.array_equal(tokenizer.encode(CODE), whole)
    assert tokenizer.decode_bytes(tokenizer.encode(b"x" * 1000)) == b"x" * 1000


def test_characters_know_what_they_were_trained_on_and_nothing_else() -> None:
    tokenizer = Tokenizer.train(TokenizerConfig(kind="characters"), ["añ".encode(), b"b\n"])
    assert tokenizer.vocabulary.size == 4 + 6
    assert tokenizer.encode("\nabñ").tolist() == [0, 1, 2, 3]
    with pytest.raises(UserError, match=r"U\+0063 'c'"):
        tokenizer.encode("abc")
    with pytest.raises(UserError, match="byte 0xFF"):
        tokenizer.encode(b"ab\xff")
    assert Tokenizer.train(TokenizerConfig(kind="characters"), [b"ab\xff"]).encode(b"\x80\xff").tolist() == [2, 129]


def test_a_foreign_tokenizer_gets_the_missing_specials_at_its_end(tmp_path: Path) -> None:
    foreign = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0, "hello": 1, "world": 2, "<|end|>": 3}, unk_token="<unk>"))
    foreign.pre_tokenizer = pre_tokenizers.Whitespace()
    foreign.enable_truncation(2)
    foreign.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.train(TokenizerConfig(kind="file", path=str(tmp_path / "tokenizer.json")), [])
    v = tokenizer.vocabulary
    assert (v.size, v.end, v.start, v.mask) == (9, 3, 4, 5)
    assert tokenizer.encode("hello world hello").tolist() == [1, 2, 1], "its truncation is switched off"
    assert tokenizer.byte_lengths() is None
    with pytest.raises(UserError, match="no byte tokens"):
        tokenizer.encode(b"hello \xff")


@pytest.mark.parametrize("content", [None, "", "{}", "not json"])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        Tokenizer.load(path)


def test_a_vocabulary_below_the_bytes_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.tokenizer\.vocabulary: got 261, wanted at least 262"):
        Tokenizer.train(TokenizerConfig(vocabulary=261), [CODE])
