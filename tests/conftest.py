"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from unveil.training import precision


@pytest.fixture(scope="session", autouse=True)
def no_machine_is_faster_in_fewer_bits() -> Iterator[None]:
    """What is compared with a twin is computed in float32 wherever the tests run: the probe of this machine finds all dtypes equal."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(precision, "matmul_rate", lambda *shape_dtype_device_threads: 1e11)
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of small real data sets; tests that need it skip where it is absent, and say so."""
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("UNVEIL_DATA", root.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}: set UNVEIL_DATA")
    return folder


@pytest.fixture(scope="session")
def autoencoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small AutoencoderKL as diffusers saves it: 4 channels of latents, each for 2 x 2 RGB pixels. Copy it before changing it."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    small = {"block_out_channels": (8, 8), "latent_channels": 4, "norm_num_groups": 4, "scaling_factor": 0.3, "shift_factor": 0.1}
    folder = tmp_path_factory.mktemp("autoencoder")
    diffusers.AutoencoderKL(in_channels=3, out_channels=3, **blocks, **small).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a small "bert", "t5" or "clip" encoder of width 8 with a tokenizer of a few words. Copy it before changing it."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = ["[PAD]", "[UNK]", "[END]", "red", "blue", "a", "square"]
    layers = {"vocab_size": len(words), "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}

    @cache
    def folder(kind: str) -> Path:
        torch.manual_seed(0)
        place = tmp_path_factory.mktemp(kind)
        model: Any
        if kind == "bert":
            model = transformers.BertModel(transformers.BertConfig(**layers, max_position_embeddings=12))
        elif kind == "t5":
            sizes = {"vocab_size": len(words), "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
            model = transformers.T5EncoderModel(transformers.T5Config(**sizes))
        else:
            ends = {"eos_token_id": 2, "bos_token_id": 2, "pad_token_id": 0}
            model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**layers, **ends, max_position_embeddings=12))
        model.save_pretrained(place)
        inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
        inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        inner.post_processor = tokenizers.processors.TemplateProcessing(single="$A [END]", special_tokens=[("[END]", 2)])
        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[END]"}
        transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(place)
        return place

    return folder
