"""The contract that every family keeps, and the small types that cross it.

``training``, ``evaluation``, ``report`` and ``serving`` know a family by this file alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor, nn

Noise = Mapping[str, Tensor]
"""What the loader drew for a batch: per-sequence tensors ``[N]`` and per-token tensors ``[T]``, by name."""


class Term(NamedTuple):
    """A part of a loss: the step's loss is the sum over terms of ``weight * sum / denominator``, and the denominator comes
    from ``Family.targets``. A term of weight 0 is a measurement."""

    sum: Tensor
    weight: float = 1.0


@dataclass(frozen=True)
class Request:
    """One thing to uncover.

    ``tokens`` is the canvas as it is known (1-D int64, start token included). A masked model uncovers every mask token in it and
    appends ``length`` more; an autoregressive model continues it by at most ``length`` tokens.
    """

    tokens: np.ndarray[Any, np.dtype[np.int64]]
    length: int
    seed: int = 0
    negative: np.ndarray[Any, np.dtype[np.int64]] | None = None
    """What guidance leads away from, in the place of ``tokens``."""


@dataclass(frozen=True)
class ImageRequest:
    """One image to uncover, ``[C, H, W]``, from nothing but noise.

    ``label`` is its class and ``embedding`` ``[E]`` that of its text, None where it is not told. ``latent`` takes the place of the noise
    that ``seed`` makes for the first state, standard normal. Where ``mask`` ``[H, W]`` (bool) is true, ``known`` (in [-1, 1]) is given
    and stays.
    """

    shape: tuple[int, int, int]
    seed: int = 0
    label: int | None = None
    latent: np.ndarray[Any, np.dtype[np.float32]] | None = None
    known: np.ndarray[Any, np.dtype[np.float32]] | None = None
    mask: np.ndarray[Any, np.dtype[np.bool_]] | None = None
    embedding: np.ndarray[Any, np.dtype[np.float32]] | None = None


@dataclass(frozen=True)
class StreamRequest:
    """One stream to follow, its features ``[L, F]`` chunk by chunk."""

    features: np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Row:
    """One request as it stands after a step. Arrays are copies: a later step does not change them."""

    request: int
    tokens: np.ndarray[Any, np.dtype[np.int64]]
    """The canvas, start token and prompt included; the mask token where nothing is known yet."""
    committed_at: np.ndarray[Any, np.dtype[np.int64]]
    """The step at which each token was committed; 0 for what was given, -1 for what is still covered."""
    confidence: np.ndarray[Any, np.dtype[np.float32]]
    """Probability of each token when it was committed; 1 for what was given."""
    final: bool
    evaluations: int = 0
    """Passes of the network over the row so far (NFE), where the sampler counts them."""
    computed: int = 0
    """Tokens in those passes."""
    reused: int = 0
    """Tokens that were attended to out of a cache in those passes."""


@dataclass(frozen=True)
class ImageRow:
    """One image as it stands after a step. A later step does not change it."""

    request: int
    image: np.ndarray[Any, np.dtype[np.float32]]
    """The state ``[C, H, W]``, noise and all; of a final row the image."""
    final: bool
    see: Callable[[], np.ndarray[Any, np.dtype[np.float32]]] = field(repr=False)

    @cached_property
    def denoised(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The image ``[C, H, W]`` that the network made out in this step; computed when asked for."""
        return self.see()


@dataclass(frozen=True)
class StreamRow:
    """What a stream's newest chunk shows, and what is to be expected."""

    request: int
    chunk: int
    """Counted from 0."""
    present: np.ndarray[Any, np.dtype[np.float32]]
    """Probability of each class ``[C]``."""
    future: np.ndarray[Any, np.dtype[np.float32]]
    """The same of the K chunks ahead, ``[K, C]``."""
    final: bool


class Snapshot(NamedTuple):
    """All live rows after a step; rows that became final in this step are among them for the last time."""

    step: int
    rows: list[Any]
    """``Row`` of a text, ``ImageRow`` of an image, ``StreamRow`` of a stream."""


class State(Protocol):
    """What a sampler carries between steps. Rows can be kept, dropped and joined, for continuous batching."""

    @property
    def live(self) -> int: ...
    def select(self, rows: Sequence[int]) -> State: ...
    def join(self, other: Any) -> State: ...


@dataclass(frozen=True)
class Curve:
    title: str
    x: Sequence[float]
    y: Mapping[str, Sequence[float]]
    x_label: str = ""
    y_label: str = ""
    section: str = "Training"
    """Under which heading of a page it stands."""
    log_x: bool = False
    """Equal ratios of x stand equally far apart."""


@dataclass(frozen=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Bars:
    """Values side by side, with their standard errors; NaN where there is none."""

    title: str
    names: Sequence[str]
    values: Sequence[float]
    errors: Sequence[float]


@dataclass(frozen=True)
class TokenTimeline:
    """A text as it was uncovered: pieces in canvas order and the step at which each was committed."""

    title: str
    pieces: Sequence[str]
    committed_at: Sequence[int]
    confidence: Sequence[float]
    note: str = ""
    """What it cost, say."""
    steps: Sequence[Sequence[int]] = field(default_factory=list)
    """After each step, from the first: tokens that stand, evaluations, tokens computed in them and tokens out of a cache, all so far; empty
    where nobody counted."""


@dataclass(frozen=True)
class ImageGrid:
    """Images side by side, as PNG files in base64: one sheet, or one for each step that a slider moves over."""

    title: str
    sheets: Sequence[str]
    labels: Sequence[str]
    """What each sheet shows."""
    width: int
    height: int
    """Pixels of a sheet."""
    note: str = ""
    drawn: bool = False
    """Lines and dots, to be seen at their own size, and no pixels to be told apart."""


View = Curve | Table | Bars | TokenTimeline | ImageGrid


class Family(Protocol):
    """One way of hiding data and of uncovering it. N sequences, T tokens."""

    def build(self) -> nn.Module:
        """The network, every parameter of it, initialised from torch's default generator."""

    def transform(self, tokens: np.ndarray[Any, Any], rng: np.random.Generator) -> np.ndarray[Any, Any]:
        """What training does to a sequence before it is packed (fill-in-the-middle, a random length, end tokens
        after it); never longer than the context."""

    def draw(self, sample_id: int, epoch: int, length: int, rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
        """The noise of one sequence: arrays of length 1 or ``length`` (of an image: 1). The loader concatenates them into a ``Noise``."""

    def targets(self, batch: Any, noise: Noise) -> dict[str, float]:
        """The denominator of each term of ``loss``, known without a forward."""

    def loss(self, model: nn.Module, batch: Any, noise: Noise) -> dict[str, Term]:
        """The terms of the loss; sums over the batch, in float32 or wider."""

    def begin(self, model: nn.Module, requests: Any) -> State:
        """A state with one row per request: a sequence of ``Request``, of ``ImageRequest`` or of ``StreamRequest``."""

    def step(self, model: nn.Module, state: Any) -> Snapshot:
        """Every live row moves on by one step; rows that are done leave the state."""

    def log_likelihood(self, model: nn.Module, batch: Any, draws: int, seed: int, counted_T: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Per sequence ``[N]`` float64: log p in nats (or a lower bound) of the counted tokens, and its standard error over the draws."""

    def views(self, run: Any) -> list[View]:
        """What a report shows of a run of this family beside the loss."""


Decode = Callable[[Sequence[int]], str]
