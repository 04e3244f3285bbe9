"""Multi-token prediction from a recipe to a run, its page, a draft and other forms."""

from __future__ import annotations

from pathlib import Path

import pytest

import unveil
from unveil import cli
from unveil import recipe as recipes
from unveil.convert import convert
from unveil.initial import adopted, give
from unveil.nn import mtp
from unveil.plan import Plan
from unveil.report.evidence import Evidence


def test_a_run_with_depths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("UNVEIL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("".join(f"Line {i} tells that {i} and {i} are {2 * i}.\n\n" for i in range(300)))
    tree = {"family": "autoregressive", "evaluation": {"tokens": 256}, "sampler": {"length": 12, "temperature": 0.0, "speculate": 1}}
    tree["model"] = {"width": 16, "depth": 1, "heads": 2, "mtp": {"depths": 2}}
    tree["data"] = {"context": 64, "packing_length": 128, "tokenizer": {"kind": "bytes"}}
    tree["data"] |= {"sources": [{"kind": "text", "path": str(tmp_path / "text.txt"), "documents": "paragraph"}]}  # type: ignore[operator]
    tree["training"] = {"steps": 4, "log_every": 2, "dtype": "float32", "compile": "off"}
    recipe = recipes.parse(tree)
    run = unveil.train(recipe, tmp_path / "run", console=False)
    assert all(row["train/mtp2"] > 0 for row in run.metrics if "train/nll" in row)
    (table,) = [view for view in Evidence.load(tmp_path / "run").views if view.title == "Drafts of multi-token prediction"]
    assert table.columns == ["texts", "tokens for one pass", "accepted, 1 ahead", "accepted, 2 ahead"]  # type: ignore[union-attr]
    assert [row[0] for row in table.rows] == ["greedy", "drawn"]  # type: ignore[union-attr]

    *_, last = run.sample("Line 3", speculate=2)
    assert "evaluations" in last.cost and "of their drafts" in last.cost and last.cost.endswith("accepted")
    assert last.text == run.generate("Line 3", speculate=0)
    cli.main(["sample", str(tmp_path / "run"), "--prompt", "Line 3", "--watch"])
    assert "accepted" in capsys.readouterr().out.splitlines()[-1]

    count, said = mtp.parameters(run.model), []
    assert Plan(recipe, run.model.compute_dtype, 1e9).parameters == run.parameters() > count > 0  # type: ignore[arg-type]
    cli.main(["plan", str(tmp_path / "run" / "recipe.toml")])
    assert f"{count:,} for multi-token prediction" in capsys.readouterr().out
    plain = unveil.load(convert(tmp_path / "run", tmp_path / "theirs", "hf", said.append))
    assert f"{count:,} parameters are left out" in said[0] and plain.parameters() == run.parameters() - count
    assert plain.generate("Line 3", length=12, temperature=0.0) == run.generate("Line 3", speculate=0)

    begun = {**tree, "family": "discrete", "model": {}, "sampler": {}, "training": {"initial": str(tmp_path / "run")}}
    masked = adopted(recipes.parse(begun))
    assert masked.model.mtp.depths == 0
    model = unveil.families.family(masked, run.tokenizer.vocabulary).build()
    give(masked, model)
    assert (model.embedding.weight == run.model.embedding.weight).all()  # type: ignore[union-attr]
