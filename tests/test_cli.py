"""Arguments to verbs, mistakes to one line."""

from __future__ import annotations

import pytest

from unveil import cli, verbs
from unveil.errors import UserError
from unveil.verbs.shared import memory_answered


def test_dotted_keys_are_settings_and_all_else_is_the_verbs() -> None:
    rest, overrides = cli._split(
        ["train", "tiny", "--training.steps", "3", "--resume", "--data.sources.0.path=a=b", "--model.init-std", "-1"]
    )
    assert rest == ["train", "tiny", "--resume"]
    assert overrides == [("training.steps", "3"), ("data.sources.0.path", "a=b"), ("model.init-std", "-1")]


def test_a_prompt_that_looks_like_a_setting_stays_a_prompt() -> None:
    rest, overrides = cli._split(["sample", "run", "--prompt", "--a.b", "--infill", "--c.d"])
    assert rest == ["sample", "run", "--prompt", "--a.b", "--infill", "--c.d"] and not overrides


def test_every_verb_parses() -> None:
    parsed = {
        "train tiny --run-dir x --resume --seed 4": verbs.Train("tiny", run_dir="x", resume=True, seed=4),
        "train my.toml --data notes": verbs.Train("my.toml", data="notes"),
        "sample run --prompt hi --num 2 --watch": verbs.Sample("run", prompt="hi", num=2, watch=True),
        "chat run": verbs.Chat("run"),
        "stream run --num 2 --part test": verbs.Stream("run", num=2, part="test"),
        "evaluate run --split test --json": verbs.Evaluate("run", split="test", json=True),
        "report a b --out c": verbs.Report(("a", "b"), out="c"),
        "data prepare tiny": verbs.Data(verbs.Prepare("tiny")),
        "data inspect tiny": verbs.Data(verbs.Inspect("tiny")),
        "demo": verbs.Demo(),
        "plan tiny --memory 1GiB": verbs.Plan("tiny", memory="1GiB"),
        "compare a b --compute 3e12 --seeds 3 --texts 0": verbs.Compare(("a", "b"), compute=3e12, seeds=3, texts=0),
        "average run --width 0.08 --step 5": verbs.Average("run", width=0.08, step=5),
        "convert run folder --to diffusers": verbs.Convert("run", "folder", to="diffusers"),
        "scaling plan --compute 1e20": verbs.Scaling(verbs.PlanScale(compute="1e20")),
        "scaling sweep tiny --out d --compute 1e10,1e11": verbs.Scaling(verbs.SweepScale("tiny", out="d", compute="1e10,1e11")),
        "scaling fit a b": verbs.Scaling(verbs.FitScale(("a", "b"))),
        "doctor": verbs.Doctor(),
    }
    for line, verb in parsed.items():
        assert cli._parse(line.split()) == verb
    assert {type(verb) for verb in parsed.values()} == set(verbs.VERBS)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("trian tiny", "did you mean 'train'"),
        ("train", "RECIPE"),
        ("train tiny --bogus", "--bogus"),
        ("sample run --num many", "--num"),
        ("evaluate run --split tset", "tset"),
        ("data", "prepare"),
        ("train tiny --training.steps", "no value"),
        ("sample run --training.steps 3", "sampler"),
        ("doctor --training.steps 3", "doctor"),
        ("plan tiny --memory lots", "24GiB"),
    ],
)
def test_a_wrong_line_is_answered_with_one(args: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(args.split())
    printed = capsys.readouterr()
    assert stopped.value.code == 2 and printed.err.count("\n") == 1 and said in printed.err and not printed.out


@pytest.mark.parametrize(("error", "code", "said"), [(KeyboardInterrupt(), 130, "interrupted"), (UserError("a", "b", "c"), 2, "a: b; c")])
def test_how_a_verb_ends(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(self: verbs.Demo, overrides: verbs.Overrides) -> None:
        raise error

    monkeypatch.setattr(verbs.Demo, "run", fails)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["demo"])
    assert stopped.value.code == code and said in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_running_out_of_memory_is_answered_with_what_plan_advises(error: Exception) -> None:
    from unveil import recipe as recipes

    with pytest.raises(UserError, match=r"--data\.packing-length 128 --training\.packs 2"), memory_answered(recipes.load("tiny")):
        raise error
    with pytest.raises(RuntimeError, match="other"), memory_answered(None):
        raise RuntimeError("other")


def test_help_on_a_recipe_shows_its_own_values(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "tiny", "--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0 and "--training.steps" in shown and "(default: 20)" in shown


def test_plan_prints_costs_and_says_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["plan", "tiny", "--memory", "1GiB"])
    shown = capsys.readouterr().out
    assert "49,696" in shown and "activations" in shown
    with pytest.raises(SystemExit):
        cli.main(["plan", "tiny", "--memory", "3M"])
    assert "--data.packing-length 128 --training.packs 2" in capsys.readouterr().err
