"""Scaling laws: plan, sweep, fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, subcommand

from unveil.errors import UserError
from unveil.verbs.shared import Overrides, columns, no_settings, table


@dataclass(frozen=True)
class PlanScale:
    """The model, tokens, batch and learning rate that are best for a budget."""

    recipe: Positional[str] = "ar-python"
    """Gives all that a budget does not decide: family, data, context."""
    data: str = ""
    """Your own data in place of the recipe's."""
    compute: str = ""
    """The budget C in FLOPs, as 1e20: M times D, the vocabulary's matrices apart."""
    minutes: float = 0.0
    """In place of a budget: what this machine does in that time."""
    law: str = "deepseek"
    """deepseek, chinchilla, or law.json of `unveil scaling fit` (several with commas between them)."""
    out: str = ""
    """Write the recipe here, for `unveil train`."""

    def run(self, overrides: Overrides) -> None:
        from unveil import recipe as recipes
        from unveil.scaling.configure import for_budget, within
        from unveil.scaling.laws import LAWS, law

        recipe = _chosen(self.recipe, self.data, overrides)
        rule = law(self.law)
        if bool(self.compute) == bool(self.minutes):
            raise UserError("--compute", "give it, or --minutes" if not self.compute else "given with --minutes", "give one of the two")
        vocabulary, rate = _machine(recipe)
        if self.minutes < 0:
            raise UserError("--minutes", f"got {self.minutes:g}", "give a time above 0")
        if self.compute:
            compute = _positive("--compute", self.compute)[0]
        else:
            compute = within(60 * self.minutes * rate, lambda c: _flops(for_budget(recipe, c, rule), vocabulary))
        choice = for_budget(recipe, compute, rule)
        model, seconds = choice.recipe.model, _flops(choice, vocabulary) / rate
        table(
            [
                ("compute C", f"{compute:.4g} FLOPs"),
                ("model scale M", f"{choice.scale:.4g} FLOPs per token; the law says {rule.scale(compute):.4g}"),
                ("tokens D", f"{choice.tokens:,}; the law says {rule.tokens(compute):.4g}"),
                ("batch", f"{choice.batch:,} tokens, {choice.recipe.training.steps:,} steps; the law says {rule.batch(compute):.4g}"),
                ("learning rate", f"{choice.recipe.optimizer.lr:.4g}, AdamW"),
                ("network", f"width {model.width}, depth {model.depth}, {model.heads} heads"),
                ("time here", f"{seconds / 3600:,.2f} hours" if seconds > 6000 else f"{seconds / 60:.1f} min"),
                ("law", rule.source),
            ]
        )
        for other in LAWS.values():
            if other.name != rule.name:
                table([(f"by {other.name}", f"M = {other.scale(compute):.4g}, D = {other.tokens(compute):.4g}")])
        for name, part in (("M and D", rule.scale), ("learning rate, batch", rule.lr)):
            if (times := part.beyond(compute)) > 1:
                fitted = f"{part.low:.2g} to {part.high:.2g} FLOPs, where they were fitted"
                table([("extrapolated", f"{name}: {times:,.3g} times outside {fitted}")])
        if self.out:
            Path(self.out).write_text(recipes.dumps(choice.recipe), encoding="utf-8")
            print(f"\nThe recipe is in {self.out}. Next:\n  unveil train {self.out}")
        else:
            print(f"\n{_lines(choice.recipe, self.recipe)}")


@dataclass(frozen=True)
class SweepScale:
    """Train the grid that a law is fitted on; the same command again goes on."""

    recipe: Positional[str]
    """Gives all that a budget does not decide: family, data, context."""
    out: str
    """Where the runs go."""
    compute: str
    """Budgets in FLOPs, as 1e14,3e14,1e15."""
    data: str = ""
    """Your own data in place of the recipe's."""
    grid: Literal["isoflop", "lr-batch"] = "isoflop"
    """Sizes of the network at equal compute, or learning rates and batches of one network."""
    sizes: str = "0.25,0.5,1,2,4"
    """Multiples of the law's M."""
    lr: str = "0.25,0.5,1,2,4"
    """Multiples of the law's learning rate, for lr-batch."""
    batch: str = "0.5,1,2"
    """Multiples of the law's batch, for lr-batch."""
    law: str = "deepseek"
    """deepseek, chinchilla, or law.json of `unveil scaling fit` (several with commas between them)."""
    workers: int = 1
    """Runs at a time."""
    engine: Literal["local", "ray"] = "local"
    """Processes of this machine, or a Ray cluster: RAY_ADDRESS, or one that is started here."""
    dry: bool = False
    """Show what would run and stop."""

    def run(self, overrides: Overrides) -> None:
        from unveil.corpora import prepared
        from unveil.run import train
        from unveil.scaling import sweep
        from unveil.scaling.laws import law

        if self.workers < 1:
            raise UserError("--workers", f"got {self.workers}", "give 1 or more")
        recipe, rule, out = _chosen(self.recipe, self.data, overrides), law(self.law), Path(self.out)
        budgets = sorted(_positive("--compute", self.compute))
        if self.grid == "isoflop":
            choices = sweep.isoflop(recipe, budgets, _positive("--sizes", self.sizes), rule)
        else:
            choices = sweep.lr_batch(recipe, budgets, _positive("--lr", self.lr), _positive("--batch", self.batch), rule)
        vocabulary, rate = _machine(recipe)

        def seconds(choice: Any) -> float:
            return _flops(choice, vocabulary) / rate

        corpus = sum(int(store.lengths.sum()) for store in prepared(recipe.data).splits["train"])
        columns(list(sweep.described(choices, out, seconds, corpus)))
        left = sum(seconds(choice) for name, choice in choices.items() if not sweep.finished(out, name)) / self.workers
        print(f"{len(choices)} runs, about {left / 60:.1f} min of training left", flush=True)
        if self.dry:
            return
        sweep.claim(self.grid, choices, out)
        sweep.run(choices, out, self.workers, train, seconds, lambda line: print(line, flush=True), self.engine)
        print(f"\nNext:\n  unveil scaling fit {out}")


@dataclass(frozen=True)
class FitScale:
    """Fit the laws of one sweep or of several side by side; writes law.json into each and a page with the figures."""

    sweeps: Positional[tuple[str, ...]]
    """Directories that `unveil scaling sweep` filled."""
    out: str = ""
    """The page; scaling.html in the first directory if not given."""

    def run(self, overrides: Overrides) -> None:
        from unveil.scaling import isoflop, page, rates, runs
        from unveil.scaling.laws import dumps

        no_settings(overrides, "scaling fit")
        if not self.sweeps:
            raise UserError("sweeps", "none given", "name at least one directory")
        profiles, hyper = [], []
        for directory in map(Path, self.sweeps):
            found = runs.read(directory)
            print(f"{found.name} ({found.family}, {len(found.points)} runs)")
            fit: isoflop.IsoFlop | rates.Rates
            if found.varies_model:
                profiles.append(fit := isoflop.fit(found))
                table(page.isoflop_rows(fit))
            else:
                hyper.append(fit := rates.fit(found))
                table(page.rate_rows(fit))
            (directory / "law.json").write_text(dumps(f"sweep {found.name}", fit.laws()), encoding="utf-8")
        out = Path(self.out or Path(self.sweeps[0]) / "scaling.html")
        page.write(profiles, hyper, out)
        print(out.resolve().as_uri())


@dataclass(frozen=True)
class Scaling:
    """Scaling laws: plan a budget, sweep a grid, fit the law."""

    verb: Annotated[PlanScale, subcommand("plan")] | Annotated[SweepScale, subcommand("sweep")] | Annotated[FitScale, subcommand("fit")]

    def run(self, overrides: Overrides) -> None:
        self.verb.run(overrides)


def _chosen(name: str, data: str, overrides: Overrides) -> Any:
    from unveil.scaling.cost import checked
    from unveil.verbs.shared import WithRecipe

    recipe = WithRecipe(name, data).chosen(overrides)
    checked(recipe)
    return recipe


def _machine(recipe: Any) -> tuple[int, float]:
    """Tokens of the vocabulary, and the FLOP/s that training reaches here."""
    from unveil.plan import UTILISATION, plan

    costs = plan(recipe)
    return costs.network.get_parameter("head.weight").shape[0], UTILISATION * costs.peak


def _flops(choice: Any, vocabulary: int) -> float:
    """Of the whole run, with the vocabulary's matrix."""
    return float(choice.tokens * (choice.scale + 6 * vocabulary * choice.recipe.model.width))


def _positive(field: str, text: str) -> list[float]:
    """``1e14,3e14`` to numbers."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value < float("inf") for value in values):
        raise UserError(field, f"got {text!r}", "give numbers above 0 with commas between them, as 1e14,3e14")
    return values


def _lines(recipe: Any, base: str) -> str:
    """What the budget decided, as lines of a recipe."""
    import tomli_w

    m, d, o, t = recipe.model, recipe.data, recipe.optimizer, recipe.training
    sections = {
        "data": {"packing_length": d.packing_length},
        "model": {"width": m.width, "depth": m.depth, "heads": m.heads, "kv_heads": m.kv_heads, "head_width": 0, "hidden": m.hidden},
        "optimizer": {"kind": "adamw", "lr": o.lr, "beta1": o.beta1, "beta2": o.beta2, "weight_decay": o.weight_decay, "clip": o.clip},
        "training": {"steps": t.steps, "packs": t.packs, "minutes": 0.0},
    }
    return "\n\n".join([f'base = "{base}"', tomli_w.dumps(sections).strip()])
