"""The sections of recipes for discrete diffusion: what it is trained on and how it is sampled. Free of torch, as ``unveil.config``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from unveil.ranges import Count, Natural, NonNegative, Positive, Range, Share


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """What the three objectives share."""

    t_min: Share = 1e-3
    t_max: Share = 1.0
    """Times are drawn from U[t_min, t_max], stratified over the samples (of ``block``: over the blocks)."""
    random_length: Share = 0.01
    """Share of samples cut to a length drawn from U{1..length} (LLaDA)."""
    end_padding: Natural = 0
    """Lengthen the last piece of each document to this many tokens with end tokens, which are noised and learned as the rest (LLaDA's
    fine-tuning: so a model of a fixed canvas learns where to stop); 0 does not. An answer of a conversation is lengthened to a number of
    tokens drawn up to this one."""
    anneal: Share = 0.0
    """Share of the steps in which attention goes from causal to bidirectional: edges to later tokens open by chance, ever more of them
    (DiffuLLaMA). 0 sees both sides from the first step; blocks never do."""


@dataclass(frozen=True, kw_only=True)
class MaskedConfig(NoiseConfig):
    kind: Literal["masked"] = "masked"
    schedule: Literal["linear", "log-linear", "cosine"] = "linear"
    times: Literal["uniform", "importance"] = "uniform"
    """``importance`` draws them so that the weight of ``bound`` is the same at all: the logarithm of the mask rate is uniform (MDLM)."""
    weight: Literal["bound", "flat"] = "bound"
    """Weight of a masked token's loss: -alpha'/(1 - alpha), which makes the loss the likelihood bound, or 1."""
    normalisation: Literal["token", "sequence"] = "token"
    """Divide by all tokens of the step, or each sequence by its own length and then by the number of sequences."""


@dataclass(frozen=True, kw_only=True)
class BlockConfig(NoiseConfig):
    """Blocks left to right, each uncovered as a masked model does: every block has a time of its own (BD3-LM)."""

    kind: Literal["block"] = "block"
    block: Count = 4
    """Tokens of a block: 1 is autoregression, the context masked diffusion."""
    schedule: Literal["linear", "log-linear", "cosine"] = "linear"
    weight: Literal["bound", "flat"] = "bound"
    """As of ``masked``."""
    normalisation: Literal["token", "sequence"] = "token"
    clip: bool = False
    """Search the interval of times in which the loss varies least, anew at each evaluation, and train in it; until then, t_min to t_max."""
    growth: tuple[Count, ...] = ()
    """Smaller blocks that training begins with, each dividing the next and the last ``block``: [1, 4] begins as autoregression. Scored and
    sampled is ``block``."""
    growth_share: Annotated[float, Range(0, 1, open=True)] = 0.5
    """Share of the steps that these take, in equal parts."""


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(NoiseConfig):
    """Ratios of probabilities, learned by score entropy (SEDD)."""

    kind: Literal["score"] = "score"
    chain: Literal["absorb", "uniform"] = "absorb"
    """Noise turns a token into the mask, or into any token."""
    schedule: Literal["log-linear", "geometric"] = "log-linear"
    """The paper takes ``geometric`` for ``uniform``."""
    sigma_min: Positive = 1e-4
    sigma_max: Positive = 20.0
    """Total noise at t = 0 and 1, of ``geometric``."""


@dataclass(frozen=True, kw_only=True)
class MaskedSamplerConfig:
    length: Count = 128
    """New tokens; the canvas is the prompt and this many masks."""
    steps: Natural = 0
    """Unmasking steps in all; 0 means one per new token. An adaptive commit rule takes no more than these."""
    order: Literal["random", "confidence", "entropy", "margin", "left-to-right"] = "confidence"
    commit: Literal["quota", "threshold", "factor", "entropy-bound", "first-hitting", "ancestral", "tau-leaping", "tweedie"] = "quota"
    """How many tokens a step commits: an even share, all that are sure enough (the next three), one at a time, each mask by chance, or as a
    score model jumps (the last two)."""
    threshold: NonNegative = 0.9
    """Confidence that ``threshold`` asks for."""
    factor: NonNegative = 1.0
    """Of ``factor``: the k-th surest token needs a confidence of 1 - factor / (k + 1)."""
    entropy_bound: NonNegative = 0.1
    """Nats that ``entropy-bound`` lets the tokens of a step share."""
    window: Natural = 0
    """Tokens uncovered left to right at a time (semi-autoregressive); 0 means the whole canvas, of a block model its block."""
    cache: Literal["none", "prefix", "dual", "block"] = "none"
    """Keys and values kept while a window is open: of what precedes it, of all around it (both approximate), or a block model's finished
    blocks (exact)."""
    remask: Literal["none", "remdm", "confidence"] = "none"
    """Cover committed tokens again: by chance, with ``ancestral``, or those committed with little confidence."""
    remask_rate: Share = 0.2
    """Of ``remdm``: share of the highest rate that leaves the law of the masks as it is."""
    remask_below: Share = 0.3
    """Of ``confidence``: probability below which a token is covered again, once."""
    guidance: NonNegative = 0.0
    """Strength of classifier-free guidance; above 0 the canvas is read twice, once without what was given."""
    negative: str = ""
    """What guidance leads away from; empty means the prompt masked."""
    context: Natural = 0
    """Tokens the network sees at once, for texts beyond its context: the last ones slide along; 0 means the whole canvas."""
    temperature: NonNegative = 1.0
    top_k: Natural = 0
    top_p: Annotated[float, Range(0, 1, open=True)] = 1.0
    min_p: Share = 0.0
    end: Literal["free", "forbid", "last"] = "free"
    """The end token: as the model says, never, or committed only when nothing else is left (zero confidence)."""
    stop: tuple[str, ...] = ()
