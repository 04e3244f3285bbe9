"""A small corpus of one text file per document, and a family that only draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unveil.config import SourceConfig, TextDataConfig, TokenizerConfig
from unveil.data.shards import Prepared, prepare


class Drawing:
    """Cuts some sequences and draws a number per sequence and one per token."""

    def transform(self, tokens: np.ndarray[Any, Any], rng: np.random.Generator) -> np.ndarray[Any, Any]:
        return tokens[: rng.integers(2, len(tokens) + 1)] if rng.random() < 0.2 else tokens

    def draw(self, sample_id: int, epoch: int, length: int, rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
        return {"t": rng.random(1), "u": rng.random(length)}


@pytest.fixture(scope="session")
def drawing() -> Drawing:
    return Drawing()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty files of 1 to 400 distinct words, one with bytes that are no UTF-8."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for n in range(60):
        words = rng.integers(0, 10**6, size=rng.integers(1, 400))
        (folder / f"{n:02d}.txt").write_text(" ".join(f"w{w}" for w in words), encoding="utf-8")
    (folder / "07.txt").write_bytes(b"caf\xe9 \xff\xfe " + "naïve 中文".encode() * 9)
    return folder


@pytest.fixture(scope="session")
def config(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> TextDataConfig:
    """Bytes, context 64, packs of 512, a tenth for validation and one for test."""
    return TextDataConfig(
        sources=(SourceConfig(kind="text", path=str(corpus)),),
        tokenizer=TokenizerConfig(kind="bytes"),
        validation=0.1,
        test=0.1,
        context=64,
        packing_length=512,
        cache=str(tmp_path_factory.mktemp("cache")),
    )


@pytest.fixture(scope="session")
def prepared(config: TextDataConfig) -> Prepared:
    return prepare(config)
