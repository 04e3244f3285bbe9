"""The sections of recipes for streams: networks, objective, and what is told while a stream runs. Free of torch, as ``unveil.config``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unveil.ranges import Count, Natural, NonNegative, Positive, Share


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """What every network of the family has: features in, a decoder of the future, classes out. The family fills in what is 0."""

    features: Natural = 0
    """Width of a chunk's features; 0 means as the data has."""
    classes: Natural = 0
    """The background, which is class 0, included; 0 means as the data has."""
    ignored: tuple[Natural, ...] = ()
    """Classes that have a logit but no probability, as THUMOS' Ambiguous (21)."""
    width: Count = 1024
    depth: Count = 3
    dropout: Share = 0.1
    """Of what a layer adds and within the feed-forward; the weights of attention are not dropped."""
    horizon: Natural = 8
    """Chunks ahead, each a query of the decoder; 0 leaves the decoder out."""
    decoder_depth: Count = 5
    decoder_heads: Count = 4
    decoder_hidden: Natural = 0
    """Width of the decoder's feed-forward; 0 means ``width``."""
    decoder_causal: bool = True
    """A query attends to itself and to those of nearer chunks only."""
    query_positions: Literal["added", "unread"] = "added"
    """Learned vectors added to the queries. The released OadTR makes them and never reads them: ``unread`` keeps its weights' shapes."""
    joined: bool = True
    """The present is told from the mean of the decoded future too; without, it can be asked for alone, at a fraction of the cost."""


@dataclass(frozen=True, kw_only=True)
class OadTRConfig(DetectorConfig):
    """OadTR (Wang et al. 2021). The defaults are its paper's; ``streams.oadtr`` names the released code's beside them."""

    kind: Literal["oadtr"] = "oadtr"
    steps: Count = 64
    """Chunks of history, the present included."""
    heads: Count = 8
    decoder_heads: Count = 8
    decoder_causal: bool = False
    hidden: Natural = 0
    """Width of the encoder's feed-forward; 0 means ``width``."""
    task_token: bool = True
    """A learned token behind the history reads the present off; without it the newest chunk does."""


@dataclass(frozen=True, kw_only=True)
class CausalConfig(DetectorConfig):
    """A causal transformer with rotary positions and a sliding window, which keys and values in a ring serve for ever."""

    kind: Literal["causal"] = "causal"
    steps: Count = 64
    """Chunks of history, the present included, that a score depends on at the most."""
    heads: Count = 8
    hidden: Natural = 0
    """Width of the feed-forward; 0 means 2/3 of the width, rounded up to a multiple of 64: as many weights as OadTR's."""
    window: Natural = 0
    """Chunks before its own that a layer reaches back; 0 means as many as ``steps`` leaves each layer and the decoder."""
    rope_theta: Positive = 10000.0
    joined: bool = False


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig(DetectorConfig):
    """A gated recurrent network trained on the last step of each window (An et al. 2023, MiniROAD)."""

    kind: Literal["recurrent"] = "recurrent"
    steps: Count = 64
    """Chunks of a training window; a stream is followed from its first chunk on."""
    depth: Count = 1
    decoder_depth: Count = 1
    joined: bool = False


StreamModelConfig = OadTRConfig | CausalConfig | RecurrentConfig


@dataclass(frozen=True, kw_only=True)
class StreamObjectiveConfig:
    future_weight: NonNegative = 0.5
    """Of the future's cross-entropy beside the present's."""


@dataclass(frozen=True, kw_only=True)
class StreamSamplerConfig:
    """How a stream is told."""

    start: Share = 0.5
    """An event begins when its class reaches this probability,"""
    stop: Share = 0.3
    """and ends when it falls below this."""
    futures: bool = True
    """Tell the chunks ahead too."""


@dataclass(frozen=True, kw_only=True)
class StreamDataConfig:
    kind: Literal["synth-stream", "sprites", "folder"] = "synth-stream"
    path: str = ""
    """Of a ``folder`` of features."""
    batch: Count = 128
    """Windows in a micro-batch."""
    workers: Natural = 0
    """Processes that build batches ahead of the trainer; the batches are the same at any number."""
