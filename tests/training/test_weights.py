from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.training.toy import VOCABULARY
from unveil.config import TransformerConfig
from unveil.errors import UserError
from unveil.nn.layout import Causal
from unveil.nn.transformer import Transformer
from unveil.training.weights import assign, check, weights


def test_tied_weights_are_named_once() -> None:
    tied = Transformer(TransformerConfig(width=16, depth=1, heads=2, tie=True), VOCABULARY, Causal())
    names = weights(tied)
    assert "embedding.weight" in names and "head.weight" not in names


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"weight": torch.zeros(2, 2)}, "'bias' is missing"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}, r"'weight' has shape \[2, 3\], wanted \[2, 2\]"),
        ({"weight": torch.zeros(2, 2), "bias": torch.zeros(2), "other": torch.zeros(1)}, "'other' is not one"),
    ],
)
def test_the_weight_that_does_not_fit_is_named(found: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(UserError, match=f"file: weight {message}"):
        check(found, weights(nn.Linear(2, 2)), "file")


def test_assign_fills_the_models_own_storage() -> None:
    model = nn.Linear(2, 2)
    assign({"weight": torch.ones(2, 2), "bias": torch.zeros(2)}, weights(model), "file")
    assert torch.equal(model.weight, torch.ones(2, 2))
