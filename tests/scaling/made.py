"""Sweeps that nobody trained: run directories whose losses follow a known law."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from unveil import recipe as recipes
from unveil.config import AutoregressiveRecipe, TextDataConfig, TokenizerConfig
from unveil.scaling.configure import Choice

BASE = AutoregressiveRecipe(data=TextDataConfig(tokenizer=TokenizerConfig(kind="bytes"), packing_length=1024))


def write(choices: dict[str, Choice], out: Path, loss: Callable[[Choice], float]) -> None:
    """Every choice as a finished run with that loss."""
    for name, choice in choices.items():
        folder = out / name
        folder.mkdir(parents=True)
        (folder / "recipe.toml").write_text(recipes.dumps(choice.recipe))
        rows = [{"step": 1, "tokens": 5, "train/nll": 9.0}, {"step": 9, "tokens": choice.tokens, "eval/bits_per_byte": loss(choice)}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "evidence.json").write_text("{}")


def bowl(exponent: float, seed: int, noise: float = 0.002) -> Callable[[Choice], float]:
    """M_opt = 5e6 (C / 1e14)^exponent; at it the loss is 1.1 + 0.8 (C / 1e14)^-0.15."""
    rng = np.random.default_rng(seed)

    def loss(choice: Choice) -> float:
        relative = choice.compute / 1e14
        off = np.log(choice.scale / (5e6 * relative**exponent))
        return float(1.1 + 0.8 * relative**-0.15 + 0.04 * off**2 + rng.normal(0.0, noise))

    return loss
