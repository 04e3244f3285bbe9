"""Tokenizers, special ids and conversations of published layouts: ids of several turns spelt out, and `unveil chat` on a folder of each."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

pytest.importorskip("transformers")

import transformers

import unveil
from tests.interop.test_text import V, published, told_folder
from tests.mistakes import answered
from unveil import cli
from unveil.data.tokenizer import _byte_characters
from unveil.interop import tokens
from unveil.text.chat import chat_template
from unveil.text_run import TextRun

LLADA = ("<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
DREAM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>")
SDAR = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|MASK|>")
BUGGY = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
SETTINGS: dict[str, dict[str, Any]] = {
    "llada": {"bos_token": "<|startoftext|>", "eos_token": {"content": "<|endoftext|>"}, "chat_template": BUGGY},
    "Dream": {"bos_token": "<|beginoftext|>", "eos_token": "<|endoftext|>", "mask_token": "<|mask|>"},
    "sdar": {"bos_token": None, "eos_token": "<|endoftext|>"},
    "qwen2": {"bos_token": None, "eos_token": "<|im_end|>"},
}
ADDED = {"llada": LLADA, "Dream": DREAM, "sdar": SDAR, "qwen2": SDAR[:3]}
IDS = {"llada": (256, 257, 258), "Dream": (259, 256, 260), "sdar": (256, 256, 259), "qwen2": (258, 258, -1)}
"""Start, end and mask."""


def tokenizer(added: Sequence[str]) -> Backend:
    """A token for each byte, in the order of GPT-2's characters, and then those that are added."""
    made = Backend(models.BPE(vocab={c: i for i, c in enumerate(_byte_characters())}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, special=True) for text in added])
    return made


def folder(kind: str, at: Path) -> Path:
    """A small model as its authors publish it, with none of our tokens; ids are named by the tokenizer where theirs are."""
    published(kind, at)
    place = at / "config.json"
    config = {name: value for name, value in json.loads(place.read_text()).items() if not name.endswith("_token_id")}
    config |= {"mask_token_id": 258} if kind == "llada" else {}
    config |= {"max_sequence_length" if kind == "llada" else "max_position_embeddings": 256}
    place.write_text(json.dumps(config))
    tokenizer(ADDED[kind]).save(str(at / "tokenizer.json"))
    (at / "tokenizer_config.json").write_text(json.dumps(SETTINGS[kind]))
    return at


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind, to be read; and Dream's files in parts, to be copied."""
    root = tmp_path_factory.mktemp("tokens")
    for kind in ADDED:
        folder(kind, root / kind)
    shutil.copytree(root / "Dream", root / "parts")
    (root / "parts" / "tokenizer.json").unlink()
    in_parts(root / "parts", "DreamTokenizer")
    return root


TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "ok"}]


def header(role: str) -> list[Any]:
    return [LLADA[3], role, LLADA[4], "\n\n"]


def chatml(role: str) -> list[Any]:
    return ["<|im_start|>", f"{role}\n"]


SPELT = {
    "llada": [LLADA[0], *header("user"), "Hi", LLADA[5], *header("assistant"), "Yes.", LLADA[5], *header("user"), "ok", LLADA[5]],
    "sdar": [*chatml("user"), "Hi", SDAR[2], "\n", *chatml("assistant"), "Yes.", SDAR[2], "\n", *chatml("user"), "ok", SDAR[2], "\n"],
}
SPELT = {"llada": SPELT["llada"] + header("assistant"), "sdar": SPELT["sdar"] + chatml("assistant")}
SPELT |= {"Dream": [DREAM[3], *SPELT["sdar"]], "qwen2": SPELT["sdar"]}


@pytest.mark.parametrize("kind", ADDED)
def test_special_ids_and_every_token_of_three_turns(kind: str, made: Path) -> None:
    run: Any = unveil.load(made / kind)
    v = run.tokenizer.vocabulary
    assert (v.start, v.end, v.mask) == IDS[kind] and v.size == V
    assert run.recipe.sampler.stop == {"llada": ("<|eot_id|>",), "qwen2": ()}.get(kind, ("<|im_end|>",))
    found = run.tokenizer.opened(chat_template(run.folder).render(TALK)).tolist()
    special = {text: 256 + i for i, text in enumerate(ADDED[kind])}
    expected: list[int] = []
    for piece in SPELT[kind]:
        expected += [special[piece]] if piece in special else list(piece.encode())
    assert found == expected


@pytest.mark.parametrize("kind", ADDED)
def test_a_conversation_in_the_terminal(kind: str, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked, sample = list[str](), TextRun.sample

    def recorded(self: TextRun, prompt: Any = None, **settings: Any) -> Any:
        asked.append(prompt)
        return sample(self, prompt, **settings)

    monkeypatch.setattr(TextRun, "sample", recorded)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\nok\n\n"))
    cli.main(["chat", str(made / kind), "--sampler.length", "4", "--sampler.temperature", "1"])
    capsys.readouterr()
    assert len(asked) == 2 and asked[1].startswith(asked[0].removesuffix("assistant\n").rstrip("\n"))
    assert asked[1].count("user") >= 2 and asked[1].count("assistant") >= 2 and asked[1].count("Hi") >= 1


# vocab.json and merges.txt ---------------------------------------------------------------------------------------------------

TEXT = "It's cafe\u0301  naïve: 3 of 45 (x_y)\n\n\tWE'LL see… 日本語 <|im_end|>don't\r\n  end "


def in_parts(at: Path, kind: str) -> Path:
    """Dream's files: a table of tokens, a list of merges, and the rest in the tokenizer's settings."""
    merges = [("I", "t"), ("Ġ", "o"), ("Ġo", "f"), ("4", "5"), ("Ċ", "Ċ"), ("l", "l"), ("'", "ll"), ("n", "a"), ("Ġ", "Ġ"), ("'", "t")]
    words = [*_byte_characters(), *("".join(pair) for pair in merges)]
    at.mkdir(exist_ok=True)
    (at / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
    (at / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    added = {str(len(words) + i): {"content": text, "special": True} for i, text in enumerate(DREAM)}
    settings = {**SETTINGS["Dream"], "added_tokens_decoder": added, "tokenizer_class": kind}
    (at / "tokenizer_config.json").write_text(json.dumps(settings))
    return at


@pytest.mark.parametrize("kind", ["DreamTokenizer", "GPT2Tokenizer"])
def test_a_table_and_merges_are_the_tokenizer_that_transformers_makes(kind: str, tmp_path: Path) -> None:
    place = in_parts(tmp_path, kind)
    ours = tokens.read(place, {}, V, masked=True, last=False, opens=True)
    twin = transformers.GPT2Tokenizer if kind.startswith("GPT2") else transformers.Qwen2Tokenizer
    merges = [tuple(line.split()) for line in (place / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]]
    theirs = twin(vocab=json.loads((place / "vocab.json").read_text(encoding="utf-8")), merges=merges)
    theirs.add_tokens([transformers.AddedToken(text, special=True) for text in DREAM])
    assert ours.encode(TEXT).tolist() == theirs.encode(TEXT, add_special_tokens=False)
    assert (ours.vocabulary.start, ours.vocabulary.end, ours.vocabulary.mask) == (269, 266, 270)


def test_a_folder_in_parts_is_sampled_and_written_whole(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(made / "parts", tmp_path / "theirs")
    cli.main(["sample", str(tmp_path / "theirs"), "--prompt", "It", "--sampler.length", "2"])
    assert "It" in capsys.readouterr().out
    cli.main(["convert", str(tmp_path / "theirs"), str(tmp_path / "ours"), "--to", "hf"])
    ours, theirs = (unveil.load(tmp_path / name).tokenizer for name in ("ours", "theirs"))
    assert ours.vocabulary == theirs.vocabulary and ours.encode(TEXT).tolist() == theirs.encode(TEXT).tolist()


def broken(at: Path, name: str) -> None:
    path = at / name
    path.write_text(path.read_text(encoding="utf-8").replace('"266"', '"280"').replace("Ġo f", "Ġo qq"), encoding="utf-8")


@pytest.mark.parametrize(("name", "words"), [("merges.txt", "make no tokenizer"), ("tokenizer_config.json", "token 267 is not the next")])
def test_parts_that_do_not_fit_get_one_line(name: str, words: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(made / "parts", tmp_path / "parts")
    broken(tmp_path / "parts", name)
    assert words in answered(["sample", str(tmp_path / "parts")], capsys)


def test_a_model_that_took_gpt2_s_tokenizer_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"model_type": "mdlm", "hidden_dim": 32, "cond_dim": 24, "n_blocks": 2, "n_heads": 4, "vocab_size": 50258}
    told_folder(tmp_path, config, {})
    (tmp_path / "tokenizer.json").unlink()
    assert "GPT-2's" in answered(["sample", str(tmp_path)], capsys)
