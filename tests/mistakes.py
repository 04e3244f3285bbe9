"""Ways to make a person's mistakes, for the table of ``test_bad_input``: files to spoil, arguments to get wrong."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import unveil
from unveil import cli
from unveil import recipe as recipes
from unveil.training import checkpoint

CONTEXT = 64
FEW_STEPS = ["--training.steps", "4", "--training.save-every", "2"]


@dataclass(frozen=True)
class Place:
    """A folder of its own for a case, with a text and copies of three finished runs."""

    folder: Path
    text: Path
    run: Path
    ar: Path
    images: Path

    def write(self, name: str, content: str | bytes) -> str:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def weights(self, change: Callable[[dict[str, Any]], Any]) -> list[str]:
        path = self.run / "final" / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
        return ["sample", str(self.run)]

    def damaged(self, path: Path, change: Callable[[bytes], bytes]) -> None:
        path.write_bytes(change(path.read_bytes()))

    def resume(self) -> list[str]:
        return ["train", str(self.run), "--resume"]

    @property
    def checkpoint(self) -> Path:
        return checkpoint.folder(self.run / "checkpoints", 4)

    def in_checkpoint(self, name: str, data: bytes) -> list[str]:
        """Replace a checkpoint's file and make the manifest vouch for it, as an attacker would."""
        (self.checkpoint / name).write_bytes(data)
        path = self.checkpoint / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["files"][name] = [len(data), zlib.crc32(data)]
        path.write_text(json.dumps(manifest))
        return self.resume()


class Hostile:
    def __reduce__(self) -> Any:
        return (print, ("HOSTILE CODE RAN",))


def other_tokenizer(p: Place) -> list[str]:
    from unveil.config import TokenizerConfig
    from unveil.data.tokenizer import Tokenizer

    Tokenizer.train(TokenizerConfig(kind="characters"), [b"abc"]).save(p.run / "final" / "tokenizer.json")
    return ["sample", str(p.run)]


def wordy_tokenizer(p: Place) -> list[str]:
    import tokenizers

    path = str(p.folder / "words.json")
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(path)
    words = p.write("words.txt", b"caf\xe9 " * 999)
    return [
        "data",
        "prepare",
        "tiny",
        "--data",
        words,
        "--data.tokenizer.kind",
        "file",
        "--data.tokenizer.path",
        path,
        "--data.split",
        "tail",
    ]


def truncated(p: Place, name: str) -> list[str]:
    p.damaged(p.run / "final" / name, lambda data: data[: len(data) // 2])
    return ["sample", str(p.run)]


def flipped(p: Place) -> list[str]:
    file = next(p.checkpoint.glob("*.distcp"))
    p.damaged(file, lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
    return p.resume()


def mixed_up(p: Place) -> list[str]:
    """Two finished runs in one directory, the second on another context."""
    shutil.copytree(p.run, p.folder / "sweep" / "a")
    shutil.copytree(p.run, p.folder / "sweep" / "b")
    path = p.folder / "sweep" / "b" / "recipe.toml"
    path.write_text(path.read_text().replace(f"context = {CONTEXT}", f"context = {CONTEXT // 2}"))
    return ["scaling", "fit", str(p.folder / "sweep")]


def shard(p: Place) -> list[str]:
    args = ["data", "prepare", "tiny", "--data", str(p.text), "--data.split", "tail"]
    cli.main(args)
    p.damaged(next((p.folder / "cache").rglob("*train*.arrow")), lambda data: data[: len(data) // 2])
    return args


def unfinished(p: Place) -> list[str]:
    shutil.rmtree(p.run / "final")
    return ["sample", str(p.run)]


def newer(p: Place) -> list[str]:
    path = p.run / "final" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    return ["sample", str(p.run)]


def trained_again(p: Place, *more: str) -> list[str]:
    return ["train", "tiny", "--data", str(p.text), "--data.split", "tail", "--run-dir", str(p.folder / "new"), *more]


def photos(p: Place, *sizes: tuple[str, tuple[int, int]], corrupt: bool = False) -> list[str]:
    """Train on a folder of such images; the first is a.png."""
    (p.folder / "photos").mkdir()
    for name, (mode, size) in zip("abc", sizes, strict=False):
        Image.new(mode, size).save(p.folder / "photos" / f"{name}.png")
    if corrupt:
        p.write("photos/z.png", b"no image")
    return ["train", "edm-digits", "--data", str(p.folder / "photos"), "--run-dir", str(p.folder / "new")]


def encoded(p: Place, *more: str, captions: str = "ab") -> list[str]:
    """Train on two images, some with captions, by encoders."""
    args = photos(p, ("RGB", (8, 8)), ("RGB", (8, 8)))
    for name in captions:
        p.write(f"photos/{name}.txt", "words")
    return [*args, *more]


def autoencoder(p: Place, **settings: Any) -> str:
    """A small autoencoder whose config says otherwise than its weights."""
    import diffusers

    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",), "block_out_channels": (8,)}
    diffusers.AutoencoderKL(**blocks, norm_num_groups=4).save_pretrained(p.folder / "vae")
    config = p.folder / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    return str(p.folder / "vae")


def text_encoder(p: Place, tokenizer: bool) -> str:
    """A small encoder, with its tokenizer or without."""
    import tokenizers
    import transformers

    sizes = {"vocab_size": 7, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(p.folder / "bert")
    if tokenizer:
        words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
        transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]").save_pretrained(p.folder / "bert")
    return str(p.folder / "bert")


def spoken(p: Place, *rows: str, more: tuple[str, ...] = ()) -> list[str]:
    """Fine-tune on such rows."""
    return ["train", "llada-sft", "--data", p.write("chats.jsonl", "\n".join(rows)), "--run-dir", str(p.folder / "new"), *more]


def begun(p: Place, kind: str, *more: str, recipe: str = "llada-sft") -> list[str]:
    """Fine-tune a published model."""
    from tests.interop.test_text import published

    published(kind, p.folder / kind)
    return ["train", recipe, "--training.initial", str(p.folder / kind), "--run-dir", str(p.folder / "new"), *more]


def taught(p: Place, teacher: Path) -> list[str]:
    """Reflow from a teacher that does not do."""
    return ["train", "rf-digits-reflow", "--objective.teacher", str(teacher), "--run-dir", str(p.folder / "student")]


def photo_folder(p: Place) -> Path:
    """Images of another shape than digits."""
    photos(p, ("L", (9, 9)), ("L", (9, 9)))
    return p.folder / "photos"


def drawn(p: Place, *more: str) -> list[str]:
    return ["sample", str(p.images), *more]


def theirs(p: Place, change: Callable[[Path], object], verb: str = "sample") -> list[str]:
    """The images as a folder of diffusers, in which something is wrong."""
    cli.main(["convert", str(p.images), str(p.folder / "theirs")])
    change(p.folder / "theirs")
    return [verb, str(p.folder / "theirs")]


def their_weights(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def said(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


Args = Callable[[Place], list[str]]


def three_runs(folder: Path) -> None:
    """A text and two runs on it, and one of images: the recipes of all small and short."""
    text = folder / "text.txt"
    text.write_text("".join(f"Line {i} tells that {i} and {i} are {2 * i}.\n\n" for i in range(600)))
    for name, family in (("run", "discrete"), ("ar", "autoregressive")):
        tree = {"family": family, "model": {"width": 16, "depth": 1, "heads": 2}, "evaluation": {"tokens": 256}, "sampler": {"length": 8}}
        tree["data"] = {"context": CONTEXT, "packing_length": 128, "cache": str(folder / "cache"), "tokenizer": {"kind": "bytes"}}
        tree["data"] |= {"sources": [{"kind": "text", "path": str(text), "documents": "paragraph"}]}  # type: ignore[operator]
        tree["training"] = {"steps": 4, "save_every": 2, "log_every": 2, "dtype": "float32", "compile": "off"}
        unveil.train(recipes.parse(tree), folder / name, console=False)
    tree = {"family": "gaussian", "model": {"channels": [8], "attention": ["none"], "layers": 1, "groups": 4, "head_width": 8}}
    tree |= {"data": {"limit": 30, "batch": 8, "cache": str(folder / "cache")}, "sampler": {"steps": 3}}
    tree["training"] = {"steps": 2, "log_every": 2, "dtype": "float32", "compile": "off"}
    unveil.train(recipes.parse(tree), folder / "images", console=False)


def answered(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which the command line refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        cli.main(args)
    printed = capsys.readouterr()
    assert stopped.value.code == 2, printed.err
    assert printed.err.count("\n") == 1 and "Traceback" not in printed.err, printed.err
    assert "HOSTILE" not in printed.out
    return printed.err
