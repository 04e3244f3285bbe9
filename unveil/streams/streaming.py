"""How it is uncovered: a chunk of each of many streams at a time, scores at once.

The exact mode (OadTR) equals the batch form on the last ``steps`` chunks at every step, from the first; the cached mode (the causal
network) and the recurrent one equal theirs on the whole stream.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unveil.errors import UserError
from unveil.streams.detector import Detector, scored
from unveil.streams.steppers import Stepper, stepper_of

StreamId = Hashable


class Scores(NamedTuple):
    """Probabilities, float32 or wider: of the present ``[B, C]`` and of the K chunks ahead ``[B, K, C]``; 0 for ignored classes."""

    present_BC: Tensor
    future_BKC: Tensor


@dataclass
class Streams:
    """What is known of S streams: the rings of a stepper, and how many chunks each stream has had."""

    rings: dict[str, Tensor]
    seen: list[int]

    @staticmethod
    def empty(stepper: Stepper, count: int) -> Streams:
        return Streams(stepper.rings(count), [0] * count)

    @torch.no_grad()
    def advance(self, stepper: Stepper, rows: Sequence[int], features_BF: Tensor) -> Scores:
        """A chunk of each of the streams ``rows``, all different."""
        ignored, like = stepper.network.settings.ignored, stepper.network.enter.weight
        logits = stepper.step(self.rings, rows, [self.seen[row] for row in rows], features_BF.to(like.device, stepper.network.dtype))
        for row in rows:
            self.seen[row] += 1
        return Scores(*(scored(values, ignored).softmax(-1) for values in logits))

    def select(self, rows: Sequence[int]) -> Streams:
        """These streams, in this order, on storage of their own."""
        return Streams({name: ring[list(rows)] for name, ring in self.rings.items()}, [self.seen[row] for row in rows])

    def join(self, other: Streams) -> Streams:
        """These streams and then the other's."""
        return Streams({name: torch.cat((ring, other.rings[name])) for name, ring in self.rings.items()}, self.seen + other.seen)


def prepared(network: Detector, dtype: torch.dtype | None = None) -> Detector:
    """The network in evaluation mode, its weights in the dtype that it computes in (or in another): itself where it is so, else a copy."""
    dtype = dtype or network.dtype
    if not network.training and network.dtype == network.enter.weight.dtype == dtype:
        return network
    own = copy.deepcopy(network).eval().to(dtype)
    own.compute_dtype = dtype
    return own


class Streamer:
    """Many streams through one network.

    Args:
        network: trained; later changes of its weights may or may not be followed.
        streams: that can be open at once. What is kept of them is allocated here, once.
        dtype: of weights, rings and arithmetic; the network's own if None.
        futures: tell the chunks ahead too. Without, a network whose present does not hang on them (``joined`` false) skips the decoder.

    Raises UserError where ``streams`` is less than 1.
    """

    def __init__(self, network: Detector, streams: int = 1, *, dtype: torch.dtype | None = None, futures: bool = True) -> None:
        if streams < 1:
            raise UserError("streams", f"got {streams}", "allow at least 1")
        self.network = prepared(network, dtype)
        self.stepper = stepper_of(self.network, futures)
        self._streams = Streams.empty(self.stepper, streams)
        self._ids: list[StreamId | None] = [None] * streams
        self._rows: dict[StreamId, int] = {}

    @property
    def open(self) -> dict[StreamId, int]:
        """The open streams and how many chunks each has had."""
        return {stream: self._streams.seen[row] for stream, row in self._rows.items()}

    def push(self, stream_ids: Sequence[StreamId], features: Tensor | np.ndarray[Any, Any]) -> Scores:
        """Take one chunk of each of these streams.

        Args:
            stream_ids: who they are; a new name opens a stream.
            features: ``[B, F]``, in the same order.

        Returns:
            Their scores, in the same order.

        Raises:
            UserError: no stream, or one twice; more than there is room for; features of another width or number, or not finite.
                Nothing has been taken then.
        """
        features_BF = torch.as_tensor(features)
        self._check(stream_ids, features_BF)
        return self._streams.advance(self.stepper, [self._row(stream) for stream in stream_ids], features_BF)

    def reset(self, stream_ids: Iterable[StreamId] | None = None) -> None:
        """Forget these streams, or all: the next chunk of one is its first. Raises UserError for a stream that is not open."""
        for stream in list(self._rows) if stream_ids is None else list(stream_ids):
            if stream not in self._rows:
                raise UserError("stream", f"'{stream}' is not open", "reset one that has been pushed")
            row = self._rows.pop(stream)
            self._ids[row], self._streams.seen[row] = None, 0

    def state_dict(self) -> dict[str, Any]:
        """All that is known of the open streams, on storage of its own."""
        rows = list(self._rows.values())
        kept = self._streams.select(rows)
        return {"streams": list(self._rows), "seen": kept.seen, "rings": kept.rings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``; what was open here is forgotten.

        Raises UserError for the state of another network, or too many streams.
        """
        streams, seen, rings = state["streams"], state["seen"], state["rings"]
        own = self._streams.rings
        if len(streams) > len(self._ids):
            raise UserError("streams", f"the state holds {len(streams)}, there is room for {len(self._ids)}", "allow as many")
        shapes = [{name: (ring.shape[1:], ring.dtype) for name, ring in held.items()} for held in (own, rings)]
        if shapes[0] != shapes[1]:
            raise UserError("streams", "the state was saved with another network, dtype or choice of futures", "load it with the same")
        self.reset()
        self._rows = {stream: row for row, stream in enumerate(streams)}
        for row, stream in enumerate(streams):
            self._ids[row], self._streams.seen[row] = stream, seen[row]
        for name, ring in rings.items():
            own[name][: len(streams)] = ring

    def _row(self, stream: StreamId) -> int:
        if stream not in self._rows:
            row = self._ids.index(None)
            self._ids[row], self._rows[stream] = stream, row
        return self._rows[stream]

    def _check(self, stream_ids: Sequence[StreamId], features_BF: Tensor) -> None:
        if not stream_ids:
            raise UserError("stream", "none is pushed", "push a chunk of one stream at least")
        if len(set(stream_ids)) < len(stream_ids):
            twice = next(stream for i, stream in enumerate(stream_ids) if stream in stream_ids[:i])
            raise UserError("stream", f"'{twice}' is pushed twice in one step", "push one chunk of each stream at a time")
        wanted = (len(stream_ids), self.network.settings.features)
        if features_BF.shape != wanted:
            raise UserError(
                "features", f"got shape {list(features_BF.shape)}, wanted {list(wanted)}", "use the extractor it was trained with"
            )
        if not bool(features_BF.isfinite().all()):
            broken = stream_ids[int((~features_BF.isfinite()).any(1).nonzero()[0])]
            raise UserError("features", f"of stream '{broken}' are not finite", "leave the chunk out, or look at the extractor")
        new = sum(stream not in self._rows for stream in stream_ids)
        if len(self._rows) + new > len(self._ids):
            problem = f"{len(self._rows) + new} streams, there is room for {len(self._ids)}"
            raise UserError("streams", problem, "reset those that ended, or allow more")
