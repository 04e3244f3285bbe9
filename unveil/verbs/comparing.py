"""The verb that compares paradigms: compare."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from unveil.errors import UserError
from unveil.verbs.shared import Overrides


@dataclass(frozen=True)
class Compare:
    """Train recipes of text on one corpus at equal compute, and score them alike: bits per byte, a judge's perplexity, entropy.

    Settings hold for all of them: --model.width 128 --data.context 256. What is trained already is not trained again.
    """

    recipes: Positional[tuple[str, ...]]
    """Recipe files or names of packaged recipes; the first autoregressive one also makes the judge."""
    compute: float
    """FLOPs that each run may spend, forward and backward, as 3e12."""
    data: str = ""
    """Your own text in place of the recipes': a file, a folder, JSONL, Parquet, or hub:ID."""
    run_dir: str = "runs/comparison"
    """Where the runs, comparison.json and report.html go."""
    seeds: int = 1
    """Runs of each recipe."""
    texts: int = 64
    """Samples of each run that the judge reads; 0 for none."""
    tokens: int = 0
    """Held-out tokens that are scored at the most; 0 takes all."""

    def run(self, overrides: Overrides) -> None:
        import sys

        from unveil import recipe as recipes
        from unveil.comparison import compared, table
        from unveil.report.page import write
        from unveil.report.run import RunReport
        from unveil.verbs.shared import columns

        if not 0 < self.compute < float("inf"):
            raise UserError("--compute", f"got {self.compute}", "give FLOPs above 0, as 3e12")
        if self.seeds < 1 or self.texts < 0 or self.tokens < 0:
            field = "--seeds" if self.seeds < 1 else "--texts" if self.texts < 0 else "--tokens"
            raise UserError(field, "is out of range", "give 1 or more seeds, 0 or more texts and tokens")
        chosen = {}
        for name in self.recipes:
            if Path(name).stem in chosen:
                raise UserError("recipes", f"two are called {Path(name).stem!r}", "rename a file: its name says which row is whose")
            recipe = recipes.load(name)
            chosen[Path(name).stem] = recipes.with_overrides(recipes.with_data(recipe, self.data) if self.data else recipe, overrides)
        directory = Path(self.run_dir)
        directory.mkdir(parents=True, exist_ok=True)
        scores = compared(
            chosen,
            directory,
            compute=self.compute,
            seeds=self.seeds,
            texts=self.texts,
            tokens=self.tokens,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
        shown = table(scores)
        columns([tuple(shown.columns), *(tuple(row) for row in shown.rows)])
        page = directory / "report.html"
        write([RunReport.read(directory / f"{name}-0", i) for i, name in enumerate(chosen)], page)
        print(page.resolve().as_uri())
