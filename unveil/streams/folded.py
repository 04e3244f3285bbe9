"""The decoder as a stream runs it: K queries that never change meet M chunks that do.

What the first layer does before it looks at the memory depends on no input, so it is done once. How the memory is asked is the caller's:
where all of it is new at every step, by ``Absorbed``; where only the newest chunk is, out of rings of keys and values.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from unveil.nn.affine import Affine
from unveil.nn.encoder_decoder import DecoderLayer
from unveil.streams.detector import FutureDecoder

SLICES = 4
"""Of a matrix. More are no faster for the 8 queries of one stream, and slower for those of many."""


class _Sliced(nn.Module):
    """An affine map as a batch of smaller ones: for the few rows that K queries are, a CPU multiplies a third faster so."""

    def __init__(self, affine: Affine) -> None:
        super().__init__()
        self.weight, self.bias = affine.weight, affine.bias
        slices = SLICES if len(affine.bias) % SLICES == 0 else 1
        self.slices = affine.weight.unflatten(0, (slices, -1)).transpose(1, 2)
        self.biases = affine.bias.view(slices, 1, -1)

    def forward(self, x_QD: Tensor) -> Tensor:
        parts = torch.baddbmm(self.biases, x_QD.expand(len(self.slices), -1, -1), self.slices)
        return parts.transpose(0, 1).flatten(1)


def _sliced(decoder: FutureDecoder) -> FutureDecoder:
    """The decoder on the same parameters, its affine maps in slices."""
    own = copy.deepcopy(decoder, {id(p): p for p in decoder.parameters()})
    for module in list(own.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Affine):
                setattr(module, name, _Sliced(child))
    return own


class FoldedDecoder:
    """A decoder in evaluation mode, its weights in the dtype of the memory; what is folded does not follow later changes of them."""

    @torch.no_grad()
    def __init__(self, decoder: FutureDecoder, dtype: torch.dtype) -> None:
        self.decoder = _sliced(decoder)
        self.layers = cast(list[DecoderLayer], list(self.decoder.layers))
        self.cross = [layer.cross for layer in self.layers]
        asking_KD = decoder.asking(dtype)
        self.first_KD = self.layers[0].among(asking_KD, len(asking_KD), decoder.layout)

    def __call__(self, streams: int, answer: Callable[[int, Tensor], Tensor]) -> Tensor:
        """``[B, K, D]`` of so many streams; ``answer(i, x_QD)`` is the output of layer i's cross-attention, ``[Q, D]``, Q = B K."""
        x_QD = self.first_KD.repeat(streams, 1)
        for i, layer in enumerate(self.layers):
            if i:
                x_QD = layer.among(x_QD, len(self.first_KD), self.decoder.layout)
            x_QD = layer.asked(x_QD, answer(i, x_QD))
        return self.decoder.leave(x_QD).unflatten(0, (streams, -1))


class Absorbed:
    """Cross-attention that never forms the keys and values of the memory.

    With q a query of a head, q . (W_k m + b_k) is (W_k^T q) . m plus what is the same for every key; and sum_j p_j (W_v m_j + b_v) is
    W_v (sum_j p_j m_j) + b_v. So a layer costs 2 D^2 for each of the K queries where it cost 2 D^2 for each of the M chunks: 8 against 65.
    """

    @torch.no_grad()
    def __init__(self, decoder: FoldedDecoder) -> None:
        self.cross = decoder.cross
        width = self.cross[0].head_width
        matrices = [cross.key_value.weight.chunk(2) for cross in self.cross]
        self.scale = width**-0.5
        self.key_HED = [key_DD.unflatten(0, (-1, width)) for key_DD, _ in matrices]
        self.value_HDE = [value_DD.unflatten(0, (-1, width)).transpose(1, 2) for _, value_DD in matrices]
        self.bias_D = [cross.out.weight @ cross.key_value.bias.chunk(2)[1] for cross in self.cross]
        self.first_KHD = self._absorb(0, decoder.first_KD)

    def __call__(self, memory_BMD: Tensor) -> Callable[[int, Tensor], Tensor]:
        """The answers of a memory, all of which every query sees, in whatever order it lies."""

        def answer(i: int, x_QD: Tensor) -> Tensor:
            absorbed_QHD = self._absorb(i, x_QD) if i else self.first_KHD.repeat(len(memory_BMD), 1, 1)
            scores_BXM = absorbed_QHD.reshape(len(memory_BMD), -1, memory_BMD.shape[2]) @ memory_BMD.transpose(1, 2)
            wide = torch.promote_types(scores_BXM.dtype, torch.float32)
            mixed_BXD = scores_BXM.softmax(-1, dtype=wide).to(memory_BMD.dtype) @ memory_BMD
            mixed_HQD = mixed_BXD.view(absorbed_QHD.shape).transpose(0, 1)
            return self.cross[i].out((mixed_HQD @ self.value_HDE[i]).transpose(0, 1).flatten(1)) + self.bias_D[i]

        return answer

    def _absorb(self, i: int, x_QD: Tensor) -> Tensor:
        """Queries as they meet the memory itself, ``[Q, H, D]``."""
        q_HQE = (self.cross[i].query(x_QD) * self.scale).unflatten(-1, (len(self.key_HED[i]), -1)).transpose(0, 1)
        return (q_HQE @ self.key_HED[i]).transpose(0, 1)
