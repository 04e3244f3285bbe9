"""Texts to embeddings by an encoder of transformers from a local folder: CLIP's, T5's or BERT's, with its own tokenizer.

A text is one vector: CLIP's own pooled state, that of the end token; of the others the mean over the tokens' last states.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unveil.errors import UserError
from unveil.interop.folder import CONFIG, digest, read_json

CLASSES = {"clip_text_model": "CLIPTextModel", "clip": "CLIPTextModel", "t5": "T5EncoderModel", "bert": "BertModel"}
"""What is read, by the ``model_type`` of its config."""
TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model")
LONGEST = 512
"""Tokens of a text that are read at the most, where the encoder sets no limit of its own."""


class TextEncoder:
    """An encoder with its tokenizer.

    Args:
        folder: as both have saved themselves: config.json, safetensors, and the tokenizer's files beside them.
        device: where it runs.

    Raises:
        UserError: transformers is not installed; the folder holds another kind of network, no tokenizer, or weights that are missing,
            pickled or another's.
    """

    def __init__(self, folder: Path | str, device: torch.device | str = "cpu") -> None:
        self._model, self._tokenizer = _load(Path(folder))
        self._model.to(device).eval().requires_grad_(False)
        config = self._model.config
        self.width: int = getattr(config, "hidden_size", None) or config.d_model
        """Of an embedding."""
        limits = (LONGEST, self._tokenizer.model_max_length, getattr(config, "max_position_embeddings", LONGEST))
        self._longest = int(min(limits))

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embeddings ``[N, width]``, float32; a text is the same alone and among others. Longer ones are cut."""
        tokens = self._tokenizer(list(texts), padding=True, truncation=True, max_length=self._longest, return_tensors="pt")
        ids, mask = tokens["input_ids"].to(self._model.device), tokens["attention_mask"].to(self._model.device)
        said = self._model(input_ids=ids, attention_mask=mask)
        if type(self._model).__name__ == "CLIPTextModel":
            return said.pooler_output.float().cpu()
        told = mask[..., None].to(said.last_hidden_state)
        return ((said.last_hidden_state * told).sum(1) / told.sum(1)).float().cpu()

    @cached_property
    def digest(self) -> str:
        """Of settings, weights and tokenizer, wherever they came from."""
        settings = self._model.config.to_dict() | {"tokenizer": self._tokenizer.backend_tokenizer.to_str(), "longest": self._longest}
        del settings["transformers_version"]
        return digest(settings, self._model.state_dict())

    def save(self, folder: Path) -> None:
        """Write both as they were read."""
        self._model.save_pretrained(folder, safe_serialization=True)
        self._tokenizer.save_pretrained(folder)


def _load(folder: Path) -> tuple[Any, Any]:
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        raise UserError("transformers", "is not installed, and the text encoder is its own", "pip install transformers") from None
    wanted = "give the folder of a CLIPTextModel, a T5EncoderModel or a BertModel"
    kind = read_json(folder / CONFIG, wanted).get("model_type")
    if kind not in CLASSES:
        raise UserError(str(folder / CONFIG), f"model_type is '{kind}', a network that is not read here", wanted)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise UserError(str(folder), "holds no tokenizer", "save the encoder's own beside it, with its tokenizer.json")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    remedy = "take the whole download of one model, with its safetensors"
    options = {"add_pooling_layer": False} if CLASSES[kind] == "BertModel" else {}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model, report = getattr(transformers, CLASSES[kind]).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **options
        )
    except Exception as error:  # whatever it raises for a missing, truncated or misshapen file
        raise UserError(str(folder), f"does not load ({(str(error) or type(error).__name__).splitlines()[0]})", remedy) from None
    if report["missing_keys"]:
        raise UserError(str(folder), f"missing keys in its weights, such as '{sorted(report['missing_keys'])[0]}'", remedy)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        problem = f"its tokenizer has {len(tokenizer):,} tokens, the network {model.get_input_embeddings().num_embeddings:,}"
        raise UserError(str(folder), problem, "save the encoder's own tokenizer beside it")
    return model, tokenizer
