"""Other people's language models from a local folder, and ours as such a folder: ``config.json``, safetensors, ``tokenizer.json``.

``config.json`` says by its ``model_type`` whose network it is. Nothing is unpickled but old checkpoints of MDLM's and SEDD's, by
``interop.pickled``; none of the code that lies in such folders is run, and ``transformers`` is not needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from unveil import recipe as recipes
from unveil.config import (
    AutoregressiveRecipe,
    BlockConfig,
    DiscreteRecipe,
    MaskedConfig,
    MaskedSamplerConfig,
    NextTokenConfig,
    NextTokenSamplerConfig,
    ScoreConfig,
    SourceConfig,
    TextDataConfig,
    TextRecipe,
    TokenizerConfig,
    TransformerConfig,
)
from unveil.data.tokenizer import Tokenizer
from unveil.errors import UserError, nearest
from unveil.interop import decoder, told
from unveil.interop.folder import CONFIG, read_json, write_json
from unveil.interop.state import Part, exported, imported
from unveil.interop.tensors import save, stored
from unveil.nn.layout import Bidirectional, BlockCausal, Causal, Layout
from unveil.nn.transformer import Transformer
from unveil.text.vocabulary import Vocabulary

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
TURNS = ("<|eot_id|>", "<|im_end|>")
"""Tokens that end a turn of a conversation, beside the end token."""
AUTOREGRESSIVE, MASKED, BLOCKS = ("llama", "qwen2", "qwen3"), ("llada", "Dream", "mdlm"), ("sdar", "bd3lm")
SCORE = "sedd"
"""Of a folder without a ``model_type``, which names a graph."""
KINDS = (*AUTOREGRESSIVE, *MASKED, *BLOCKS, SCORE)
LATER = {"lladamoe": "LLaDA-MoE", "llada2_moe": "LLaDA2", "sdar_moe": "SDAR-MoE", "qwen3_moe": "Qwen3-MoE"}
"""Model types that want a mixture of experts."""
_DOWNLOAD = "take the whole folder of the same download"


class Foreign(NamedTuple):
    """A language model in our own terms."""

    recipe: TextRecipe
    tokenizer: Tokenizer
    model: Transformer


def recognised(folder: Path) -> bool:
    """Whether a folder looks like one for ``read``: a ``config.json`` that is not of a run of ours."""
    if not (folder / CONFIG).is_file():
        return False
    try:
        given = read_json(folder / CONFIG, _DOWNLOAD)
    except UserError:
        return False
    return "recipe" not in given and ("model_type" in given or "graph" in given)


def kind_of(given: Mapping[str, Any], source: str) -> str:
    """Which of ``KINDS`` a ``config.json`` describes. Raises UserError for another, by its name."""
    kind = str(given.get("model_type", SCORE if "graph" in given else ""))
    if kind == "llada" and given.get("num_experts"):
        kind = "lladamoe"
    if kind in LATER:
        raise UserError(
            source, f"model_type is '{kind}' ({LATER[kind]}), a mixture of experts, which is not read here", "take a dense model"
        )
    if kind not in KINDS:
        raise UserError(source, f"model_type is '{kind}', a network that is not read here", nearest(kind, KINDS))
    return kind


def network(given: Mapping[str, Any], source: str) -> tuple[Transformer, list[Part], int]:
    """The network of a ``config.json``, on the meta device, the names of its weights and its longest context. Raises UserError."""
    kind = kind_of(given, source)
    if kind == "llada":
        config, size, context = decoder.llada(given, source)
    elif kind == SCORE:
        config, size, context = told.sedd(given, source)
    elif kind in ("mdlm", "bd3lm"):
        config, size, context = told.mdlm(given, source)
    else:
        config, size, context = decoder.llama(given, {"Dream": "qwen2", "sdar": "qwen3"}.get(kind, kind), source)
    config = dataclasses.replace(config, shift=kind == "Dream")
    layout: Layout = Bidirectional()
    if kind in AUTOREGRESSIVE:
        layout = Causal()
    elif kind in BLOCKS and (block := _block(given, kind, source)) < context:
        layout = BlockCausal(block)
    try:
        with torch.device("meta"):
            built = Transformer(config, size, layout)
    except (ValueError, TypeError) as error:
        raise UserError(source, f"its settings make no network ({error})", _DOWNLOAD) from None
    return built, parts(config, kind), context


def parts(config: TransformerConfig, kind: str) -> list[Part]:
    """The names of the weights of one of ``KINDS``."""
    if kind in (SCORE, "mdlm", "bd3lm"):
        return told.parts(config, "" if kind == SCORE else told.BACKBONE)
    return decoder.parts(config, decoder.LLADA if kind == "llada" else decoder.LLAMA)


def _block(given: Mapping[str, Any], kind: str, source: str) -> int:
    """Tokens of a block; the published settings of SDAR leave it out where it is 4."""
    block = given.get("block_size", 4 if kind == "sdar" else 1)
    if type(block) is not int or block < 1:
        raise UserError(source, f"block_size is {block}, a whole number above 0 is wanted", "correct the file")
    return block


def read(folder: Path) -> Foreign:
    """The model of a folder, its weights in the dtype in which they lie there, each read once into its place.

    Raises:
        UserError: a file is missing or corrupted, weights are pickled, missing, left over or misshapen, a model type or a setting is not
            supported, there is no mask token, or the tokenizer has more tokens than the network.
    """
    source = str(folder / CONFIG)
    given = read_json(folder / CONFIG, _DOWNLOAD)
    kind = kind_of(given, source)
    built, names, context = network(given, source)
    if built.config.time_conditioning and isinstance(built.layout, BlockCausal):
        raise UserError(
            source, "its blocks are told the noise level, which no sampler here tells them", "take one without time conditioning"
        )
    objective: MaskedConfig | BlockConfig | ScoreConfig = MaskedConfig(schedule="log-linear" if kind == "mdlm" else "linear")
    if kind == SCORE:
        objective = told.ratios(given, source)
    elif isinstance(built.layout, BlockCausal):
        objective = BlockConfig(block=built.layout.block)
    vocabulary = _vocabulary(folder, given, kind, len(built.embedding.weight))
    tokenizer = Tokenizer.load(folder / TOKENIZER, vocabulary, opens=kind not in ("qwen2", "qwen3", "sdar"))
    _fill(built, names, folder)
    return Foreign(_recipe(folder, kind, built, context, objective), tokenizer, built.eval())


def _fill(built: Transformer, names: list[Part], folder: Path) -> None:
    """Weights into a network that has none yet. Raises UserError."""
    found, file = stored(folder)
    if built.config.norm == "layer":
        found = told.without_buffers(found, built.config, str(file))
    first = next((found[name] for part in names for name in part.theirs if name in found), None)
    built.to(torch.float32 if first is None else first.dtype).to_empty(device="cpu")
    if built.config.tie:
        built.head.weight = built.embedding.weight  # type: ignore[assignment]
        found = {name: tensor for name, tensor in found.items() if name not in _tied(names, found)}
    imported(built, names, found, str(file))


def _tied(names: list[Part], found: Mapping[str, torch.Tensor]) -> set[str]:
    """A copy of the embedding that some files hold for a head that is tied to it."""
    embedding = next(name for part in names if part.ours == "embedding.weight" for name in part.theirs)
    heads = {decoder.LLAMA.head, decoder.LLADA.head}
    return {
        name for head in heads if (name := f"{head}.weight") in found and embedding in found and torch.equal(found[name], found[embedding])
    }


def _vocabulary(folder: Path, given: Mapping[str, Any], kind: str, size: int) -> Vocabulary:
    """The special ids: of the tokenizer's settings where they name a token, else of the network's. Raises UserError without a mask."""
    place = folder / TOKENIZER_CONFIG
    named = read_json(place, _DOWNLOAD) if place.is_file() else {}
    tokens = {str(t.get("content")): t.get("id") for t in read_json(folder / TOKENIZER, _DOWNLOAD).get("added_tokens") or []}

    def special(name: str, *spare: Any) -> Any:
        text = named.get(f"{name}_token")
        text = text.get("content") if isinstance(text, Mapping) else text
        ids = [tokens.get(str(text)), given.get(f"{name}_token_id"), *spare]
        return next((i[0] if isinstance(i, list) and i else i for i in ids if i is not None), None)

    end = special("eos", tokens.get("<|endoftext|>"))
    start = special("bos", end)
    masked = kind not in AUTOREGRESSIVE
    mask = special("mask", tokens.get("<|MASK|>"), size - 1 if kind in ("mdlm", "bd3lm", SCORE) else None) if masked else -1
    for name, found in (("eos_token_id", end), ("mask_token_id", mask)):
        if type(found) is not int:
            raise UserError(str(folder / CONFIG), f"{name} is missing, and the tokenizer names none", f"write {name} into it")
    try:
        return Vocabulary(size, start, end, mask, -1, -1, -1)
    except ValueError as error:
        raise UserError(str(folder / CONFIG), f"its special tokens fit no network of {size} ({error})", _DOWNLOAD) from None


def _recipe(folder: Path, kind: str, built: Transformer, context: int, objective: MaskedConfig | BlockConfig | ScoreConfig) -> TextRecipe:
    """What of a recipe only training needs is what is usual; there is no data."""
    tokenizer = TokenizerConfig(kind="file", path=str((folder / TOKENIZER).resolve()))
    data = TextDataConfig(sources=(SourceConfig(kind="text"),), tokenizer=tokenizer, context=context, packing_length=context)
    length = min(128, context // 2)
    stop = tuple(turn for turn in TURNS if f'"{turn}"' in (folder / TOKENIZER).read_text(encoding="utf-8"))
    if kind in AUTOREGRESSIVE:
        spoken = NextTokenSamplerConfig(length=length, stop=stop)
        return recipes.checked(AutoregressiveRecipe(data=data, model=built.config, objective=NextTokenConfig(fim_rate=0.0), sampler=spoken))
    chosen: dict[str, Any] = {"order": "random"} if kind in ("mdlm", "bd3lm") else {"temperature": 0.0}
    if isinstance(objective, ScoreConfig):
        chosen = {"commit": "tweedie"}
    elif isinstance(objective, BlockConfig):
        chosen["cache"] = "block"
    uncovered = MaskedSamplerConfig(length=length, stop=stop, **chosen)
    return recipes.checked(DiscreteRecipe(data=data, model=built.config, objective=objective, sampler=uncovered))


def write(folder: Path, recipe: TextRecipe, tokenizer: Tokenizer, model: Transformer) -> str:
    """A folder that ``read`` reads, and ``transformers`` where it has such a network; the model type.

    An autoregressive network is a Llama, Qwen2 or Qwen3. A masked one is a LLaDA; with biases and shifted states a Dream, with q/k-norm an
    SDAR, told a noise level an MDLM. Raises UserError for what none of them has.
    """
    v, config, context = tokenizer.vocabulary, recipe.model, recipe.data.context
    settings = _settings(config, recipe, v.size, context)
    kind, layout = settings["model_type"], model.layout
    if isinstance(layout, BlockCausal):
        if kind not in ("sdar", "mdlm"):
            raise UserError("model", f"attends block by block, which '{kind}' does not", "train with q/k-norm to export")
        settings |= {"block_size": layout.block} | ({"model_type": (kind := "bd3lm")} if kind == "mdlm" else {})
    settings |= {"bos_token_id": v.start, "eos_token_id": v.end, "pad_token_id": v.end}
    settings |= {"mask_token_id": v.mask} if kind not in AUTOREGRESSIVE else {}
    state = exported(model, parts(config, kind))
    if kind in ("mdlm", "bd3lm"):
        state |= told.buffers(config, told.BACKBONE, settings)
    dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
    write_json(folder / CONFIG, {**settings, "torch_dtype": dtype})
    save(state, folder)
    tokenizer.save(folder / TOKENIZER)
    named = {"bos_token": v.start, "eos_token": v.end, "pad_token": v.end} | ({"mask_token": v.mask} if kind not in AUTOREGRESSIVE else {})
    texts = {name: tokenizer.name(i) for name, i in named.items()}
    write_json(folder / TOKENIZER_CONFIG, {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context, **texts})
    return kind


def _settings(c: TransformerConfig, recipe: TextRecipe, size: int, context: int) -> dict[str, Any]:
    if isinstance(recipe, AutoregressiveRecipe):
        return decoder.llama_settings(c, size, context)
    if c.norm == "layer":
        return told.mdlm_settings(c, size, context)
    if c.shift or c.qk_norm:
        kind, name = ("Dream", "qwen2") if c.shift else ("sdar", "qwen3")
        found = decoder.llama_settings(dataclasses.replace(c, shift=False), size, context)
        if found["model_type"] != name:
            raise UserError(
                "model.shift", f"is {str(c.shift).lower()}, q/k-norm is {c.qk_norm} and qkv_bias {c.qkv_bias}", "no layout has these"
            )
        return {**found, "model_type": kind, "architectures": ["DreamModel" if c.shift else "SDARForCausalLM"]}
    return decoder.llada_settings(c, size, context)
