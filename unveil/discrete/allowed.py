"""Which settings of a sampler go together. One table: what does not is refused by name, before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from unveil.config import MaskedSamplerConfig
from unveil.discrete.commit import ADAPTIVE, BLIND, JUMPS
from unveil.errors import UserError
from unveil.nn.layout import Bidirectional
from unveil.schema import check_ranges

Config = MaskedSamplerConfig


class Model(NamedTuple):
    """What the table asks about a network and the chain it was trained on."""

    block: int = 0
    """Of its layout; 0 where every token sees every other."""
    uniform: bool = False
    """Noise turns tokens into other tokens, not into masks."""
    score: bool = False
    """It predicts ratios of probabilities (SEDD)."""
    told: bool = False
    """It is told the noise level."""


class Rule(NamedTuple):
    field: str
    clash: Callable[[Config, Model], bool]
    problem: str
    remedy: str


DEFAULT = Config()
PLAIN = ("order", "window", "cache", "remask", "guidance", "context", "temperature", "top_k", "top_p", "min_p", "end")
"""What a jump of a score model has no use for."""

RULES = (
    Rule(
        "sampler.order",
        lambda c, m: c.commit in BLIND and c.order != "random",
        "this commit rule chooses at random where to commit",
        "take --sampler.order random with it",
    ),
    Rule(
        "sampler.steps",
        lambda c, m: c.commit == "first-hitting" and c.steps > 0,
        "first-hitting takes a step per token",
        "leave steps out, or take --sampler.commit ancestral",
    ),
    Rule(
        "sampler.end",
        lambda c, m: c.commit in BLIND and c.end == "last",
        "the commit rule chooses places before it knows their tokens, so none can wait",
        "take --sampler.end forbid, or another --sampler.commit",
    ),
    Rule(
        "sampler.remask",
        lambda c, m: c.remask == "remdm" and c.commit != "ancestral",
        "ReMDM is an ancestral sampler",
        "take --sampler.commit ancestral --sampler.order random with it",
    ),
    Rule(
        "sampler.remask",
        lambda c, m: c.remask == "confidence" and c.commit not in ("quota", *ADAPTIVE),
        "tokens are covered again by confidence only where a rule can commit more to make up for it",
        "take --sampler.commit quota, threshold, factor or entropy-bound",
    ),
    Rule(
        "sampler.negative",
        lambda c, m: bool(c.negative) and not c.guidance,
        "given without guidance",
        "take --sampler.guidance above 0, or leave it out",
    ),
    Rule(
        "sampler.negative",
        lambda c, m: bool(c.negative) and (m.block > 0 or c.context > 0),
        "another prompt is of another length, which moves blocks and the sliding context",
        "leave it out: guidance then masks the prompt",
    ),
    Rule(
        "sampler.cache",
        lambda c, m: c.cache != "none" and c.guidance > 0,
        "guidance reads two canvases, a cache holds one",
        "take --sampler.cache none, or --sampler.guidance 0",
    ),
    Rule(
        "sampler.cache",
        lambda c, m: c.cache != "none" and c.context > 0,
        "a sliding context moves the positions that a cache has stored",
        "take --sampler.cache none, or leave --sampler.context out",
    ),
    Rule(
        "sampler.cache",
        lambda c, m: c.cache != "none" and m.told,
        "the network is told the noise level, so keys and values of an earlier step are of another level",
        "take --sampler.cache none",
    ),
    Rule(
        "sampler.cache",
        lambda c, m: c.cache in ("prefix", "dual") and m.block > 0,
        "a block model has an exact cache",
        "take --sampler.cache block",
    ),
    Rule(
        "sampler.cache",
        lambda c, m: c.cache == "block" and not m.block,
        "only a block model's finished blocks never change, in this one every token sees every other",
        "take --sampler.cache prefix or dual, which are approximate",
    ),
    Rule(
        "sampler.cache",
        lambda c, m: c.cache in ("prefix", "dual") and not c.window,
        "without windows nothing lies outside to be kept",
        "set --sampler.window, 32 say, or take --sampler.cache none",
    ),
    Rule(
        "sampler.window",
        lambda c, m: m.block > 0 and c.window > 0 and m.block % c.window > 0,
        "windows must divide the model's block",
        "choose a divisor of the block, or leave it out",
    ),
    Rule(
        "sampler.commit",
        lambda c, m: c.commit in JUMPS and not m.score,
        "is for a model of ratios (SEDD), this one predicts tokens",
        "take --sampler.commit quota, threshold or ancestral",
    ),
    Rule(
        "sampler.commit",
        lambda c, m: c.commit not in JUMPS and m.uniform,
        "is for masks, this model's noise has none",
        "take --sampler.commit tweedie or tau-leaping",
    ),
)


def check(config: MaskedSamplerConfig, model: Model) -> None:
    """Raises UserError for a setting outside its range, or for two that do not go together or with the model."""
    check_ranges(config, "sampler")
    for rule in RULES:
        if rule.clash(config, model):
            name = rule.field.removeprefix("sampler.")
            raise UserError(rule.field, f"got {getattr(config, name)!r}: {rule.problem}", rule.remedy)
    if config.commit in JUMPS:
        for name in PLAIN:
            if (value := getattr(config, name)) != getattr(DEFAULT, name):
                raise UserError(f"sampler.{name}", f"got {value!r}: {config.commit} draws all tokens of the canvas at once", "leave it out")


def check_cache(config: MaskedSamplerConfig, network: Any) -> None:
    """Raises UserError where the network has no way to keep keys and values."""
    if config.cache == "none":
        return
    if not hasattr(network, "layout"):
        problem = f"{type(network).__name__} keeps no keys and values"
    elif network.config.shift:
        problem = "the network predicts a token from the one before it, which a cache does not read"
    elif isinstance(network.layout, Bidirectional) and network.layout.window:
        problem = "the network's attention has a window of its own"
    else:
        return
    raise UserError("sampler.cache", f"got {config.cache!r}: {problem}", "take --sampler.cache none")
