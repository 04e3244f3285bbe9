"""One chunk of each of B streams through a network: what it keeps of a stream, and how a step reads and writes it.

All that is kept lies in rings with a row for each stream, made once; a step writes one slot of a row, and nothing is shifted or grows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from unveil.nn.self_attention import Slots
from unveil.nn.transformer import Block
from unveil.streams.causal import CausalDetector
from unveil.streams.detector import Detector, Logits
from unveil.streams.folded import Absorbed, FoldedDecoder
from unveil.streams.oadtr import OadTR
from unveil.streams.recurrent import RecurrentDetector

Network = TypeVar("Network", bound=Detector, covariant=True)


class Stepper(Protocol):
    """A network as it streams, in evaluation mode."""

    @property
    def network(self) -> Detector: ...

    def rings(self, streams: int) -> dict[str, Tensor]:
        """What is kept of so many streams, the stream first in every tensor."""

    def step(self, rings: Mapping[str, Tensor], rows: Sequence[int], seen: Sequence[int], features_BF: Tensor) -> Logits:
        """Take a chunk of each of the streams ``rows``, which have had ``seen`` before it; writes their rows of ``rings``."""


def stepper_of(network: Detector, futures: bool = True) -> Stepper:
    """Raises ValueError for a network of another kind."""
    match network:
        case OadTR():
            return ExactStepper(network, futures)
        case CausalDetector():
            return CachedStepper(network, futures)
        case RecurrentDetector():
            return RecurrentStepper(network, futures)
    raise ValueError(f"{type(network).__name__} is no network that streams")


class _Steps:
    """What the three have in common: projection, folded decoder, classes."""

    def __init__(self, network: Detector, futures: bool) -> None:
        self.futures, self.dtype = futures, network.dtype
        decodes = network.decoder is not None and (futures or network.joins)
        self.decoder = FoldedDecoder(network.decoder, self.dtype) if network.decoder is not None and decodes else None

    def tell(self, network: Detector, present_BD: Tensor, answer: Callable[[int, Tensor], Tensor] | None) -> Logits:
        """``answer`` is the cross-attention of the decoder's layers, None where there is nothing to decode."""

        def decoded() -> Tensor | None:
            return None if self.decoder is None or answer is None else self.decoder(len(present_BD), answer)

        return network.classify(present_BD, decoded, self.futures)


class ExactStepper(_Steps):
    """OadTR over the last chunks of a stream, as its batch form computes it.

    Positions are added before a bidirectional encoder, so every token changes at every step. What does not is the projection of a chunk,
    which the ring keeps. Slots are left where they are: the encoder does not ask in which order its tokens lie, only which position
    each has.
    """

    def __init__(self, network: OadTR, futures: bool) -> None:
        super().__init__(network, futures)
        self.network, self.steps = network, network.config.steps
        positions = network.positions.detach().to(self.dtype)
        chunks = positions[: self.steps]
        self.turned = torch.cat((chunks, chunks))
        """Positions of the slots 0, 1, ... where the newest chunk lies in slot s begin at row ``steps`` - 1 - s."""
        self.task = None if network.token is None else network.token.detach().to(self.dtype) + positions[-1:]
        self.canvas = self.turned.new_empty(0)
        self.absorbed = None if self.decoder is None else Absorbed(self.decoder)

    def rings(self, streams: int) -> dict[str, Tensor]:
        return {"projected": self.turned.new_zeros(streams, self.steps, self.turned.shape[1])}

    def step(self, rings: Mapping[str, Tensor], rows: Sequence[int], seen: Sequence[int], features_BF: Tensor) -> Logits:
        ring = rings["projected"]
        slots = [n % self.steps for n in seen]
        for row, slot, x_D in zip(rows, slots, self.network.enter(features_BF), strict=True):
            ring[row, slot] = x_D
        lengths = [min(n + 1, self.steps) for n in seen]
        groups = {length: [b for b, other in enumerate(lengths) if other == length] for length in dict.fromkeys(lengths)}
        parts = [self._window(ring, [rows[b] for b in group], [slots[b] for b in group], n) for n, group in groups.items()]
        if len(parts) == 1:
            return parts[0]
        back = torch.tensor([b for group in groups.values() for b in group], device=ring.device).argsort()
        present_BC, future_BKC = (torch.cat(values).index_select(0, back) for values in zip(*parts, strict=True))
        return Logits(present_BC, future_BKC)

    def _window(self, ring: Tensor, rows: list[int], slots: list[int], length: int) -> Logits:
        """Streams of equal history."""
        tokens = length + (self.task is not None)
        x_BLD = self._canvas(len(rows), tokens, ring)
        for b, (row, slot) in enumerate(zip(rows, slots, strict=True)):
            first = self.steps - 1 - slot
            torch.add(ring[row, :length], self.turned[first : first + length], out=x_BLD[b, :length])
        if self.task is not None:
            x_BLD[:, length] = self.task
        cu_seqlens = torch.arange(0, len(rows) * tokens + 1, tokens, dtype=torch.int32, device=ring.device)
        memory_BLD = self.network.encode(x_BLD.flatten(0, 1), cu_seqlens, tokens).view_as(x_BLD)
        present_BD = memory_BLD[list(range(len(rows))), slots] if self.task is None else memory_BLD[:, length]
        return self.tell(self.network, present_BD, None if self.absorbed is None else self.absorbed(memory_BLD))

    def _canvas(self, streams: int, tokens: int, ring: Tensor) -> Tensor:
        """Where the encoder's input is put together: kept, and made anew only where more is asked for than ever before."""
        wanted = streams * tokens * ring.shape[2]
        if self.canvas.numel() < wanted:
            self.canvas = ring.new_empty(len(ring) * (self.steps + (self.task is not None)) * ring.shape[2])
        return self.canvas[:wanted].view(streams, tokens, -1)


class CachedStepper(_Steps):
    """The causal network: keys and values of every layer, the decoder's of the memory among them, in rings of ``window`` + 1 chunks."""

    def __init__(self, network: CausalDetector, futures: bool) -> None:
        super().__init__(network, futures)
        self.network, self.slots = network, network.window + 1
        self.blocks = cast(list[Block], list(network.blocks))
        if self.decoder is not None:
            with torch.no_grad():
                self.first_KD = self.decoder.cross[0].query(self.decoder.first_KD)

    def rings(self, streams: int) -> dict[str, Tensor]:
        config, like = self.network.config, self.network.enter.weight
        layers = {f"{i}": config.heads for i in range(len(self.blocks))}
        if self.decoder is not None:
            layers |= {f"decoder.{i}": config.decoder_heads for i in range(len(self.decoder.layers))}
        return {
            f"{name}.{layer}": like.new_zeros(streams, heads, self.slots, config.width // heads)
            for layer, heads in layers.items()
            for name in ("keys", "values")
        }

    def step(self, rings: Mapping[str, Tensor], rows: Sequence[int], seen: Sequence[int], features_BF: Tensor) -> Logits:
        device = features_BF.device
        places_B = torch.tensor([n % self.slots for n in seen], device=device)
        even = seen[0] % self.slots if len(set(seen)) == 1 else -1
        mask = None
        if min(seen) < self.slots - 1:
            mask = (torch.arange(self.slots, device=device) <= torch.tensor(seen, device=device)[:, None])[:, None, None]
        slots = Slots(places_B[:, None], mask, even)
        by = self.network.turned(torch.tensor(seen, device=device), self.dtype)
        x_BD = self.network.enter(features_BF)
        for i, block in enumerate(self.blocks):
            with _Rows(rings[f"keys.{i}"], rows) as keys, _Rows(rings[f"values.{i}"], rows) as values:
                x_BD = block.decode(x_BD, by, keys, values, slots)
        memory_BD = self.network.norm(x_BD)
        crosses = [] if self.decoder is None else self.decoder.cross

        def answer(i: int, x_QD: Tensor) -> Tensor:
            """The queries meet keys and values of the memory, of which only the newest chunk's are new."""
            cross = crosses[i]
            k_BHE, v_BHE = cross.key_value(memory_BD).unflatten(-1, (2, -1, cross.head_width)).unbind(1)
            q_QD = cross.query(x_QD) if i else self.first_KD.repeat(len(rows), 1)
            q_BHKE = q_QD.unflatten(-1, (-1, cross.head_width)).unflatten(0, (len(rows), -1)).transpose(1, 2)
            with _Rows(rings[f"keys.decoder.{i}"], rows) as keys, _Rows(rings[f"values.decoder.{i}"], rows) as values:
                slots.write(keys, k_BHE)
                slots.write(values, v_BHE)
                found_BHKE = F.scaled_dot_product_attention(q_BHKE, keys, values, attn_mask=mask)
            return cross.out(found_BHKE.transpose(1, 2).flatten(0, 1).flatten(1))

        return self.tell(self.network, memory_BD, answer)


class RecurrentStepper(_Steps):
    """The recurrent network: its state is all that it keeps."""

    def __init__(self, network: RecurrentDetector, futures: bool) -> None:
        super().__init__(network, futures)
        self.network = network
        self.absorbed = None if self.decoder is None else Absorbed(self.decoder)

    def rings(self, streams: int) -> dict[str, Tensor]:
        return {"state": self.network.enter.weight.new_zeros(streams, self.network.config.depth, self.network.config.width)}

    def step(self, rings: Mapping[str, Tensor], rows: Sequence[int], seen: Sequence[int], features_BF: Tensor) -> Logits:
        x_BD = self.network.heard(self.network.enter(features_BF))
        with _Rows(rings["state"], rows) as state_BLD:
            for b, n in enumerate(seen):
                if not n:
                    state_BLD[b] = 0
            for layer, weights in enumerate(self.network.gru.all_weights):
                x_BD = torch.gru_cell(x_BD, state_BLD[:, layer], *weights)
                state_BLD[:, layer] = x_BD
        memory = self.network.told(x_BD, self.dtype)
        answer = None if self.absorbed is None else self.absorbed(memory.tokens_MD[:, None])
        return self.tell(self.network, memory.present_ND, answer)


class _Rows:
    """Rows of a ring to be read and written: the ring itself where they are neighbours, else a copy that is put back."""

    def __init__(self, ring: Tensor, rows: Sequence[int]) -> None:
        self.ring, self.index = ring, None if _neighbours(rows) else torch.tensor(list(rows), device=ring.device)
        self.part = ring[rows[0] : rows[0] + len(rows)] if self.index is None else ring.index_select(0, self.index)

    def __enter__(self) -> Tensor:
        return self.part

    def __exit__(self, *_: object) -> None:
        if self.index is not None:
            self.ring.index_copy_(0, self.index, self.part)


def _neighbours(rows: Sequence[int]) -> bool:
    return list(rows) == list(range(rows[0], rows[0] + len(rows)))
