"""Other people's language models from a local folder, and ours as such a folder: ``config.json``, safetensors, ``tokenizer.json``.

``config.json`` says by its ``model_type`` whose network it is. Nothing is unpickled but old checkpoints of MDLM's and SEDD's, by
``interop.pickled``; none of the code that lies in such folders is run, and ``transformers`` is not needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
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
from unveil.interop import decoder, deepseek, experts, tokens, told
from unveil.interop.folder import CONFIG, read_json, write_json
from unveil.interop.state import Part, exported, imported, renamed
from unveil.interop.tensors import Some, save, stored
from unveil.nn.layout import Bidirectional, BlockCausal, Causal, Layout
from unveil.nn.routing import Router
from unveil.nn.transformer import Transformer
from unveil.text.vocabulary import Vocabulary

AUTOREGRESSIVE = ("llama", "qwen2", "qwen3", "qwen3_moe", deepseek.KIND)
MASKED, BLOCKS = ("llada", "lladamoe", "Dream", "mdlm"), ("sdar", "sdar_moe", "llada2_moe", "bd3lm")
SCORE = "sedd"
"""Of a folder without a ``model_type``, which names a graph."""
TOLD = ("mdlm", "bd3lm", SCORE)
"""Diffusion transformers, as ``interop.told`` knows them."""
KINDS = (*AUTOREGRESSIVE, *MASKED, *BLOCKS, SCORE)
READERS = {
    "llada": decoder.llada,
    "lladamoe": experts.llada,
    "llada2_moe": experts.llada2,
    SCORE: told.sedd,
    deepseek.KIND: deepseek.config,
}
READERS |= dict.fromkeys(("mdlm", "bd3lm"), told.mdlm) | dict.fromkeys(("qwen3_moe", "sdar_moe"), experts.qwen3)
LIKE = {"Dream": "qwen2", "sdar": "qwen3"}
"""Whose settings the others have."""
BLOCK = {"sdar": 4, "sdar_moe": 4, "llada2_moe": 32, "bd3lm": 1}
"""Tokens of a block where the published settings leave it out."""
UNOPENED = ("qwen2", "qwen3", "qwen3_moe", "sdar", "sdar_moe", "lladamoe", "llada2_moe")
"""Whose texts begin without a start token."""
_DOWNLOAD = "take the whole folder of the same download"


class Foreign(NamedTuple):
    """A language model in our own terms."""

    recipe: TextRecipe
    tokenizer: Tokenizer
    model: Transformer


def recognised(folder: Path) -> bool:
    """Whether a folder looks like one for ``read``: a ``config.json`` that is not of a run of ours; if damaged, by what lies beside it."""
    if not (folder / CONFIG).is_file():
        return False
    try:
        given = read_json(folder / CONFIG, _DOWNLOAD)
    except UserError:
        return folder.name != "final" and (folder / tokens.SETTINGS).is_file()
    return "recipe" not in given and ("model_type" in given or "graph" in given)


def kind_of(given: Mapping[str, Any], source: str) -> str:
    """Which of ``KINDS`` a ``config.json`` describes. Raises UserError for another, by its name."""
    kind = str(given.get("model_type", SCORE if "graph" in given else ""))
    if kind == "llada" and given.get("num_experts"):
        kind = "lladamoe"
    if kind not in KINDS:
        raise UserError(source, f"model_type is '{kind}', a network that is not read here", nearest(kind, KINDS))
    return kind


def network(given: Mapping[str, Any], source: str) -> tuple[Transformer, list[Part], int]:
    """The network of a ``config.json``, on the meta device, the names of its weights and its longest context. Raises UserError."""
    kind = kind_of(given, source)
    if kind in READERS:
        config, size, context = READERS[kind](given, source)
    else:
        config, size, context = decoder.llama(given, LIKE.get(kind, kind), source)
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
    if kind == deepseek.KIND:
        return built, deepseek.parts(config, bool(given.get("rope_interleave", True))), context
    return built, parts(config, kind), context


def parts(config: TransformerConfig, kind: str) -> list[Part]:
    """The names of the weights of one of ``KINDS``, as they are written."""
    if kind == deepseek.KIND:
        return deepseek.parts(config)
    if kind in TOLD:
        return told.parts(config, "" if kind == SCORE else told.BACKBONE)
    return decoder.parts(config, {"llada": decoder.LLADA, "llada2_moe": decoder.LLADA2}.get(kind, decoder.LLAMA))


def _block(given: Mapping[str, Any], kind: str, source: str) -> int:
    block = given.get("block_size", BLOCK[kind])
    if type(block) is not int or block < 1:
        raise UserError(source, f"block_size is {block}, a whole number above 0 is wanted", "correct the file")
    return block


Fill = Callable[[Transformer, Mapping[str, torch.Tensor]], None]
"""Gives a network on the meta device its weights, from those under our names, which are read when they are asked for."""


def read(folder: Path, fill: Fill | None = None) -> Foreign:
    """The model of a folder, its weights in the dtype in which they lie there, each read once into its place; or as ``fill`` puts them.
    Raises UserError as ``described``, and for weights that are pickled, missing, left over or misshapen."""
    found = described(folder)
    names = network(_given(folder), str(folder / CONFIG))[1]
    if fill is None:
        _fill(found.model, names, folder)
    else:
        fill(found.model, _renamed(found.model, names, folder))
    return found._replace(model=found.model.eval())


def described(folder: Path) -> Foreign:
    """The model of a folder without its weights: on the meta device.

    Raises:
        UserError: a file is missing or corrupted, weights are pickled, missing, left over or misshapen, a model type or a setting is not
            supported, there is no mask token, or the tokenizer has more tokens than the network.
    """
    source, given = str(folder / CONFIG), _given(folder)
    kind = kind_of(given, source)
    built, _, context = network(given, source)
    if built.config.time_conditioning and isinstance(built.layout, BlockCausal):
        problem = "its blocks are told the noise level, which no sampler here tells them"
        raise UserError(source, problem, "take one without time conditioning")
    size = len(built.embedding.weight)
    masked = kind not in AUTOREGRESSIVE and not (kind == SCORE and told.uniform(given))
    tokenizer = tokens.read(folder, given, size, masked=masked, last=kind in TOLD, opens=kind not in UNOPENED)
    return Foreign(_recipe(folder, kind, given, built, context, tokenizer), tokenizer, built)


def _given(folder: Path) -> dict[str, Any]:
    """The settings of a folder, as far as its weights bear them out."""
    given: dict[str, Any] = read_json(folder / CONFIG, _DOWNLOAD)
    return deepseek.without_missing_depths(given, stored(folder)[0]) if given.get("model_type") == deepseek.KIND else given


def named(folder: Path) -> Mapping[str, torch.Tensor]:
    """The weights of a folder under our names, read when they are asked for. Raises UserError as ``read``."""
    built, names, _ = network(_given(folder), str(folder / CONFIG))
    return _renamed(built, names, folder)


def _renamed(built: Transformer, names: list[Part], folder: Path) -> Mapping[str, torch.Tensor]:
    found, file = _found(built, names, folder)
    return renamed(built, names, found, str(file))


def _found(built: Transformer, names: list[Part], folder: Path) -> tuple[Mapping[str, torch.Tensor], Path]:
    """The weights of a folder by its own names, without what is no weight of a network, and the file to name in messages."""
    found, file = stored(folder)
    found = told.without_buffers(found, built.config, str(file))
    if built.config.latent.width:
        found = deepseek.plain(found, built.config, str(file))
    if built.config.tie and (twice := _tied(names, found)):
        found = Some(found, [name for name in found if name not in twice])
    return found, file


def _fill(built: Transformer, names: list[Part], folder: Path) -> None:
    """Weights into a network that has none yet. Raises UserError."""
    found, file = _found(built, names, folder)
    first = next((found[name] for part in names for name in part.theirs if name in found), None)
    built.to(torch.float32 if first is None else first.dtype).to_empty(device="cpu")
    for router in (module for module in built.modules() if isinstance(module, Router)):
        router.counts.zero_()
        router.bias = None if router.bias is None else router.bias.float()  # it decides between scores that are close
    if built.config.tie:
        built.head.weight = built.embedding.weight  # type: ignore[assignment]
    imported(built, names, found, str(file))


def _tied(names: list[Part], found: Mapping[str, torch.Tensor]) -> set[str]:
    """A copy of the embedding that some files hold for a head that is tied to it."""
    embedding = next(name for part in names if part.ours == "embedding.weight" for name in part.theirs)
    heads = {decoder.LLAMA.head, decoder.LLADA.head}
    return {
        name for head in heads if (name := f"{head}.weight") in found and embedding in found and torch.equal(found[name], found[embedding])
    }


def _recipe(folder: Path, kind: str, given: Mapping[str, Any], built: Transformer, context: int, tokenizer: Tokenizer) -> TextRecipe:
    """What of a recipe only training needs is what is usual; there is no data."""
    read_by = TokenizerConfig(kind="file", path=str((folder / tokens.TOKENIZER).resolve()))
    data = TextDataConfig(sources=(SourceConfig(kind="text"),), tokenizer=read_by, context=context, packing_length=context)
    length, stop = min(128, context // 2), tokens.turns(tokenizer)
    if kind in AUTOREGRESSIVE:
        spoken = NextTokenSamplerConfig(length=length, stop=stop)
        return recipes.checked(AutoregressiveRecipe(data=data, model=built.config, objective=NextTokenConfig(fim_rate=0.0), sampler=spoken))
    objective: MaskedConfig | BlockConfig | ScoreConfig = MaskedConfig(schedule="log-linear" if kind == "mdlm" else "linear")
    chosen: dict[str, Any] = {"order": "random"} if kind in ("mdlm", "bd3lm") else {"temperature": 0.0}
    if isinstance(built.layout, BlockCausal):
        objective = BlockConfig(block=built.layout.block)
        chosen["cache"] = "block"
    if kind == SCORE:
        objective, chosen = told.objective(given, str(folder / CONFIG)), {"commit": "tweedie"}
    uncovered = MaskedSamplerConfig(length=length, stop=stop, **chosen)
    return recipes.checked(DiscreteRecipe(data=data, model=built.config, objective=objective, sampler=uncovered))


def write(folder: Path, recipe: TextRecipe, tokenizer: Tokenizer, model: Transformer, in_fp8: bool = False) -> str:
    """A folder that ``read`` reads, and ``transformers`` where it has such a network; the model type. ``in_fp8`` writes the matrices of a
    DeepSeek-V3 in blocks of FP8.

    An autoregressive network is a Llama, Qwen2 or Qwen3, with latent attention a DeepSeek-V3. A masked one is a LLaDA; with biases and
    shifted states a Dream, with q/k-norm an SDAR, told a noise level an MDLM, of scores a SEDD; with experts the kin of these that has
    them.

    Raises UserError for what none of them has.
    """
    v, config, context = tokenizer.vocabulary, recipe.model, recipe.data.context
    kind, settings = _settings(config, recipe, v, context)
    layout = model.layout
    if in_fp8:
        if kind != deepseek.KIND:
            raise UserError("--to", f"'hf-fp8' is a form of DeepSeek-V3, this is '{kind}'", "take hf, or train with latent attention")
        settings |= deepseek.quantisation()
    if isinstance(layout, BlockCausal):
        if kind not in ("sdar", "sdar_moe", "llada2_moe", "mdlm"):
            raise UserError("model", f"attends block by block, which '{kind}' does not", "train with q/k-norm to export")
        settings |= {"block_size": layout.block} | ({"model_type": (kind := "bd3lm")} if kind == "mdlm" else {})
    specials = {"bos": v.start, "eos": v.end, "pad": v.end} | ({} if v.mask < 0 or kind in AUTOREGRESSIVE else {"mask": v.mask})
    settings |= {f"{name}_token_id": index for name, index in specials.items()}
    state = exported(model, parts(config, kind))
    if kind in TOLD:
        state |= told.buffers(config, "" if kind == SCORE else told.BACKBONE, settings)
    if kind == deepseek.KIND:
        state = deepseek.stored(state, config, in_fp8)
    dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
    write_json(folder / CONFIG, {**settings, "torch_dtype": dtype})
    save(state, folder)
    tokenizer.save(folder / tokens.TOKENIZER)
    texts = {f"{name}_token": tokenizer.name(index) for name, index in specials.items()}
    write_json(folder / tokens.SETTINGS, {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context, **texts})
    return kind


def _settings(c: TransformerConfig, recipe: TextRecipe, v: Vocabulary, context: int) -> tuple[str, dict[str, Any]]:
    """One of ``KINDS``, and its settings."""
    if isinstance(recipe, DiscreteRecipe) and isinstance(recipe.objective, ScoreConfig):
        return SCORE, told.sedd_settings(c, recipe.objective, v, context)
    if c.latent.width and isinstance(recipe, AutoregressiveRecipe):
        found = deepseek.settings(c, v.size, context)
    elif c.experts.routed and c.norm == "rms":
        kind = "qwen3_moe" if isinstance(recipe, AutoregressiveRecipe) else "llada2_moe"
        if isinstance(recipe, DiscreteRecipe) and c.experts.gate == "softmax":
            kind = "sdar_moe" if isinstance(recipe.objective, BlockConfig) else "lladamoe"
        found = experts.settings(c, kind, v.size, context)
    elif isinstance(recipe, AutoregressiveRecipe):
        found = decoder.llama_settings(c, v.size, context)
    elif c.norm == "layer":
        found = told.mdlm_settings(c, v.size, context)
    elif c.shift or c.qk_norm:
        kind, name = ("Dream", "qwen2") if c.shift else ("sdar", "qwen3")
        found = decoder.llama_settings(dataclasses.replace(c, shift=False), v.size, context)
        if found["model_type"] != name:
            raise UserError(
                "model.shift", f"is {str(c.shift).lower()}, q/k-norm is {c.qk_norm} and qkv_bias {c.qkv_bias}", "no layout has these"
            )
        found |= {"model_type": kind, "architectures": ["DreamModel" if c.shift else "SDARForCausalLM"]}
    else:
        found = decoder.llada_settings(c, v.size, context)
    return found["model_type"], found
