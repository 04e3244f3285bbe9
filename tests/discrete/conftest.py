"""A vocabulary of three data tokens and small networks, in float64 so that identities can be asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unveil.config import TransformerConfig
from unveil.nn.head import LogitsModel
from unveil.nn.layout import Bidirectional
from unveil.nn.packed import Packed
from unveil.nn.transformer import Transformer
from unveil.text.vocabulary import Vocabulary

TINY = Vocabulary(size=9, start=3, end=4, mask=5, prefix=6, suffix=7, middle=8)


@pytest.fixture
def vocabulary() -> Vocabulary:
    return TINY


def make_network(vocabulary: int = TINY.size) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(
        TransformerConfig(width=16, depth=2, heads=2, hidden=32, init="normal", init_std=0.3), vocabulary, Bidirectional()
    ).double()
    model.compute_dtype = torch.float64
    return model


@pytest.fixture
def network() -> Transformer:
    """A random bidirectional transformer whose predictions differ a good deal from canvas to canvas."""
    return make_network()


class Lookup:
    """A network that needs no arithmetic: every canvas of at most ``length`` tokens hashes to its own random logits."""

    def __init__(self, vocabulary: int, length: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.size = 1009
        self.table = 2.0 * torch.randn(self.size, length, vocabulary, dtype=torch.float64, generator=generator)

    def __call__(self, batch: Packed) -> Tensor:
        places = 31**batch.positions_T
        codes = (
            torch.zeros(len(batch.sample_ids_N), dtype=torch.int64).index_add(0, batch.sequence_T, (batch.tokens_T + 1) * places)
            % self.size
        )
        return self.table[codes[batch.sequence_T], batch.positions_T]


@pytest.fixture
def lookup() -> LogitsModel:
    return LogitsModel(Lookup(TINY.size, 6))


@pytest.fixture
def golden(data_dir: Path) -> Callable[[str], tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]]:
    """Arrays and configuration of a golden file."""

    def load(name: str) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
        with np.load(data_dir / "golden" / f"{name}.npz") as stored:
            return {key: stored[key] for key in stored.files if key != "config"}, json.loads(str(stored["config"]))

    return load
