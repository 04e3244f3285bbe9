"""A recipe's family by its name: the one place that imports them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from unveil.autoregressive.family import Autoregressive
from unveil.config import AutoregressiveRecipe, GaussianRecipe, StreamsRecipe, TextRecipe
from unveil.data.augment import parameters
from unveil.data.stream_features import About
from unveil.discrete.family import Discrete
from unveil.gaussian.family import Gaussian
from unveil.streams.family import OnlineDetection
from unveil.text.vocabulary import Vocabulary

EXACT = ("autoregressive",)
"""Families whose held-out cost is the cost itself, not a bound from above."""


def family(
    recipe: TextRecipe, vocabulary: Vocabulary, stop: Callable[[Sequence[int] | Any], bool] | None = None
) -> Autoregressive | Discrete:
    """The family of a recipe over a tokenizer's vocabulary; ``stop`` ends a row while it is sampled."""
    if isinstance(recipe, AutoregressiveRecipe):
        return Autoregressive(vocabulary, recipe.model, recipe.objective, recipe.sampler, stop)
    return Discrete(vocabulary, recipe.model, recipe.objective, recipe.sampler, stop, recipe.seed)


def images(recipe: GaussianRecipe, shape: tuple[int, int, int], classes: int, embedding: int = 0) -> Gaussian:
    """The family of a recipe over images ``[C, H, W]`` of so many classes, with texts embedded in so many numbers; 0: not told."""
    augmentation = parameters(recipe.data.augment)
    return Gaussian(shape, recipe.model, recipe.objective, recipe.sampler, classes, augmentation, recipe.seed, embedding)


def streams(recipe: StreamsRecipe, features: int, about: About) -> OnlineDetection:
    """The family of a recipe over streams with so many features a chunk."""
    return OnlineDetection(features, len(about.classes), about.ignored, recipe.model, recipe.objective, recipe.sampler)
