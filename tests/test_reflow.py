"""Reflow, distillation, straightness and averages chosen afterwards, as a user reaches them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import unveil
from unveil import cli, reflow
from unveil import recipe as recipes
from unveil.data.coupled import CoupledLoader
from unveil.image_training import ImageTraining
from unveil.report.evidence import Evidence
from unveil.training import checkpoint
from unveil.training.ema_profile import gamma_of
from unveil.training.loop import Trainer

SMALL = {
    "model.channels": "[8]",
    "model.attention": '["none"]',
    "model.layers": "1",
    "model.groups": "4",
    "model.head_width": "8",
    "data.batch": "8",
    "data.limit": "40",
    "training.steps": "6",
    "training.log_every": "2",
    "training.save_every": "2",
    "training.evaluate_every": "0",
    "training.sample_every": "0",
    "training.compile": "off",
    "training.dtype": "float32",
    "training.ema_widths": "[0.1, 0.2]",
    "training.ema_every": "1",
    "evaluation.tokens": "4",
    "objective.conditional": "true",
}
PAIRS = {"objective.pairs": "20", "objective.pair_steps": "2"}


def small(name: str, cache: Path, **more: str) -> Any:
    return recipes.with_overrides(recipes.load(name), [*SMALL.items(), ("data.cache", str(cache)), *more.items()])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("reflow")
    unveil.train(small("rf-digits", home / "cache"), home / "rf-digits", console=False)
    return home


def student(home: Path, name: str = "rf-digits-reflow", **more: str) -> Any:
    return small(name, home / "cache", **PAIRS, **{"objective.teacher": str(home / "rf-digits"), **more})


def test_a_reflowed_run_resumes_to_the_same_weights_and_teaches_the_next(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflow, "PART", 8)
    straight = unveil.train(student(home), home / "straight", console=False)
    parts = sorted((home / "straight" / "pairs").iterdir())
    assert len(parts) == 3
    noise = torch.cat([load_file(part)["noise"] for part in parts])
    assert len(noise) == 20 and len(noise.unique(dim=0)) == 20, "every pair begins in noise of its own"

    whole = Trainer._after_step

    def stop(self: Trainer, *args: Any) -> None:
        whole(self, *args)
        if self.step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_after_step", stop)
    with pytest.raises(KeyboardInterrupt):
        unveil.train(student(home), home / "broken", console=False)
    monkeypatch.setattr(Trainer, "_after_step", whole)
    again = home / "broken" / "pairs" / parts[1].name
    again.unlink()  # an interrupted generation goes on
    resumed = unveil.train(student(home), home / "broken", resume=True, console=False)
    assert again.read_bytes() == parts[1].read_bytes()
    for a, b in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for path in (home / "straight" / "averages").iterdir():
        assert (home / "broken" / "averages" / path.name).read_bytes() == path.read_bytes()

    next_one = student(home, "rf-digits-distill", **{"objective.teacher": str(home / "straight"), "training.steps": "1"})
    distilled = unveil.train(next_one, home / "distilled", console=False)
    assert distilled.recipe.objective.distill == 1 and torch.isfinite(distilled.generate(2)).all()  # type: ignore[attr-defined]


def test_pairs_are_the_same_at_any_number_of_ranks_and_begin_at_the_teacher(home: Path, tmp_path: Path) -> None:
    work = ImageTraining(student(home), tmp_path, False)
    model = work.build()
    taught = load_file(home / "rf-digits" / "final" / "model.safetensors")
    assert all(torch.equal(taught[name], p) for name, p in model.named_parameters())
    alone, first, second = work.loader(0, 1), work.loader(0, 2), work.loader(1, 2)
    assert isinstance(alone, CoupledLoader)
    for loader in (first, second, first):
        (batch, noise), (theirs, drawn) = next(alone), next(loader)
        assert torch.equal(batch.x_NCHW, theirs.x_NCHW) and torch.equal(batch.labels_N, theirs.labels_N)
        assert all(torch.equal(noise[name], drawn[name]) for name in noise)
        assert bool(noise["told"].all())
        told = [None if label == 10 else int(label) for label in batch.labels_N]
        teacher = reflow.Teacher.read(student(home), work.prepared)
        made = teacher.family.transport(teacher.model, noise["eps"], 2, told).data
        torch.testing.assert_close(made.cpu(), batch.x_NCHW, rtol=1e-4, atol=1e-5)


def test_as_many_pairs_as_the_recipe_does_not_tell_their_class_are_made_without_one(home: Path, tmp_path: Path) -> None:
    work = ImageTraining(student(home), tmp_path, False)
    base = student(home)
    recipe = replace(base, objective=replace(base.objective, pairs=2000, class_dropout=0.25))
    labels = reflow.pair_labels(recipe, work.prepared)
    assert (labels == 10).mean() == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 2000) ** 0.5)
    assert set(labels.tolist()) <= {*work.prepared.store.labels[work.prepared.parts["train"]].tolist(), 10}
    assert len(reflow.pair_labels(student(home, **{"objective.conditional": "false"}), work.prepared)) == 0


def test_an_average_of_another_width_is_near_that_of_all_weights(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    whole = Trainer._train_step

    def watched(self: Trainer) -> None:
        whole(self)
        seen.append({name: p.detach().double().clone() for name, p in self.model.named_parameters()})

    monkeypatch.setattr(Trainer, "_train_step", watched)
    run = home / "watched"
    unveil.train(small("rf-digits", home / "cache", **{"training.steps": "12", "optimizer.lr": "1e-2"}), run, console=False)
    cli.main(["average", str(run), "--width", "0.15"])
    found = load_file(run / "average-0.15" / "model.safetensors")
    g = gamma_of(0.15)
    share = torch.arange(13, dtype=torch.float64).pow(g + 1).diff() / 12 ** (g + 1)  # the profile's integral over each step
    off, moved = 0.0, 0.0
    for name, last in seen[-1].items():
        wanted = sum(float(s) * weights[name] for s, weights in zip(share, seen, strict=True))
        off += float((found[name].double() - wanted).square().sum())
        moved += float((last - wanted).square().sum())
    assert off < 1e-3 * moved
    assert torch.isfinite(unveil.load(run / "average-0.15").generate(1)).all()  # type: ignore[attr-defined]


def test_straightness_and_seeds_reach_the_page(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unveil.evaluation.features.STEPS", 5)
    trained: list[int] = []
    from unveil import image_run

    real = image_run.of_classifier
    monkeypatch.setattr(image_run, "of_classifier", lambda prepared: trained.append(1) or real(prepared))
    monkeypatch.setattr(image_run.ImageRun.straightness, "__defaults__", (8, 4, 0))
    args = ["--nfe", "1,2", "--solvers", "euler", "--samples", "16", "--seeds", "3", "--straightness"]
    cli.main(["evaluate", str(home / "rf-digits"), *args])
    said = capsys.readouterr().out
    assert "euler, 1 NFE" in said and "3 disjoint sets" in said and "straightness" in said
    assert len(trained) == 1
    assert any(view.title.startswith("Straightness") for view in Evidence.load(home / "rf-digits").views)
    assert checkpoint.steps(home / "rf-digits" / "checkpoints")[-1] == 6
