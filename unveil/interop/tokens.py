"""The tokenizer of another's language model, and the ids that its network gives a meaning of their own.

It lies there as ``tokenizer.json`` or, of older models and of Dream, as ``vocab.json`` and ``merges.txt``, the files of GPT-2 and of Qwen.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from unveil.data.tokenizer import Tokenizer
from unveil.errors import UserError
from unveil.interop.folder import CONFIG, read_json
from unveil.text.vocabulary import Vocabulary

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
VOCABULARY, MERGES = "vocab.json", "merges.txt"
TURNS = ("<|eot_id|>", "<|im_end|>", "<|role_end|>")
"""Tokens that end a turn of a conversation, beside the end token."""
MASKS = ("<|MASK|>", "<|mask|>", "<|mdm_mask|>")
"""What SDAR, LLaDA-MoE and LLaDA call their mask, where no file says which token it is."""
_REMEDY = "take the whole folder of the same download"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # what Qwen cuts at
)


def read(folder: Path, given: Mapping[str, Any], size: int, *, masked: bool, last: bool, opens: bool) -> Tokenizer:
    """The tokenizer with the special ids of a network of ``size`` tokens, of the tokenizer's settings where they name a token, else of the
    network's (``given``).

    Args:
        masked: whether the network has a mask token; without one it is -1.
        last: whether that is the last token, where no file says.
        opens: as of ``Tokenizer``.

    Raises:
        UserError: files are missing or corrupted, there is no end or no mask, or the tokenizer has more tokens than the network.
    """
    place = folder / SETTINGS
    named = read_json(place, _REMEDY) if place.is_file() else {}
    backend, file = _backend(folder, named, size)

    def special(name: str, *spare: Any) -> Any:
        text = _text(named.get(f"{name}_token"))
        ids = [backend.token_to_id(text) if text else None, given.get(f"{name}_token_id"), *spare]
        return next((i[0] if isinstance(i, list) and i else i for i in ids if i is not None), None)

    end = special("eos", backend.token_to_id("<|endoftext|>"))
    start = special("bos", end)
    mask = special("mask", size - 1 if last else None, *map(backend.token_to_id, MASKS)) if masked else -1
    for name, found in (("eos_token_id", end), ("mask_token_id", mask)):
        if type(found) is not int:
            raise UserError(str(folder / CONFIG), f"{name} is missing, and the tokenizer names none", f"write {name} into it")
    try:
        vocabulary = Vocabulary(size, start, end, mask, -1, -1, -1)
    except ValueError as error:
        raise UserError(str(folder / CONFIG), f"its special tokens fit no network of {size} ({error})", _REMEDY) from None
    try:
        return Tokenizer(backend, vocabulary, opens)
    except UserError as error:
        raise UserError(str(file), error.problem, error.remedy) from None


def turns(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Those of ``TURNS`` that it has, but for the one that is its end token."""
    return tuple(text for text in TURNS if tokenizer.index(text) not in (None, tokenizer.vocabulary.end))


def _backend(folder: Path, named: Mapping[str, Any], size: int) -> tuple[tokenizers.Tokenizer, Path]:
    whole, parts = folder / TOKENIZER, (folder / VOCABULARY, folder / MERGES)
    if not whole.is_file() and all(part.is_file() for part in parts):
        return _joined(folder, named), parts[0]
    try:
        return tokenizers.Tokenizer.from_str(whole.read_text(encoding="utf-8")), whole
    except OSError:
        remedy = "put GPT-2's tokenizer.json there, which its authors took from elsewhere" if size in GPT2 else _REMEDY
        raise UserError(str(whole), "is missing", remedy) from None
    except Exception as error:  # the library raises bare Exception for whatever it cannot parse
        raise UserError(str(whole), f"is no tokenizer.json ({error})", _REMEDY) from None


GPT2 = (50257, 50258)
"""Tokens of networks whose folders have no tokenizer, of MDLM and SEDD: GPT-2's, and a mask."""


def _joined(folder: Path, named: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Byte-level BPE from its table of tokens and its list of merges; Qwen's kin normalise and cut words otherwise than GPT-2."""
    try:
        backend = tokenizers.Tokenizer(models.BPE.from_file(str(folder / VOCABULARY), str(folder / MERGES)))
    except Exception as error:  # as above
        raise UserError(str(folder / VOCABULARY), f"and {MERGES} make no tokenizer ({error})", _REMEDY) from None
    if str(named.get("tokenizer_class", "")).startswith("GPT2"):
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        backend.normalizer = normalizers.NFC()
        words = pre_tokenizers.Split(Regex(_WORDS), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    added = named.get("added_tokens_decoder") or {}
    for index, token in sorted((int(index), token) for index, token in added.items()):
        backend.add_tokens([AddedToken(_text(token), special=bool(token.get("special")), normalized=False)])
        if backend.token_to_id(_text(token)) != index:
            raise UserError(str(folder / SETTINGS), f"token {index} is not the next one after those of {VOCABULARY}", _REMEDY)
    return backend


def _text(token: Any) -> str:
    """A token is given as text, or as an object with its text in ``content``."""
    return str((token.get("content") if isinstance(token, Mapping) else token) or "")
