"""Runs that train an adapter on another run, as a person meets them."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("peft")
pytest.importorskip("torchao")

import unveil
from tests.mistakes import answered
from unveil import bases, cli
from unveil import recipe as recipes
from unveil.adapters import bits, lora
from unveil.convert import convert
from unveil.nn.packed import Packed
from unveil.nn.quantised import dense
from unveil.plan import plan
from unveil.training.interrupt import Interrupted
from unveil.training.loop import Trainer

TINY = {
    "model.width": "16", "model.depth": "2", "model.heads": "2", "model.hidden": "64",
    "data.context": "32", "data.packing_length": "64", "data.tokenizer.kind": "bytes",
    "training.steps": "4", "training.minutes": "0", "training.compile": "off", "training.dtype": "float32",
    "training.evaluate_every": "0", "training.sample_every": "0", "evaluation.tokens": "64", "sampler.length": "8",
}  # fmt: skip
ADAPTER = {"adapter.rank": "2", "optimizer.kind": "adamw", "optimizer.lr": "0.05"}


def tiny(name: str, home: Path, **more: str) -> Any:
    recipe = recipes.with_data(recipes.load(name), str(home / "text"))
    return recipes.with_overrides(recipe, {**TINY, "data.cache": str(home / "cache"), **more}.items())


def adapter(name: str, home: Path, **more: str) -> Any:
    return tiny(name, home, **{"training.initial": str(home / "base"), **ADAPTER, **more})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and an adapter on it that was trained in 4 bits."""
    home = tmp_path_factory.mktemp("adapters")
    (home / "text").mkdir()
    rng = random.Random(0)
    for i in range(40):
        (home / "text" / f"{i}.txt").write_text("".join(rng.choices("abcdefgh \n", k=200)))
    unveil.train(tiny("ar-python", home), home / "base", console=False)
    unveil.train(adapter("ar-python", home, **{"adapter.weights": "nf4"}), home / "tuned", console=False)
    return home


def logits(run: Any) -> torch.Tensor:
    run.model.compute_dtype = torch.float32  # whatever is fast here
    with torch.no_grad():
        return run.model.head(run.model(Packed.of([torch.arange(9), torch.arange(5)])))


@pytest.mark.parametrize(
    ("name", "weights"),
    [("ar-python", "int8"), ("llada-adapted", "full"), ("bd3-shakespeare", "full"), ("sedd-absorb-shakespeare", "nf4")],
)
def test_only_the_adapter_is_trained_and_kept(name: str, weights: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    whole = Trainer.fit

    def watched(self: Trainer, resume: bool = False) -> dict[str, float]:
        before = {n: p.detach().clone() for n, p in self.model.named_parameters() if "lora_" in n}
        found = whole(self, resume)
        seen.append((self, before))
        return found

    monkeypatch.setattr(Trainer, "fit", watched)
    run = unveil.train(adapter(name, home, **{"adapter.weights": weights}), tmp_path / "run", console=False)
    trainer, before = seen[0]
    base = load_file(home / "base" / "final" / "model.safetensors")
    frozen = {n.replace(".base_layer", ""): p for n, p in trainer.model.named_parameters() if "lora_" not in n}
    assert frozen.keys() == base.keys()
    rounded = {n for n, p in frozen.items() if type(p) is not torch.nn.Parameter}
    assert len(rounded) == (0 if weights == "full" else 8)
    assert all(torch.equal(p, base[n]) for n, p in frozen.items() if n not in rounded)
    for n in rounded:
        assert torch.equal(dense(frozen[n], torch.float32), dense(bits.stored(base[n], weights), torch.float32))
    now = dict(trainer.model.named_parameters())
    assert all(not torch.equal(now[n], p) for n, p in before.items())
    held = {n for n in trainer._state()[0] if n.startswith(("model.", "optimizer."))}
    assert all("lora_" in n or n.startswith("model.clip.") for n in held) and len(held) >= 4 * len(before)
    final = {p.name for p in (tmp_path / "run" / "final").iterdir()}
    assert final == {"adapter_config.json", "adapter_model.safetensors", "config.json", "tokenizer.json"}
    assert torch.equal(logits(run), logits(trainer)) and run.generate(num=2)
    assert run.evaluate(tokens=64).content > 0


def test_an_interrupted_one_ends_bit_for_bit_as_if_nothing_had_happened(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = adapter("llada-python", home, **{"adapter.weights": "nf4", "adapter.dropout": "0.2", "training.ema": "0.9"})
    unveil.train(recipe, tmp_path / "straight", console=False)
    step = Trainer._train_step

    def interrupted(self: Trainer) -> None:
        step(self)
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", interrupted)
        with pytest.raises(Interrupted):
            unveil.train(recipe, tmp_path / "stopped", console=False)
    unveil.train(recipe, tmp_path / "stopped", resume=True, console=False)
    first, second = ((tmp_path / name / "final" / lora.WEIGHTS).read_bytes() for name in ("straight", "stopped"))
    assert first == second


def test_it_finds_its_base_beside_it_or_where_it_was_or_is_told(home: Path, tmp_path: Path) -> None:
    text = unveil.load(home / "tuned").generate("ab", seed=3)
    assert text != unveil.load(home / "base").generate("ab", seed=3)
    for name in ("base", "tuned"):
        shutil.copytree(home / name, tmp_path / "both" / name)
    shutil.copytree(home / "tuned", tmp_path / "alone" / "tuned")
    assert bases.base_of(tmp_path / "both" / "tuned" / "final", recipes.load(str(home / "tuned"))) == tmp_path / "both" / "base"
    assert unveil.load(tmp_path / "both" / "tuned").generate("ab", seed=3) == text
    assert unveil.load(tmp_path / "alone" / "tuned").generate("ab", seed=3) == text
    assert unveil.load(tmp_path / "both" / "base", adapter=tmp_path / "alone" / "tuned").generate("ab", seed=3) == text


@pytest.mark.parametrize("form", ["unveil", "hf"])
def test_merged_it_is_a_model_like_any_other(form: Any, home: Path, tmp_path: Path) -> None:
    run = unveil.load(home / "tuned")
    before = logits(run)
    merged = unveil.load(convert(home / "tuned", tmp_path / "merged", form))
    torch.testing.assert_close(logits(merged), before, rtol=0, atol=1e-5)
    assert not merged.recipe.adapter.rank and not merged.recipe.training.initial
    assert str(home) not in (tmp_path / "merged" / "config.json").read_text() or form == "unveil"
    if form == "hf":  # the same weights, wherever they lie: an adapter goes onto an export of its base
        convert(home / "base", tmp_path / "exported")
        assert torch.equal(logits(unveil.load(tmp_path / "exported", adapter=home / "tuned")), before)
        assert str(home) not in (tmp_path / "merged" / "README.md").read_text()


def test_full_weights_under_an_adapter_that_was_trained_on_few_bits(home: Path) -> None:
    few, full = logits(unveil.load(home / "tuned")), logits(unveil.load(home / "tuned", weights="full"))
    error = (few - full).norm() / full.norm()
    assert 0 < error < 0.3


def test_an_adapter_that_peft_alone_wrote(home: Path, tmp_path: Path) -> None:
    full = logits(unveil.load(home / "tuned", weights="full"))
    for name in (lora.CONFIG, lora.WEIGHTS):
        shutil.copy(home / "tuned" / "final" / name, tmp_path)
    assert torch.equal(logits(unveil.load(home / "base", adapter=tmp_path)), full)


def test_the_doctor_names_the_bits(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["doctor", str(home / "tuned")])
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("] nf4") for line in lines) == 8 and any("all finite" in line for line in lines)


def test_averages_of_its_weights_are_adapters(home: Path, tmp_path: Path) -> None:
    recipe = adapter("ar-python", home, **{"training.ema_widths": "[0.05, 0.2]", "training.ema_every": "1"})
    run = unveil.train(recipe, tmp_path / "run", console=False)
    cli.main(["average", str(tmp_path / "run"), "--width", "0.1"])
    made = unveil.load(tmp_path / "run" / "average-0.1")
    assert not (made.folder / "model.safetensors").exists()
    assert 0 < (logits(made) - logits(run)).abs().max() < 1


def test_a_plan_counts_what_is_trained(home: Path) -> None:
    whole, small = plan(tiny("llada-python", home)), plan(adapter("llada-python", home, **{"adapter.weights": "int8"}))
    trained = sum(t.numel() for t in load_file(home / "tuned" / "final" / lora.WEIGHTS).values())
    assert small.trained == trained and whole.trained == whole.parameters == small.parameters - trained
    assert small.memory["gradients"] == 4 * trained
    matrices = 2 * 16 * (4 * 16 + 3 * 64)
    assert small.memory["weights"] == 4 * (small.parameters - matrices) + matrices


@pytest.mark.slow  # a process of its own, that imports everything
def test_the_terminal_hears_nothing_of_the_libraries(home: Path) -> None:
    command = [sys.executable, "-m", "unveil.cli", "sample", str(home / "tuned"), "--prompt", "ab"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert done.stderr == "" and done.stdout.startswith("ab") and done.stdout.count("\n") <= 9


def trains(home: Path, *more: str) -> list[str]:
    settings = {**TINY, "data.cache": str(home / "cache"), "training.initial": str(home / "base"), **ADAPTER}
    given = [part for key, value in settings.items() for part in (f"--{key}", value)]
    return ["train", "ar-python", "--data", str(home / "text"), "--run-dir", str(home / "new"), *given, *more]


def rewritten(p: Path) -> list[str]:
    """The base was trained on."""
    path = p / "base" / "final" / "model.safetensors"
    save_file({name: tensor + 1e-3 for name, tensor in load_file(path).items()}, path)
    return ["sample", str(p / "tuned")]


def other_shape(p: Path) -> list[str]:
    """Of ``peft`` alone, on a network that is wider."""
    unveil.train(tiny("ar-python", p, **{"model.width": "32"}), p / "wide", console=False)
    (p / "tuned" / "final" / "config.json").unlink()
    return ["sample", str(p / "wide"), "--adapter", str(p / "tuned" / "final")]


def gone(p: Path, *more: str) -> list[str]:
    shutil.rmtree(p / "base")
    path = p / "tuned" / "final" / "config.json"
    recorded = recipes.load(str(p / "tuned")).training.initial
    path.write_text(path.read_text().replace(recorded, str(p / "base")))
    return ["sample", str(p / "tuned"), *more]


def cut(p: Path) -> list[str]:
    path = p / "tuned" / "final" / lora.WEIGHTS
    path.write_bytes(path.read_bytes()[:-50])
    return ["sample", str(p / "tuned")]


def without(p: Path, library: str, patch: pytest.MonkeyPatch, args: list[str]) -> list[str]:
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        patch.setitem(sys.modules, name, None)
    lora._layer.cache_clear()
    return args


MISTAKES: dict[str, tuple[Callable[[Path, pytest.MonkeyPatch], list[str]], tuple[str, ...]]] = {
    "a base that has other weights": (lambda p, m: rewritten(p), ("tuned/final", "belongs on weights", "trained on")),
    "a base that has gone": (lambda p, m: gone(p), ("tuned/final", "base' is gone", "--adapter")),
    "resumed on a base that has gone": (lambda p, m: ["train", *gone(p)[1:], "--training.initial", "nowhere", "--resume"], ("nowhere",)),
    "an adapter of other shapes": (lambda p, m: other_shape(p), ("adapter_model.safetensors", "has shape [2, 16], wanted [2, 32]")),
    "an adapter that is none": (lambda p, m: ["sample", str(p / "base"), "--adapter", str(p / "base")], ("--adapter", "holds no adapter")),
    "an adapter on an adapter": (lambda p, m: ["sample", str(p / "tuned"), "--adapter", str(p / "tuned")], ("tuned", "merge it first")),
    "an adapter cut short": (lambda p, m: cut(p), ("adapter_model.safetensors", "truncated")),
    "rank 0": (lambda p, m: trains(p, "--adapter.rank", "0", "--adapter.alpha", "8"), ("adapter.rank: is 0", "adapter.alpha = 8")),
    "a rank below 0": (lambda p, m: trains(p, "--adapter.rank", "-1"), ("adapter.rank: got -1",)),
    "few bits without an adapter": (
        lambda p, m: trains(p, "--adapter.rank", "0", "--adapter.weights", "nf4"),
        ("adapter.weights: 'nf4'", "all weights", "adapter.rank"),
    ),
    "an adapter without a base": (lambda p, m: trains(p, "--training.initial", ""), ("training.initial: is empty", "rank 2")),
    "an adapter as a base": (lambda p, m: trains(p, "--training.initial", str(p / "tuned")), ("tuned", "merge it first")),
    "a matrix that is not there": (lambda p, m: trains(p, "--adapter.targets", "gate"), ("adapter.targets: 'gate'", "gate_up")),
    "muon": (lambda p, m: trains(p, "--optimizer.kind", "muon"), ("optimizer.kind: 'muon'", "adamw")),
    "few bits in float64": (
        lambda p, m: trains(p, "--training.dtype", "float64", "--adapter.weights", "int8"),
        ("training.dtype: 'float64'", "int8"),
    ),
    "other weights": (lambda p, m: ["sample", str(p / "base"), "--weights", "int3"], ("--weights", "int3")),
    "no peft to train with": (lambda p, m: without(p, "peft", m, trains(p)), ("adapter.rank: wants peft", "unveil[adapters]")),
    "no peft": (
        lambda p, m: without(p, "peft", m, ["sample", str(p / "tuned"), "--weights", "full"]),
        ("peft", "not installed", "unveil[adapters]"),
    ),
    "no torchao": (
        lambda p, m: without(p, "torchao", m, ["sample", str(p / "base"), "--weights", "int8"]),
        ("--weights: wants torchao", "unveil[adapters]"),
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(
    case: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("base", "tuned", "text"):
        shutil.copytree(home / name, tmp_path / name)
    make, said = MISTAKES[case]
    line = answered(make(tmp_path, monkeypatch), capsys)
    lora._layer.cache_clear()
    for part in said:
        assert part in line, line
    assert not (tmp_path / "new").exists()
