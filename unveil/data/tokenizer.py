"""Bytes, characters, byte-level BPE, or any ``tokenizer.json``: one class over the ``tokenizers`` library.

Every kind is saved as a ``tokenizer.json`` that other programs read too. Text is handled as bytes: what is no UTF-8 is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from unveil.config import TokenizerConfig
from unveil.errors import UserError
from unveil.text.vocabulary import Vocabulary

SPECIALS = ("<|start|>", "<|end|>", "<|mask|>", "<|prefix|>", "<|suffix|>", "<|middle|>")

WORDS = r"\p{N}| ?[\p{L}\p{M}_]+| ?[^\s\p{L}\p{M}\p{N}_]+|\n+|[^\S\n]+(?!\S)|[^\S\n]+"
"""What BPE never merges across: single digits; a word or an identifier and a run of signs, each with the space before it; newlines;
other white space, of which the last leaves with the word that follows (so that indentation is one token)."""

_CHUNK = 1 << 20
"""Longest text in characters that ``tokenizers`` gets at once: it spends some 100 bytes a token."""

_INVALID = re.compile("[\udc80-\udcff]+")
"""Bytes that are no UTF-8, as Python's surrogateescape writes them."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")

Ids = np.ndarray[Any, np.dtype[np.int64]]


def text_bytes(text: str) -> bytes:
    """UTF-8; lone surrogates become the byte they stand for (surrogateescape) or else their three bytes."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _byte_characters() -> list[str]:
    """The printable character that byte-level BPE writes for each byte (GPT-2): itself where printable, else one from U+0100 on."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(b) if b in shown else chr(next(spare)) for b in range(256)]


def _chunks(text: str) -> Iterator[str]:
    """Cuts of a long text behind newlines, where no pre-token of ``WORDS`` (nor of GPT-2's pattern) reaches across."""
    start = 0
    while len(text) - start > _CHUNK:
        stop = text.rfind("\n", start, start + _CHUNK) + 1
        while stop > start + 1 and text[stop].isspace():  # a run of white space stays whole
            stop = text.rfind("\n", start, stop - 1) + 1
        stop = stop if stop > start else start + _CHUNK
        yield text[start:stop]
        start = stop
    yield text[start:]


class Tokenizer:
    """Text to ids and back.

    ``vocabulary`` holds the size and the six special ids. The special tokens missing in a foreign file are appended; text that
    spells a special token is ordinary text.

    Args:
        vocabulary: of a foreign network that comes with the tokenizer: nothing is appended, and text that spells a special token is that
            token, as where the network was trained.
        opens: whether a text begins with the start token; without, only an empty one does.
    """

    def __init__(self, backend: tokenizers.Tokenizer, vocabulary: Vocabulary | None = None, opens: bool = True) -> None:
        backend.no_truncation()
        backend.no_padding()
        if vocabulary is None:
            missing = [s for s in SPECIALS if backend.token_to_id(s) is None]
            backend.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in missing])
        backend.encode_special_tokens = vocabulary is None
        self._given, self.opens = vocabulary, opens
        self._backend = backend
        tokens = backend.get_vocab(with_added_tokens=True)
        if vocabulary is not None and (count := max(tokens.values()) + 1) > vocabulary.size:
            problem = f"has {count} tokens, the network knows {vocabulary.size}"
            raise UserError("tokenizer.json", problem, "take the tokenizer of the same download")
        self.vocabulary = vocabulary or Vocabulary(max(tokens.values()) + 1, *(tokens[s] for s in SPECIALS))

        description = json.loads(backend.to_str())
        model, steps = description["model"], json.dumps([description["pre_tokenizer"], description["decoder"]])
        added = {t["id"] for t in description["added_tokens"]}
        self._pieces: list[bytes] | None = None  # the bytes of each id, where ids stand for bytes
        self._codes: np.ndarray[Any, Any] | None = None  # characters: their sorted code points; the id is the rank
        self._byte_ids: Ids | None = None
        plain = model["type"] == "BPE" and not model["merges"]
        if '"ByteLevel"' in steps:
            characters = _byte_characters()
            value = {c: b for b, c in enumerate(characters)}
            self._pieces = [b""] * self.vocabulary.size
            for token, index in tokens.items():
                known = index not in added and all(c in value for c in token)
                self._pieces[index] = bytes(value[c] for c in token) if known else token.encode()
            if all(c in tokens for c in characters):
                self._byte_ids = np.array([tokens[c] for c in characters], dtype=np.int64)
        elif plain and description["pre_tokenizer"] is None and description["normalizer"] is None:
            inner = sorted((i, t) for t, i in tokens.items() if i not in added)
            texts = [bytes.fromhex(m[1]).decode("utf-8", "surrogateescape") if (m := _BYTE_TOKEN.fullmatch(t)) else t for _, t in inner]
            if all(i == rank and len(t) == 1 for rank, ((i, _), t) in enumerate(zip(inner, texts, strict=True))) and sorted(texts) == texts:
                self._codes = np.array([ord(t) for t in texts], dtype=np.uint32)
                self._pieces = [text_bytes(t) for t in texts] + [self.name(i).encode() for i in range(len(texts), self.vocabulary.size)]
        elif all(f"<0x{b:02X}>" in tokens for b in range(256)):
            self._byte_ids = np.array([tokens[f"<0x{b:02X}>"] for b in range(256)], dtype=np.int64)
        untouched = description["normalizer"] is None and (description["pre_tokenizer"] or {}).get("add_prefix_space") is False
        self._plain_bytes = vocabulary is None and plain and untouched and self._pieces is not None and self._byte_ids is not None
        self._special = frozenset(self.vocabulary.specials)

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_json, (self._backend.to_str(), self._given, self.opens)

    def encode(self, data: str | bytes) -> Ids:
        """Ids of the text alone, no special tokens, int64 ``[T]``. Raises UserError for a character (or a byte that is no UTF-8)
        which the tokenizer has no token for."""
        data = text_bytes(data) if isinstance(data, str) else data
        if self._plain_bytes and self._byte_ids is not None:
            return self._byte_ids[np.frombuffer(data, dtype=np.uint8)]
        text = data.decode("utf-8", "surrogateescape")
        if self._codes is not None:
            return self._encode_characters(text, self._codes)
        parts: list[Any] = []
        position = 0
        for match in _INVALID.finditer(text):
            if self._byte_ids is None:
                raise UserError(
                    "data.tokenizer",
                    "the text holds bytes that are no UTF-8 and this tokenizer has no byte tokens",
                    "use kind 'bpe' or 'bytes'",
                )
            parts += self._encode_text(text[position : match.start()])
            parts.append(self._byte_ids[np.frombuffer(text_bytes(match[0]), dtype=np.uint8)])
            position = match.end()
        parts += self._encode_text(text[position:])
        return np.concatenate([np.asarray(p, dtype=np.int64) for p in parts]) if parts else np.zeros(0, dtype=np.int64)

    def opened(self, text: str) -> Ids:
        """``encode``, with the start token before it, unless the text spells it itself."""
        ids, start = self.encode(text), self.vocabulary.start
        begun = len(ids) and (ids[0] == start or not self.opens)
        return ids if begun else np.concatenate([[start], ids]).astype(np.int64)

    def _encode_text(self, text: str) -> list[list[int]]:
        if not text:
            return []
        return [e.ids for e in self._backend.encode_batch_fast(list(_chunks(text)), add_special_tokens=False)]

    def _encode_characters(self, text: str, codes: np.ndarray[Any, Any]) -> Ids:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        ids = np.minimum(np.searchsorted(codes, points), len(codes) - 1)
        unknown = points[codes[ids] != points]
        if len(unknown):
            shown = ", ".join(
                f"U+{p:04X} {chr(p)!r}" if not 0xDC80 <= p <= 0xDCFF else f"byte 0x{p - 0xDC00:02X}" for p in np.unique(unknown)[:3]
            )
            raise UserError(
                "data.tokenizer",
                f"{len(unknown)} characters are not in the character vocabulary ({shown})",
                "use kind 'bytes' or 'bpe', which know every byte",
            )
        return ids.astype(np.int64)

    def decode_bytes(self, ids: Sequence[int] | Ids) -> bytes:
        """The exact inverse of ``encode``; special tokens give nothing. Of a foreign tokenizer that rewrites text: what it made of it."""
        kept = [int(i) for i in ids if int(i) not in self._special]
        if self._pieces is not None:
            return b"".join([self._pieces[i] for i in kept])
        return text_bytes(self._backend.decode(kept, skip_special_tokens=False))

    def decode(self, ids: Sequence[int] | Ids, specials: bool = False) -> str:
        """Text; bytes that are no UTF-8 become U+FFFD. ``specials`` writes special tokens by their name; otherwise they give nothing."""
        if not specials:
            return self.decode_bytes(ids).decode("utf-8", "replace")
        out: list[str] = []
        run: list[int] = []
        for i in map(int, ids):
            if i in self._special:
                out += [self.decode(run), self.name(i)]
                run = []
            else:
                run.append(i)
        return "".join([*out, self.decode(run)])

    def name(self, index: int) -> str:
        """The token as the tokenizer writes it."""
        return self._backend.id_to_token(index) or ""

    def index(self, token: str) -> int | None:
        """The id of a token by its ``name``; None where there is no such token."""
        return self._backend.token_to_id(token)

    def digest(self) -> str:
        """A hash of all that the tokenizer does."""
        return hashlib.blake2b(self._backend.to_str().encode(), digest_size=12).hexdigest()

    def byte_lengths(self) -> Ids | None:
        """Bytes of each id ``[V]``, 0 for special tokens; None where ids do not stand for bytes (some foreign tokenizers)."""
        if self._pieces is None:
            return None
        lengths = np.array([len(p) for p in self._pieces], dtype=np.int64)
        lengths[list(self.vocabulary.specials)] = 0
        return lengths

    def save(self, path: Path) -> None:
        """Write ``tokenizer.json``, aside first and then renamed."""
        aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            aside.write_text(self._backend.to_str(), encoding="utf-8")
            aside.replace(path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                aside.unlink()

    @staticmethod
    def load(path: Path | str, vocabulary: Vocabulary | None = None, opens: bool = True) -> Tokenizer:
        """Read a ``tokenizer.json``. Raises UserError where it is missing, is none or has more tokens than ``vocabulary``."""
        try:
            return _from_json(Path(path).read_text(encoding="utf-8"), vocabulary, opens)
        except UserError as error:
            raise UserError(str(path), error.problem, error.remedy) from None
        except OSError as error:
            raise UserError(str(path), f"the tokenizer cannot be read ({error.strerror})", "give the path of a tokenizer.json") from error
        except Exception as error:  # the library raises bare Exception for whatever it cannot parse
            raise UserError(str(path), f"is no tokenizer.json ({error})", "give one written by the tokenizers library") from error

    @staticmethod
    def reopen(path: Path | str, config: TokenizerConfig) -> Tokenizer:
        """Read a ``tokenizer.json`` that the recipe's was saved as. Raises UserError as ``load``."""
        try:
            vocabulary = Vocabulary(*config.specials) if config.specials else None
        except (TypeError, ValueError) as error:
            problem = f"got {list(config.specials)}: {error}"
            raise UserError("data.tokenizer.specials", problem, "give the seven numbers of its network") from None
        return Tokenizer.load(path, vocabulary, config.opens)

    @staticmethod
    def train(config: TokenizerConfig, documents: Iterable[bytes]) -> Tokenizer:
        """Make the tokenizer that the recipe names; the same documents give the same tokenizer. ``file`` needs no documents.

        ``characters`` takes every character of the documents, and tokens for single bytes only where one of them is no UTF-8.
        ``bpe`` may end below ``vocabulary`` where the documents are too few. Raises UserError for a vocabulary too small.
        """
        if config.kind == "file":
            return Tokenizer.reopen(config.path, config)
        if config.kind == "characters":
            return _characters(documents)
        characters = _byte_characters()
        if config.kind == "bytes":
            backend = tokenizers.Tokenizer(models.BPE(vocab={c: b for b, c in enumerate(characters)}, merges=[]))
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        else:
            least = 256 + len(SPECIALS)
            if config.vocabulary < least:
                raise UserError(
                    "data.tokenizer.vocabulary",
                    f"got {config.vocabulary}, wanted at least {least}: all bytes and the special tokens",
                    "raise it or take kind 'bytes'",
                )
            backend = tokenizers.Tokenizer(models.BPE())
            words = pre_tokenizers.Split(Regex(WORDS), "isolated")
            backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
            trainer = trainers.BpeTrainer(
                vocab_size=config.vocabulary - len(SPECIALS),
                initial_alphabet=characters,
                max_token_length=32,  # a ruler of eighty dashes is not worth a token
                show_progress=False,
            )
            backend.train_from_iterator((chunk for d in documents for chunk in _chunks(d.decode("utf-8", "ignore"))), trainer)
        backend.decoder = decoders.ByteLevel()
        return Tokenizer(backend)


def _from_json(text: str, vocabulary: Vocabulary | None = None, opens: bool = True) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(text), vocabulary, opens)


def _characters(documents: Iterable[bytes]) -> Tokenizer:
    points: set[str] = set()
    for document in documents:
        points.update(document.decode("utf-8", "surrogateescape"))
    invalid = {p for p in points if "\udc80" <= p <= "\udcff"}
    if not points:
        raise UserError("data.sources", "the corpus is empty", "give a source with text")
    alphabet = sorted(points | ({chr(0xDC00 + b) for b in range(0x80, 0x100)} if invalid else set()))
    names = [f"<0x{ord(p) - 0xDC00:02X}>" if "\udc80" <= p <= "\udcff" else p for p in alphabet]
    backend = tokenizers.Tokenizer(models.BPE(vocab={n: i for i, n in enumerate(names)}, merges=[]))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return Tokenizer(backend)
