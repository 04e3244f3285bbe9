"""A person's mistakes, one table, each through the command line: exit status 2 and one line that names field, value and remedy."""

from __future__ import annotations

import errno
import json
import pickle
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.filesystem import FileSystemWriter

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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text and two finished runs on it, four steps each."""
    folder = tmp_path_factory.mktemp("bad-input")
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
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNVEIL_CACHE", str(tmp_path / "cache"))
    for name in ("run", "ar", "images"):
        shutil.copytree(trained / name, tmp_path / name)
    return Place(tmp_path, trained / "text.txt", tmp_path / "run", tmp_path / "ar", tmp_path / "images")


class Hostile:
    def __reduce__(self) -> Any:
        return (print, ("HOSTILE CODE RAN",))


def _other_tokenizer(p: Place) -> list[str]:
    from unveil.config import TokenizerConfig
    from unveil.data.tokenizer import Tokenizer

    Tokenizer.train(TokenizerConfig(kind="characters"), [b"abc"]).save(p.run / "final" / "tokenizer.json")
    return ["sample", str(p.run)]


def _wordy_tokenizer(p: Place) -> list[str]:
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


def _truncate(p: Place, name: str) -> list[str]:
    p.damaged(p.run / "final" / name, lambda data: data[: len(data) // 2])
    return ["sample", str(p.run)]


def _flip(p: Place) -> list[str]:
    file = next(p.checkpoint.glob("*.distcp"))
    p.damaged(file, lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
    return p.resume()


def _mixed(p: Place) -> list[str]:
    """Two finished runs in one directory, the second on another context."""
    shutil.copytree(p.run, p.folder / "sweep" / "a")
    shutil.copytree(p.run, p.folder / "sweep" / "b")
    path = p.folder / "sweep" / "b" / "recipe.toml"
    path.write_text(path.read_text().replace(f"context = {CONTEXT}", f"context = {CONTEXT // 2}"))
    return ["scaling", "fit", str(p.folder / "sweep")]


def _shard(p: Place) -> list[str]:
    args = ["data", "prepare", "tiny", "--data", str(p.text), "--data.split", "tail"]
    cli.main(args)
    p.damaged(next((p.folder / "cache").rglob("*train*.arrow")), lambda data: data[: len(data) // 2])
    return args


def _unfinished(p: Place) -> list[str]:
    shutil.rmtree(p.run / "final")
    return ["sample", str(p.run)]


def _newer(p: Place) -> list[str]:
    path = p.run / "final" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    return ["sample", str(p.run)]


def _train(p: Place, *more: str) -> list[str]:
    return ["train", "tiny", "--data", str(p.text), "--data.split", "tail", "--run-dir", str(p.folder / "new"), *more]


def _photos(p: Place, *sizes: tuple[str, tuple[int, int]], corrupt: bool = False) -> list[str]:
    """Train on a folder of such images; the first is a.png."""
    (p.folder / "photos").mkdir()
    for name, (mode, size) in zip("abc", sizes, strict=False):
        Image.new(mode, size).save(p.folder / "photos" / f"{name}.png")
    if corrupt:
        p.write("photos/z.png", b"no image")
    return ["train", "edm-digits", "--data", str(p.folder / "photos"), "--run-dir", str(p.folder / "new")]


def _encoded(p: Place, *more: str, captions: str = "ab") -> list[str]:
    """Train on two images, some with captions, by encoders."""
    args = _photos(p, ("RGB", (8, 8)), ("RGB", (8, 8)))
    for name in captions:
        p.write(f"photos/{name}.txt", "words")
    return [*args, *more]


def _autoencoder(p: Place, **settings: Any) -> str:
    """A small autoencoder whose config says otherwise than its weights."""
    import diffusers

    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",), "block_out_channels": (8,)}
    diffusers.AutoencoderKL(**blocks, norm_num_groups=4).save_pretrained(p.folder / "vae")
    config = p.folder / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    return str(p.folder / "vae")


def _text_encoder(p: Place, tokenizer: bool) -> str:
    """A small encoder, with its tokenizer or without."""
    import tokenizers
    import transformers

    sizes = {"vocab_size": 7, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(p.folder / "bert")
    if tokenizer:
        words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
        transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]").save_pretrained(p.folder / "bert")
    return str(p.folder / "bert")


def _taught(p: Place, teacher: Path) -> list[str]:
    """Reflow from a teacher that does not do."""
    return ["train", "rf-digits-reflow", "--objective.teacher", str(teacher), "--run-dir", str(p.folder / "student")]


def _photo_folder(p: Place) -> Path:
    """Images of another shape than digits."""
    _photos(p, ("L", (9, 9)), ("L", (9, 9)))
    return p.folder / "photos"


def _draw(p: Place, *more: str) -> list[str]:
    return ["sample", str(p.images), *more]


def _theirs(p: Place, change: Callable[[Path], object], verb: str = "sample") -> list[str]:
    """The images as a folder of diffusers, in which something is wrong."""
    cli.main(["convert", str(p.images), str(p.folder / "theirs")])
    change(p.folder / "theirs")
    return [verb, str(p.folder / "theirs")]


def _their_weights(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def _say(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


Args = Callable[[Place], list[str]]
CASES: dict[str, tuple[Args, tuple[str, ...]]] = {
    "unknown setting": (lambda p: _train(p, "--training.stepz", "3"), ("training.stepz", "did you mean 'steps'")),
    "unknown section": (lambda p: _train(p, "--trainin.steps", "3"), ("trainin", "did you mean 'training'")),
    "unknown setting in a file": (
        lambda p: ["train", p.write("my.toml", 'base = "tiny"\n[model]\nwith = 3\n')],
        ("model.with", "did you mean 'width'"),
    ),
    "unknown table in a file": (
        lambda p: ["train", p.write("my.toml", 'base = "tiny"\n[modle]\nwidth = 3\n')],
        ("modle", "did you mean 'model'"),
    ),
    "value of the wrong type": (lambda p: _train(p, "--training.steps", "many"), ("training.steps", "'many'", "whole number")),
    "value of the wrong type in a file": (
        lambda p: ["train", p.write("my.toml", 'base = "tiny"\n[optimizer]\nlr = "fast"\n')],
        ("optimizer.lr", "'fast'", "a number"),
    ),
    "value outside its range": (lambda p: _train(p, "--data.validation", "1.5"), ("data.validation", "1.5", "at most 1")),
    "unknown choice": (lambda p: _train(p, "--optimizer.kind", "adam"), ("optimizer.kind", "'adam'", "adamw")),
    "no family": (lambda p: ["train", p.write("my.toml", "seed = 1\n")], ("family", "autoregressive")),
    "no TOML": (lambda p: ["train", p.write("my.toml", "family = \n")], ("my.toml", "TOML", "correct")),
    "recipe that is not there": (lambda p: ["train", "llada-pyton"], ("llada-pyton", "llada-python")),
    "file that is not there": (lambda p: ["train", "my.toml"], ("my.toml", "recipe file")),
    "text that is not there": (lambda p: ["train", "tiny", "--data", "nothing.txt"], ("--data", "nothing.txt", "give")),
    "recipe that wants a text": (lambda p: ["train", "shakespeare-ar"], ("data.sources.path", "empty", "give")),
    "empty corpus": (lambda p: ["train", "tiny", "--data", p.write("empty.txt", "")], ("data.sources", "empty.txt", "empty", "give")),
    "corpus smaller than a pack": (
        lambda p: ["train", "tiny", "--data", p.write("small.txt", "too little text"), "--data.split", "tail"],
        ("data.packing_length", "256", "more text"),
    ),
    "bytes that the tokenizer cannot keep": (_wordy_tokenizer, ("data.tokenizer", "no UTF-8", "bytes")),
    "tokenizer of another network": (_other_tokenizer, ("tokenizer.json", "tokens", "trained with")),
    "run directory that exists": (lambda p: ["train", "tiny", "--run-dir", str(p.run)], (str(Path("run")), "--resume", "--run-dir")),
    "resume of another recipe": (
        lambda p: [*p.resume(), "--model.width", "32"],
        ("model.width", "32", "16", "recipe"),
    ),
    "resume of no run": (lambda p: ["train", "tiny", "--resume", "--run-dir", str(p.folder)], ("recipe.toml", "--run-dir")),
    "missing weight": (lambda p: p.weights(lambda t: t.pop("norm.weight")), ("model.safetensors", "'norm.weight' is missing", "recipe")),
    "extra weight": (lambda p: p.weights(lambda t: t.update(more=torch.zeros(1))), ("model.safetensors", "'more'", "recipe")),
    "misshapen weight": (
        lambda p: p.weights(lambda t: t.update({"norm.weight": torch.zeros(3)})),
        ("model.safetensors", "'norm.weight' has shape [3], wanted [16]"),
    ),
    "truncated weights": (lambda p: _truncate(p, "model.safetensors"), ("model.safetensors", "truncated or corrupted")),
    "truncated config": (lambda p: _truncate(p, "config.json"), ("config.json", "corrupted")),
    "truncated tokenizer": (lambda p: _truncate(p, "tokenizer.json"), ("tokenizer.json", "give")),
    "corrupted checkpoint": (_flip, ("step-00000004", "corrupted", "older checkpoint")),
    "hostile metadata": (lambda p: p.in_checkpoint(".metadata", pickle.dumps(Hostile())), (".metadata", "refused", "builtins.print")),
    "damaged shard": (_shard, (".arrow", "damaged", "data prepare")),
    "run of a newer format": (_newer, ("config.json", "99", "unveil")),
    "unfinished run": (_unfinished, ("not finished", "--resume")),
    "run that is not there": (lambda p: ["sample", "runs/none"], ("runs/none", "no such run", "give")),
    "folder that is no run": (lambda p: ["evaluate", str(p.text.parent)], ("no run directory", "give")),
    "report of no run": (lambda p: ["report", str(p.folder)], ("recipe.toml", "give")),
    "prompt longer than the context": (
        lambda p: ["sample", str(p.run), "--prompt", "x" * CONTEXT],
        ("prompt", f"{CONTEXT + 1} tokens", f"context is {CONTEXT}", "shorten"),
    ),
    "prompt that leaves too little room": (
        lambda p: ["sample", str(p.ar), "--prompt", "x" * (CONTEXT - 5)],
        ("prompt", "8 new", "--sampler.length 4"),
    ),
    "infill of no tokens": (lambda p: ["sample", str(p.run), "--infill", "a<mask:0>b"], ("infill", "<mask:0>", "at least one")),
    "fewer steps than windows": (
        lambda p: ["sample", str(p.run), "--sampler.steps", "2", "--sampler.window", "3"],
        ("sampler.steps", "got 2 steps for 3 windows", "at least 3 steps or a window of at least 4"),
    ),
    "a block model's cache for another": (
        lambda p: ["sample", str(p.run), "--sampler.cache", "block"],
        ("sampler.cache", "'block'", "every token sees every other", "prefix or dual"),
    ),
    "cache without windows": (lambda p: ["sample", str(p.run), "--sampler.cache", "dual"], ("sampler.cache", "'dual'", "--sampler.window")),
    "commit rule that chooses by chance, and an order": (
        lambda p: ["sample", str(p.run), "--sampler.commit", "first-hitting"],
        ("sampler.order", "'confidence'", "--sampler.order random"),
    ),
    "step of a score model for another": (
        lambda p: ["sample", str(p.run), "--sampler.commit", "tweedie"],
        ("sampler.commit", "'tweedie'", "SEDD", "ancestral"),
    ),
    "sliding context beyond the model's": (
        lambda p: ["sample", str(p.run), "--sampler.context", "999"],
        ("sampler.context", "999", f"context is {CONTEXT}", "take at most"),
    ),
    "prompt to lead away from without guidance": (
        lambda p: ["sample", str(p.run), "--sampler.negative", "x"],
        ("sampler.negative", "'x'", "--sampler.guidance"),
    ),
    "infill without a mask": (lambda p: ["sample", str(p.run), "--infill", "nothing missing"], ("infill", "no gap", "<mask>")),
    "two gaps for an autoregressive model": (
        lambda p: ["sample", str(p.ar), "--infill", "a<mask>b<mask>c"],
        ("infill", "2 gaps", "one"),
    ),
    "prompt and infill": (lambda p: ["sample", str(p.run), "--prompt", "a", "--infill", "b<mask>"], ("infill", "prompt")),
    "no texts": (lambda p: ["sample", str(p.run), "--num", "0"], ("num", "0", "at least one")),
    "unknown sampler setting": (lambda p: ["sample", str(p.run), "--sampler.stepz", "3"], ("sampler.stepz", "did you mean 'steps'")),
    "setting that training fixed": (lambda p: ["sample", str(p.run), "--model.width", "3"], ("--model.width", "sampler")),
    "split that was not held out": (lambda p: ["evaluate", str(p.run), "--split", "test"], ("data.test", "0", "above 0")),
    "images of mixed sizes": (lambda p: _photos(p, ("L", (8, 8)), ("L", (9, 8))), ("b.png", "9 x 8", "8 x 8", "data.size")),
    "images of mixed modes": (lambda p: _photos(p, ("L", (8, 8)), ("RGB", (8, 8))), ("b.png", "RGB", "grey", "data.mode")),
    "images of a strange mode": (lambda p: _photos(p, ("RGBA", (8, 8))), ("a.png", "RGBA", "data.mode")),
    "corrupt image among many": (
        lambda p: _photos(p, ("L", (8, 8)), corrupt=True),
        ("z.png", "cannot be read", "--data.skip-corrupt true"),
    ),
    "scaling without a budget": (lambda p: ["scaling", "plan"], ("--compute", "--minutes", "give")),
    "budget that is no number": (lambda p: ["scaling", "plan", "--compute", "much"], ("--compute", "'much'", "1e14,3e14")),
    "budget that no network meets": (lambda p: ["scaling", "plan", "--compute", "1e6"], ("--compute", "M = ", "more compute")),
    "scaling of images": (lambda p: ["scaling", "plan", "edm-digits", "--compute", "1e15"], ("family", "'gaussian'", "autoregressive")),
    "law that is not there": (
        lambda p: ["scaling", "plan", "--compute", "1e15", "--law", "laws.json"],
        ("--law", "laws.json", "deepseek, chinchilla"),
    ),
    "too few sizes for a parabola": (
        lambda p: ["scaling", "sweep", "tiny", "--compute", "1e12", "--out", "s", "--sizes", "1,2"],
        ("--sizes", "2 different", "wants 3", "spread"),
    ),
    "sweep into another's folder": (
        lambda p: ["scaling", "sweep", "tiny", "--data", str(p.text), "--data.split", "tail", "--compute", "1e12", "--out", str(p.run)],
        ("--out", "no sweep", "another directory"),
    ),
    "fit of no sweep": (lambda p: ["scaling", "fit", "nowhere"], ("nowhere", "no such directory", "scaling sweep")),
    "fit of runs of different data": (lambda p: _mixed(p), ("data.", "fit them apart")),
    "images that are not there": (lambda p: ["train", "edm-mnist"], ("data.path", "empty", "give")),
    "noise predicted where no signal is left": (
        lambda p: ["train", "ddpm-digits", "--objective.path.zero-terminal-snr", "true"],
        ("predicts", "'eps'", "zero terminal SNR", "predict v"),
    ),
    "bound of a path that is no table": (
        lambda p: ["train", "edm-digits", "--objective.weighting", "vlb"],
        ("objective.weighting", "'vlb'", "'edm'", "ddpm"),
    ),
    "network that does not fit its groups": (lambda p: ["train", "edm-digits", "--model.groups", "24"], ("model.groups", "24", "divisor")),
    "network that does not fit its heads": (
        lambda p: ["train", "edm-digits", "--model.head-width", "24"],
        ("model.head_width", "24", "divisor"),
    ),
    "network whose positions have no pairs": (
        lambda p: ["train", "edm-digits", "--model.kind", "dit", "--model.width", "30", "--model.heads", "3"],
        ("model.width", "30", "multiple of 4"),
    ),
    "unknown solver": (lambda p: _draw(p, "--sampler.kind", "hein"), ("sampler.kind", "'hein'", "did you mean 'heun'")),
    "grid that leaves the path": (lambda p: _draw(p, "--sampler.n-max", "1000"), ("sampler.grid", "1000", "0.002 to 80", "stay within")),
    "grid that is not monotone": (
        lambda p: _draw(p, "--sampler.grid", "iddpm", "--sampler.steps", "3000"),
        ("sampler.grid", "not monotone", "strictly decreasing"),
    ),
    "too few steps for a solver": (
        lambda p: _draw(p, "--sampler.kind", "dpmpp-3m", "--sampler.steps", "1"),
        ("sampler.steps", "'dpmpp-3m'", "got 1", "more steps"),
    ),
    "eta outside its range": (
        lambda p: _draw(p, "--sampler.kind", "ddim", "--sampler.eta", "1.5"),
        ("sampler.eta", "1.5", "'ddim'", "from 0 to 1"),
    ),
    "guidance of an unconditional model": (lambda p: _draw(p, "--sampler.guidance", "2"), ("sampler.guidance", "unconditional", "at 1")),
    "class of an unconditional model": (lambda p: _draw(p, "--label", "3"), ("label", "'3'", "--objective.conditional true")),
    "hole outside the image": (
        lambda p: _draw(p, "--inpaint", "0", "--hole", "4,0,9,8", "--sampler.kind", "ancestral"),
        ("--hole", "4,0,9,8", "8 x 8", "within"),
    ),
    "inpainting without noise": (lambda p: _draw(p, "--inpaint", "0", "--hole", "4,0,8,8"), ("'heun' cannot inpaint", "ancestral")),
    "prompt for images": (lambda p: _draw(p, "--prompt", "a cat"), ("--prompt", "images", "leave it out")),
    "class for a text": (lambda p: ["sample", str(p.run), "--label", "3"], ("--label", "text", "leave it out")),
    "talk with images": (lambda p: ["chat", str(p.images)], ("images", "run of text")),
    "evaluations that are no numbers": (lambda p: ["evaluate", str(p.images), "--nfe", "5;10"], ("--nfe", "'5;10'", "commas")),
    "evaluations too few for a solver": (
        lambda p: ["evaluate", str(p.images), "--nfe", "1", "--solvers", "dpmpp-3m"],
        ("sampler.steps", "'dpmpp-3m'", "more steps"),
    ),
    "weights of inception that are none": (
        lambda p: ["evaluate", str(p.images), "--inception", p.write("i.pt", b"x")],
        ("--inception", "i.pt", "TorchScript"),
    ),
    "foreign weight that is missing": (
        lambda p: _theirs(p, lambda f: _their_weights(f, lambda t: t.pop("conv_in.weight"))),
        ("diffusion_pytorch_model.safetensors", "'conv_in.weight' is missing", "config.json"),
    ),
    "foreign weight too many": (
        lambda p: _theirs(p, lambda f: _their_weights(f, lambda t: t.update(more=torch.zeros(1)))),
        ("diffusion_pytorch_model.safetensors", "'more'", "both whole"),
    ),
    "foreign weights of another config": (
        lambda p: _theirs(p, lambda f: _say(f / "unet" / "config.json", block_out_channels=[16]), "doctor"),
        ("diffusion_pytorch_model.safetensors", "shape", "wanted", "config.json beside it"),
    ),
    "foreign weights cut off": (
        lambda p: _theirs(p, lambda f: p.damaged(f / "unet" / "diffusion_pytorch_model.safetensors", lambda data: data[:99])),
        ("diffusion_pytorch_model.safetensors", "truncated or corrupted", "download"),
    ),
    "foreign config cut off": (
        lambda p: _theirs(p, lambda f: p.damaged(f / "unet" / "config.json", lambda data: data[:20])),
        ("config.json", "no JSON", "download"),
    ),
    "foreign weights that are pickled": (
        lambda p: _theirs(p, lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").rename(f / "unet" / "pytorch.bin")),
        ("pytorch.bin", "pickled", "safetensors"),
    ),
    "unknown scheduler": (
        lambda p: _theirs(p, lambda f: _say(f / "scheduler" / "scheduler_config.json", _class_name="DDIMSchedular"), "evaluate"),
        ("scheduler_config.json", "'DDIMSchedular'", "did you mean 'DDIMScheduler'"),
    ),
    "unknown pipeline": (
        lambda p: _theirs(p, lambda f: _say(f / "model_index.json", _class_name="FluxPipeline")),
        ("model_index.json", "'FluxPipeline'", "'DiTPipeline'"),
    ),
    "images of a foreign model that are not there": (
        lambda p: _theirs(p, lambda f: None, "evaluate"),
        ("--data", "without the images", "give such images"),
    ),
    "real images for a text": (lambda p: ["evaluate", str(p.run), "--data", "x"], ("--data", "run of text", "leave it out")),
    "folder to convert to that exists": (lambda p: ["convert", str(p.images), str(p.folder)], ("exists", "another name")),
    "text as diffusers": (
        lambda p: ["convert", str(p.run), str(p.folder / "new"), "--to", "diffusers"],
        ("--to", "'diffusers' is a form for models of images", "hf"),
    ),
    "form that it has": (
        lambda p: ["convert", str(p.images), str(p.folder / "new"), "--to", "unveil"],
        ("--to", "'unveil'", "other form"),
    ),
    "padding beyond the context": (
        lambda p: ["train", "llada-python", "--objective.end-padding", "5000"],
        ("objective.end_padding", "5000", "data.context"),
    ),
    "time for a network that nobody tells": (
        lambda p: ["train", "llada-python", "--model.time-conditioning", "true"],
        ("model.time_conditioning", "'masked'", "set it to false"),
    ),
    "attention window with blocks": (
        lambda p: ["train", "bd3-shakespeare", "--model.window", "8"],
        ("model.window", "blocks", "set it to 0"),
    ),
    "noise that does not grow": (
        lambda p: ["train", "sedd-uniform-shakespeare", "--objective.sigma-min", "30"],
        ("objective.sigma_min", "30", "objective.sigma_max"),
    ),
    "rule for masks without masks": (
        lambda p: ["train", "sedd-uniform-shakespeare", "--data", str(p.text), "--sampler.commit", "quota"],
        ("sampler.commit", "'quota'", "take --sampler.commit tweedie"),
    ),
    "path that has no such setting": (
        lambda p: ["train", "edm-digits", "--objective.path.beta-max", "3"],
        ("objective.path.beta_max", "'edm'", "leave it out"),
    ),
    "autoencoder whose config contradicts its weights": (
        lambda p: _encoded(p, "--data.autoencoder", _autoencoder(p, latent_channels=7)),
        ("vae", "does not load", "of the same model"),
    ),
    "images that an autoencoder does not take": (
        lambda p: [*_photos(p, ("L", (8, 8))), "--data.autoencoder", _autoencoder(p), "--data.hold-out", "0"],
        ("data.mode", "1 channel", "takes 3", '"rgb"'),
    ),
    "autoencoder that is not there": (lambda p: _encoded(p, "--data.autoencoder", "vae"), ("vae", "config.json", "is missing")),
    "encoder without a tokenizer": (
        lambda p: _encoded(p, "--data.captions", ".txt", "--data.text-encoder", _text_encoder(p, False)),
        ("bert", "no tokenizer", "tokenizer.json"),
    ),
    "captions without an encoder": (lambda p: _encoded(p, "--data.captions", ".txt"), ("data.text_encoder", "empty", "give both")),
    "image without a caption": (
        lambda p: _encoded(p, "--data.captions", ".txt", "--data.text-encoder", _text_encoder(p, True), captions="a"),
        ("b.png", "no b.txt", "write one"),
    ),
    "captions of digits": (
        lambda p: ["train", "edm-digits", "--data.captions", ".txt", "--data.text-encoder", "x"],
        ("data.captions", "'digits' has none", "folder"),
    ),
    "augmentation of latents": (
        lambda p: _encoded(p, "--data.autoencoder", "vae", "--data.augment.probability", "0.1"),
        ("data.augment.probability", "0.1", "latents", "set it to 0"),
    ),
    "unknown toy": (lambda p: ["train", "rf-toy", "--data.path", "moon"], ("data.path", "'moon'", "did you mean 'moons'")),
    "reflow without a teacher": (lambda p: ["train", "rf-digits", "--objective.coupling", "reflow"], ("objective.teacher", "empty")),
    "distillation without reflow": (
        lambda p: ["train", "rf-digits", "--objective.distill", "1"],
        ("objective.distill", "'independent'", "take 'reflow'"),
    ),
    "teacher that is not there": (lambda p: _taught(p, p.folder / "nobody"), ("objective.teacher", "nobody", "no finished run")),
    "teacher of text": (lambda p: _taught(p, p.run), ("objective.teacher", "run of text", "run of images")),
    "teacher of another form": (lambda p: _taught(p, p.images), ("objective.teacher", "objective.path", "of the same")),
    "teacher of another shape": (
        lambda p: [*_taught(p, p.images), "--data", str(_photo_folder(p))],
        ("objective.teacher", "shape [1, 8, 8]", "[1, 9, 9]"),
    ),
    "average of a run without averages": (lambda p: ["average", str(p.run), "--width", "0.1"], ("no averages", "ema-widths")),
    "average of no such width": (lambda p: ["average", str(p.run), "--width", "0.4"], ("width", "0.4", "0.2887")),
    "widths of no such averages": (
        lambda p: ["train", "tiny", "--training.ema-widths", "[0.5]"],
        ("training.ema_widths", "0.5"),
    ),
    "no seeds": (lambda p: ["evaluate", str(p.images), "--seeds", "0"], ("--seeds", "0", "1 or more")),
    "more memory than there is": (lambda p: ["plan", "tiny", "--memory", "1M"], ("--memory", "1 MiB", "model.width")),
}


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


@pytest.mark.parametrize("case", CASES)
def test_one_line_names_field_value_and_remedy(case: str, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    args, said = CASES[case]
    line = answered(args(place), capsys)
    for part in said:
        assert part in line, line


def test_a_full_disk_leaves_the_previous_checkpoint(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []

    def write_data(self: FileSystemWriter, *args: Any) -> Any:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(write(self, *args))
        return written[0]

    write = FileSystemWriter.write_data
    with monkeypatch.context() as full:
        full.setattr(FileSystemWriter, "write_data", write_data)
        line = answered(_train(place, *FEW_STEPS), capsys)
    assert "no space left" in line and "--resume" in line
    assert checkpoint.steps(place.folder / "new" / "checkpoints") == [2]
    cli.main(_train(place, *FEW_STEPS, "--resume"))
    assert checkpoint.steps(place.folder / "new" / "checkpoints") == [2, 4]


def test_a_full_disk_elsewhere_is_one_line_too(place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def write_text(self: Path, *args: Any, **kwargs: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", write_text)
    line = answered(["report", str(place.run), "--out", str(place.folder / "page.html")], capsys)
    assert "page" in line and "No space left" in line
    line = answered(_train(place), capsys)
    assert "No space left" in line


def test_bytes_that_are_no_utf8_are_kept(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    data = b"caf\xe9 \xff\xfe " * 300
    cli.main(["data", "prepare", "tiny", "--data", place.write("latin.txt", data), "--data.split", "tail"])
    assert f"{len(data) - int(0.05 * len(data)):,} train" in capsys.readouterr().out
