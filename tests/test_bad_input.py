"""A person's mistakes, one table, each through the command line: exit status 2 and one line that names field, value and remedy."""

from __future__ import annotations

import errno
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from tests.mistakes import (
    CONTEXT,
    FEW_STEPS,
    Args,
    Hostile,
    Place,
    answered,
    autoencoder,
    begun,
    drawn,
    encoded,
    flipped,
    mixed_up,
    newer,
    other_tokenizer,
    paired,
    photo_folder,
    photos,
    said,
    shard,
    spoken,
    taught,
    text_encoder,
    their_weights,
    theirs,
    three_runs,
    trained_again,
    truncated,
    unfinished,
    wordy_tokenizer,
)
from unveil import cli
from unveil.training import checkpoint

PAIR = '{"prompt": "Hi", "chosen": "Yes", "rejected": "No"}'
SCORE = ("--objective.kind", "score")
GOOD = '{"prompt": "Hi", "response": "Ho"}'


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad-input")
    three_runs(folder)
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNVEIL_CACHE", str(tmp_path / "cache"))
    for name in ("run", "ar", "images"):
        shutil.copytree(trained / name, tmp_path / name)
    return Place(tmp_path, trained / "text.txt", tmp_path / "run", tmp_path / "ar", tmp_path / "images")


CASES: dict[str, tuple[Args, tuple[str, ...]]] = {
    "unknown setting": (lambda p: trained_again(p, "--training.stepz", "3"), ("training.stepz", "did you mean 'steps'")),
    "unknown section": (lambda p: trained_again(p, "--trainin.steps", "3"), ("trainin", "did you mean 'training'")),
    "unknown setting in a file": (
        lambda p: ["train", p.write("my.toml", 'base = "tiny"\n[model]\nwith = 3\n')],
        ("model.with", "did you mean 'width'"),
    ),
    "unknown table in a file": (
        lambda p: ["train", p.write("my.toml", 'base = "tiny"\n[modle]\nwidth = 3\n')],
        ("modle", "did you mean 'model'"),
    ),
    "value of the wrong type": (lambda p: trained_again(p, "--training.steps", "many"), ("training.steps", "'many'", "whole number")),
    "value of the wrong type in a file": (
        lambda p: ["train", p.write("my.toml", 'base = "tiny"\n[optimizer]\nlr = "fast"\n')],
        ("optimizer.lr", "'fast'", "a number"),
    ),
    "value outside its range": (lambda p: trained_again(p, "--data.validation", "1.5"), ("data.validation", "1.5", "at most 1")),
    "unknown choice": (lambda p: trained_again(p, "--optimizer.kind", "adam"), ("optimizer.kind", "'adam'", "adamw")),
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
    "bytes that the tokenizer cannot keep": (wordy_tokenizer, ("data.tokenizer", "no UTF-8", "bytes")),
    "tokenizer of another network": (other_tokenizer, ("tokenizer.json", "tokens", "trained with")),
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
    "truncated weights": (lambda p: truncated(p, "model.safetensors"), ("model.safetensors", "truncated or corrupted")),
    "truncated config": (lambda p: truncated(p, "config.json"), ("config.json", "corrupted")),
    "truncated tokenizer": (lambda p: truncated(p, "tokenizer.json"), ("tokenizer.json", "give")),
    "corrupted checkpoint": (flipped, ("step-00000004", "corrupted", "older checkpoint")),
    "hostile metadata": (lambda p: p.in_checkpoint(".metadata", pickle.dumps(Hostile())), (".metadata", "refused", "builtins.print")),
    "damaged shard": (shard, (".arrow", "damaged", "data prepare")),
    "run of a newer format": (newer, ("config.json", "99", "unveil")),
    "unfinished run": (unfinished, ("not finished", "--resume")),
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
    "drafts of a run that cannot draft": (
        lambda p: ["sample", str(p.ar), "--sampler.speculate", "2"],
        ("sampler.speculate", "2 with model.mtp.depths = 0", "--model.mtp.depths 1"),
    ),
    "more drafts than depths": (
        lambda p: ["train", "mtp-python", "--sampler.speculate", "3"],
        ("sampler.speculate", "3 is above model.mtp.depths = 1", "at most 1"),
    ),
    "predictions beyond the context": (
        lambda p: ["train", "mtp-python", "--model.mtp.depths", "255"],
        ("model.mtp.depths", "255", "data.context = 256", "at most 254"),
    ),
    "a negative weight of predictions ahead": (
        lambda p: ["train", "mtp-python", "--objective.mtp-weight", "-0.3"],
        ("objective.mtp_weight", "-0.3", "at least 0"),
    ),
    "predictions ahead in any order": (
        lambda p: ["train", "llada-python", "--model.mtp.depths", "1"],
        ("model.mtp.depths", "1 in a model that uncovers tokens in any order", "set it to 0"),
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
    "images of mixed sizes": (lambda p: photos(p, ("L", (8, 8)), ("L", (9, 8))), ("b.png", "9 x 8", "8 x 8", "data.size")),
    "images of mixed modes": (lambda p: photos(p, ("L", (8, 8)), ("RGB", (8, 8))), ("b.png", "RGB", "grey", "data.mode")),
    "images of a strange mode": (lambda p: photos(p, ("RGBA", (8, 8))), ("a.png", "RGBA", "data.mode")),
    "corrupt image among many": (
        lambda p: photos(p, ("L", (8, 8)), corrupt=True),
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
    "fit of runs of different data": (lambda p: mixed_up(p), ("data.", "fit them apart")),
    "images that are not there": (lambda p: ["train", "edm-mnist"], ("data.path", "empty", "give")),
    "noise predicted where no signal is left": (
        lambda p: ["train", "ddpm-digits", "--objective.path.zero-terminal-snr", "true"],
        ("predicts", "'eps'", "zero terminal SNR", "predict v"),
    ),
    "bound of a path that is no table": (
        lambda p: ["train", "edm-digits", "--objective.weighting", "vlb"],
        ("objective.weighting", "'vlb'", "'edm'", "ddpm"),
    ),
    "more of a head turned than there is": (
        lambda p: trained_again(p, "--model.rotary-width", "512"),
        ("model.rotary_width", "512", "choose an even one"),
    ),
    "an odd part of a head turned": (lambda p: trained_again(p, "--model.rotary-width", "7"), ("model.rotary_width", "7 is odd", "choose")),
    "network that does not fit its groups": (lambda p: ["train", "edm-digits", "--model.groups", "24"], ("model.groups", "24", "divisor")),
    "network that does not fit its heads": (
        lambda p: ["train", "edm-digits", "--model.head-width", "24"],
        ("model.head_width", "24", "divisor"),
    ),
    "network whose positions have no pairs": (
        lambda p: ["train", "edm-digits", "--model.kind", "dit", "--model.width", "30", "--model.heads", "3"],
        ("model.width", "30", "multiple of 4"),
    ),
    "few bits for images": (lambda p: drawn(p, "--weights", "int8"), ("--weights", "for text", "leave it out")),
    "unknown solver": (lambda p: drawn(p, "--sampler.kind", "hein"), ("sampler.kind", "'hein'", "did you mean 'heun'")),
    "grid that leaves the path": (lambda p: drawn(p, "--sampler.n-max", "1000"), ("sampler.grid", "1000", "0.002 to 80", "stay within")),
    "grid that is not monotone": (
        lambda p: drawn(p, "--sampler.grid", "iddpm", "--sampler.steps", "3000"),
        ("sampler.grid", "not monotone", "strictly decreasing"),
    ),
    "too few steps for a solver": (
        lambda p: drawn(p, "--sampler.kind", "dpmpp-3m", "--sampler.steps", "1"),
        ("sampler.steps", "'dpmpp-3m'", "got 1", "more steps"),
    ),
    "eta outside its range": (
        lambda p: drawn(p, "--sampler.kind", "ddim", "--sampler.eta", "1.5"),
        ("sampler.eta", "1.5", "'ddim'", "from 0 to 1"),
    ),
    "guidance of an unconditional model": (lambda p: drawn(p, "--sampler.guidance", "2"), ("sampler.guidance", "unconditional", "at 1")),
    "class of an unconditional model": (lambda p: drawn(p, "--label", "3"), ("label", "'3'", "--objective.conditional true")),
    "hole outside the image": (
        lambda p: drawn(p, "--inpaint", "0", "--hole", "4,0,9,8", "--sampler.kind", "ancestral"),
        ("--hole", "4,0,9,8", "8 x 8", "within"),
    ),
    "inpainting without noise": (lambda p: drawn(p, "--inpaint", "0", "--hole", "4,0,8,8"), ("'heun' cannot inpaint", "ancestral")),
    "prompt for images": (lambda p: drawn(p, "--prompt", "a cat"), ("--prompt", "images", "leave it out")),
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
        lambda p: theirs(p, lambda f: their_weights(f, lambda t: t.pop("conv_in.weight"))),
        ("diffusion_pytorch_model.safetensors", "'conv_in.weight' is missing", "config.json"),
    ),
    "foreign weight too many": (
        lambda p: theirs(p, lambda f: their_weights(f, lambda t: t.update(more=torch.zeros(1)))),
        ("diffusion_pytorch_model.safetensors", "'more'", "both whole"),
    ),
    "foreign weights of another config": (
        lambda p: theirs(p, lambda f: said(f / "unet" / "config.json", block_out_channels=[16]), "doctor"),
        ("diffusion_pytorch_model.safetensors", "shape", "wanted", "config.json beside it"),
    ),
    "foreign weights cut off": (
        lambda p: theirs(p, lambda f: p.damaged(f / "unet" / "diffusion_pytorch_model.safetensors", lambda data: data[:99])),
        ("diffusion_pytorch_model.safetensors", "truncated or corrupted", "download"),
    ),
    "foreign config cut off": (
        lambda p: theirs(p, lambda f: p.damaged(f / "unet" / "config.json", lambda data: data[:20])),
        ("config.json", "no JSON", "download"),
    ),
    "foreign weights that are pickled": (
        lambda p: theirs(p, lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").rename(f / "unet" / "pytorch.bin")),
        ("pytorch.bin", "pickled", "safetensors"),
    ),
    "unknown scheduler": (
        lambda p: theirs(p, lambda f: said(f / "scheduler" / "scheduler_config.json", _class_name="DDIMSchedular"), "evaluate"),
        ("scheduler_config.json", "'DDIMSchedular'", "did you mean 'DDIMScheduler'"),
    ),
    "unknown pipeline": (
        lambda p: theirs(p, lambda f: said(f / "model_index.json", _class_name="FluxPipeline")),
        ("model_index.json", "'FluxPipeline'", "'DiTPipeline'"),
    ),
    "images of a foreign model that are not there": (
        lambda p: theirs(p, lambda f: None, "evaluate"),
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
        lambda p: ["train", "bd3-shakespeare", "--model.time-conditioning", "true"],
        ("model.time_conditioning", "'block'", "set it to false"),
    ),
    "cache of a network that is told the noise": (
        lambda p: [
            "train",
            "tiny",
            "--data",
            str(p.text),
            "--model.time-conditioning",
            "true",
            "--data.split=tail",
            "--sampler.cache=dual",
            "--sampler.window=8",
        ],
        ("sampler.cache", "'dual'", "told the noise level", "--sampler.cache none"),
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
        lambda p: encoded(p, "--data.autoencoder", autoencoder(p, latent_channels=7)),
        ("vae", "does not load", "of the same model"),
    ),
    "images that an autoencoder does not take": (
        lambda p: [*photos(p, ("L", (8, 8))), "--data.autoencoder", autoencoder(p), "--data.hold-out", "0"],
        ("data.mode", "1 channel", "takes 3", '"rgb"'),
    ),
    "autoencoder that is not there": (lambda p: encoded(p, "--data.autoencoder", "vae"), ("vae", "config.json", "is missing")),
    "encoder without a tokenizer": (
        lambda p: encoded(p, "--data.captions", ".txt", "--data.text-encoder", text_encoder(p, False)),
        ("bert", "no tokenizer", "tokenizer.json"),
    ),
    "captions without an encoder": (lambda p: encoded(p, "--data.captions", ".txt"), ("data.text_encoder", "empty", "give both")),
    "image without a caption": (
        lambda p: encoded(p, "--data.captions", ".txt", "--data.text-encoder", text_encoder(p, True), captions="a"),
        ("b.png", "no b.txt", "write one"),
    ),
    "captions of digits": (
        lambda p: ["train", "edm-digits", "--data.captions", ".txt", "--data.text-encoder", "x"],
        ("data.captions", "'digits' has none", "folder"),
    ),
    "augmentation of latents": (
        lambda p: encoded(p, "--data.autoencoder", "vae", "--data.augment.probability", "0.1"),
        ("data.augment.probability", "0.1", "latents", "set it to 0"),
    ),
    "unknown toy": (lambda p: ["train", "rf-toy", "--data.path", "moon"], ("data.path", "'moon'", "did you mean 'moons'")),
    "reflow without a teacher": (lambda p: ["train", "rf-digits", "--objective.coupling", "reflow"], ("objective.teacher", "empty")),
    "distillation without reflow": (
        lambda p: ["train", "rf-digits", "--objective.distill", "1"],
        ("objective.distill", "'independent'", "take 'reflow'"),
    ),
    "teacher that is not there": (lambda p: taught(p, p.folder / "nobody"), ("objective.teacher", "nobody", "no finished run")),
    "teacher of text": (lambda p: taught(p, p.run), ("objective.teacher", "run of text", "run of images")),
    "teacher of another form": (lambda p: taught(p, p.images), ("objective.teacher", "objective.path", "of the same")),
    "teacher of another shape": (
        lambda p: [*taught(p, p.images), "--data", str(photo_folder(p))],
        ("objective.teacher", "shape [1, 8, 8]", "[1, 9, 9]"),
    ),
    "average of a run without averages": (lambda p: ["average", str(p.run), "--width", "0.1"], ("no averages", "ema-widths")),
    "average of no such width": (lambda p: ["average", str(p.run), "--width", "0.4"], ("width", "0.4", "0.2887")),
    "attention annealed in blocks": (
        lambda p: trained_again(p, "--objective.kind", "block", "--objective.anneal", "0.5"),
        ("objective.anneal", "0.5 with blocks", "set it to 0"),
    ),
    "attention annealed within a window": (
        lambda p: trained_again(p, "--model.window", "8", "--objective.anneal", "0.5"),
        ("model.window", "8 with objective.anneal = 0.5", "set it to 0"),
    ),
    "share of the steps above all of them": (
        lambda p: trained_again(p, "--objective.anneal", "1.5"),
        ("objective.anneal", "1.5", "at most 1"),
    ),
    "blocks that do not divide the next": (
        lambda p: trained_again(p, "--objective.kind", "block", "--objective.block", "8", "--objective.growth", "[1, 3]"),
        ("objective.growth", "3 is followed by 8", "divide the next"),
    ),
    "blocks that do not grow": (
        lambda p: trained_again(p, "--objective.kind", "block", "--objective.block", "4", "--objective.growth", "[2, 4]"),
        ("objective.growth", "4 is followed by 4", "divide the next"),
    ),
    "growth in no steps": (
        lambda p: trained_again(p, "--objective.kind", "block", "--objective.growth", "[1]", "--objective.growth-share", "0"),
        ("objective.growth_share", "0.0", "above 0"),
    ),
    "growth of no blocks": (
        lambda p: trained_again(p, "--objective.kind", "masked", "--objective.growth", "[1]"),
        ("objective.growth", "no such setting"),
    ),
    "growth while clips are searched": (
        lambda p: trained_again(p, "--objective.kind", "block", "--objective.growth", "[1]", "--objective.clip", "true"),
        ("objective.clip", "objective.growth", "set it to false"),
    ),
    "growth that begins below what the weights saw": (
        lambda p: trained_again(
            p, "--training.initial", str(p.run), "--objective.kind", "block", "--objective.block", "64", "--objective.growth", "[1, 8]"
        ),
        ("objective.growth", "blocks of 1", f"see {CONTEXT} tokens at once", "leave it out"),
    ),
    "annealing that begins with both sides seen": (
        lambda p: trained_again(p, "--training.initial", str(p.run), "--objective.anneal", "0.5"),
        ("objective.anneal", "begins causal", "set it to 0"),
    ),
    "initial weights of no run": (lambda p: ["train", "tiny", "--training.initial", "no"], ("training.initial", "no finished run", "end")),
    "fp8 without matrices for it": (
        lambda p: ["train", "edm-digits", "--training.fp8", "true"],
        ("training.fp8", "another network", "leave it out"),
    ),
    "chat row without roles": (
        lambda p: spoken(p, GOOD, '{"messages": [{"content": "Hi"}]}'),
        ("chats.jsonl:2: messages[0]", "no role", "give each"),
    ),
    "chat row without an answer": (
        lambda p: spoken(p, '{"messages": [{"role": "user", "content": "Hi"}]}'),
        ("chats.jsonl:1: messages", "no assistant turn", "add the answer"),
    ),
    "chat row with an empty answer": (
        lambda p: spoken(p, GOOD, GOOD, '{"prompt": "Hi", "response": " "}'),
        ("chats.jsonl:3: messages[1].content", "empty", "write the answer"),
    ),
    "chat row that is none": (lambda p: spoken(p, '{"text": "Hi"}'), ("chats.jsonl:1: messages", "missing", "text", "write")),
    "chat row of a strange role": (
        lambda p: spoken(p, GOOD, '{"messages": [{"role": "usr", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}'),
        ("chats.jsonl:2: messages[0].role", "'usr'", "did you mean 'user'"),
    ),
    "chats in an empty file": (lambda p: spoken(p), ("data.sources", "chats.jsonl", "empty", "give")),
    "chats that are longer than the context": (
        lambda p: spoken(p, GOOD, GOOD, more=("--data.context", "8", "--objective.end-padding", "0", "--data.validation", "0")),
        ("data.context", "8 tokens hold none", "raise it"),
    ),
    "chats that are no JSONL": (lambda p: ["train", "ar-sft", "--data", str(p.text)], ("--data", "no JSONL", "NAME.jsonl")),
    "chats cut at random": (
        lambda p: spoken(p, GOOD, more=("--objective.random-length", "0.1")),
        ("objective.random_length", "0.1", "set it to 0"),
    ),
    "chats rearranged": (lambda p: ["train", "ar-sft", "--objective.fim-rate", "0.1"], ("objective.fim_rate", "0.1", "set it to 0")),
    "tails of chats": (lambda p: ["train", "ar-sft", "--data.split", "tail"], ("data.split", "'tail'", "take 'document'")),
    "chat template that is not there": (lambda p: ["train", "ar-sft", "--data.template", "no"], ("data.template", "no folder", "name")),
    "initial folder of another block size": (
        lambda p: begun(p, "sdar", "--objective.kind", "block", "--objective.block", "8", "--objective.random-length", "0"),
        ("objective.block", "is 8", "blocks of 4", "take --objective.block 4"),
    ),
    "initial folder of blocks for whole texts": (
        lambda p: begun(p, "sdar"),
        ("objective.kind", "'masked'", "blocks of 4", "take --objective.kind block --objective.block 4"),
    ),
    "initial folder of masks for a chain without": (
        lambda p: begun(p, "llada", "--objective.kind", "score", "--objective.chain", "uniform", "--objective.random-length", "0"),
        ("objective.chain", "'uniform'", "take 'absorb'"),
    ),
    "initial folder that sees ahead": (lambda p: begun(p, "llada", recipe="ar-sft"), ("family", "'autoregressive'", "llada-sft")),
    "initial folder without a mask": (lambda p: begun(p, "llama"), ("training.initial", "no mask token", "masked model")),
    "preference row without the preferred answer": (
        lambda p: paired(p, PAIR, '{"prompt": "Hi", "rejected": "No"}'),
        ("pairs.jsonl:2: chosen", "is missing", "write both chosen and rejected"),
    ),
    "preference row with an empty answer": (
        lambda p: paired(p, '{"prompt": "Hi", "chosen": "Yes", "rejected": ""}'),
        ("pairs.jsonl:1: rejected", "''", "write both"),
    ),
    "preference row that prefers nothing": (
        lambda p: paired(p, PAIR, PAIR, '{"prompt": "Hi", "chosen": "Yes", "rejected": "Yes "}'),
        ("pairs.jsonl:3: rejected", "same as chosen", "drop the row"),
    ),
    "preference row without a prompt": (
        lambda p: paired(p, '{"chosen": "Yes", "rejected": "No"}'),
        ("pairs.jsonl:1: messages", "missing", '"rejected": "..."'),
    ),
    "preferences of no model": (lambda p: ["train", "ar-dpo"], ("training.initial", "empty", "name a run")),
    "preferences without a strength": (
        lambda p: ["train", "ar-dpo", "--objective.preference.beta", "0"],
        ("objective.preference.beta", "is 0", "0.1"),
    ),
    "preferences in other data": (
        lambda p: ["train", "ar-sft", "--objective.preference.beta", "1"],
        ("data.sources.kind", "'chat'", "take 'preference'"),
    ),
    "preferences of a score": (
        lambda p: ["train", "llada-vrpo", *SCORE, "--objective.preference.beta", "1", "--objective.random-length", "0"],
        ("objective.kind", "'score'", "'masked' or 'block'"),
    ),
    "pairs that no pack holds": (
        lambda p: ["train", "llada-vrpo", "--objective.preference.draws", "16"],
        ("data.packing_length", "2048 holds no pair", "raise it to 4096"),
    ),
    "widths of no such averages": (lambda p: ["train", "tiny", "--training.ema-widths", "[0.5]"], ("training.ema_widths", "0.5")),
    "no seeds": (lambda p: ["evaluate", str(p.images), "--seeds", "0"], ("--seeds", "0", "1 or more")),
    "more memory than there is": (lambda p: ["plan", "tiny", "--memory", "1M"], ("--memory", "1 MiB", "model.width")),
}


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
        line = answered(trained_again(place, *FEW_STEPS), capsys)
    assert "no space left" in line and "--resume" in line
    assert checkpoint.steps(place.folder / "new" / "checkpoints") == [2]
    cli.main(trained_again(place, *FEW_STEPS, "--resume"))
    assert checkpoint.steps(place.folder / "new" / "checkpoints") == [2, 4]


def test_a_full_disk_elsewhere_is_one_line_too(place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def write_text(self: Path, *args: Any, **kwargs: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", write_text)
    line = answered(["report", str(place.run), "--out", str(place.folder / "page.html")], capsys)
    assert "page" in line and "No space left" in line
    line = answered(trained_again(place), capsys)
    assert "No space left" in line


def test_bytes_that_are_no_utf8_are_kept(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    data = b"caf\xe9 \xff\xfe " * 300
    cli.main(["data", "prepare", "tiny", "--data", place.write("latin.txt", data), "--data.split", "tail"])
    assert f"{len(data) - int(0.05 * len(data)):,} train" in capsys.readouterr().out
