"""What a network computes per token: the model scale M of DeepSeek LLM (2024, section 3.2), beside the two counts that it replaces.

L layers of width d, V tokens in the vocabulary, s tokens of context. A budget is ``C = M D`` for D tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from unveil.config import BlockConfig, TextRecipe, TransformerConfig
from unveil.errors import UserError
from unveil.nn.layout import Causal
from unveil.nn.transformer import Transformer


@dataclass(frozen=True)
class Cost:
    """FLOPs per token, forward and backward."""

    n1: float
    """6 N1: the matrices of the blocks (Kaplan et al. 2020). 72 L d^2 for the plain network."""
    n2: float
    """6 N2: the output matrix too (Hoffmann et al. 2022). 72 L d^2 + 6 V d."""
    scale: float
    """M: the blocks with their attention, without the vocabulary. 72 L d^2 + 12 L d s."""


def paper_cost(layers: int, width: int, context: int, vocabulary: int) -> Cost:
    """The paper's closed forms (eq. 2), of a feed-forward of 8/3 d and as many heads for keys as for queries."""
    blocks = 72.0 * layers * width**2
    return Cost(blocks, blocks + 6.0 * vocabulary * width, blocks + 12.0 * layers * width * context)


@cache
def network_cost(model: TransformerConfig, context: int, vocabulary: int) -> Cost:
    """Counted on the network itself, built without storage.

    As in the paper every token is taken to see the whole context, whoever attends to whom: so a causal and a bidirectional network of
    the same sizes have the same M, and their curves stand on one axis.
    """
    with torch.device("meta"):
        network = Transformer(model, 1, Causal())
    beside = 6.0 * network.head.weight.numel() * (1 + model.mtp.depths)
    blocks = network.flops_per_token(0) - beside
    return Cost(blocks, blocks + 6.0 * vocabulary * model.width * (1 + model.mtp.depths), network.flops_per_token(context) - beside)


def model_scale(recipe: TextRecipe) -> float:
    """M of a recipe. Raises UserError for one whose network does not read every token once."""
    checked(recipe)
    return network_cost(recipe.model, recipe.data.context, 0).scale


def checked(recipe: object) -> None:
    """Raises UserError for a recipe that the laws do not speak of."""
    objective = getattr(recipe, "objective", None)
    if not isinstance(getattr(recipe, "model", None), TransformerConfig):
        raise UserError("family", f"{getattr(recipe, 'family', '?')!r} is not text", "take an autoregressive or a discrete recipe")
    if isinstance(objective, BlockConfig):
        raise UserError("objective.kind", "'block' reads every token twice, M counts it once", "take 'masked' or an autoregressive recipe")
