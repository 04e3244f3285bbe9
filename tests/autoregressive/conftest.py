from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from unveil.config import TransformerConfig
from unveil.nn.layout import Causal
from unveil.nn.transformer import Transformer
from unveil.text.vocabulary import Vocabulary

SMALL = TransformerConfig(width=16, depth=2, heads=2, kv_heads=1, init="normal", init_std=0.3)
"""Wide enough initial weights that the distributions are far from uniform."""

MakeNetwork = Callable[..., Transformer]


@pytest.fixture
def vocabulary() -> Vocabulary:
    """Three tokens, 0 to 2, and the specials."""
    return Vocabulary(size=9, start=3, end=4, mask=5, prefix=6, suffix=7, middle=8)


@pytest.fixture
def network(vocabulary: Vocabulary) -> MakeNetwork:
    def make(dtype: torch.dtype = torch.float64, size: int = vocabulary.size, config: TransformerConfig = SMALL) -> Transformer:
        torch.manual_seed(0)
        model = Transformer(config, size, Causal(config.window)).to(dtype)
        model.compute_dtype = dtype
        return model.eval()

    return make
