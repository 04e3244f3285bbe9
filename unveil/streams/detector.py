"""What every network of the family is around its trunk: the decoder of the future and the classes now and ahead.

Shape letters, here and in every file of ``streams``: N windows of a batch, T chunks of all windows, F features of a chunk, D width,
H heads, E width of a head, K chunks ahead, C classes; B streams of a step, S of a state, M chunks that the decoder remembers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unveil.config_streams import DetectorConfig
from unveil.data.clips import Clips
from unveil.nn.affine import Affine
from unveil.nn.encoder_decoder import DecoderLayer
from unveil.nn.layout import Bidirectional, Causal, Layout
from unveil.nn.norm import LayerNorm


class Logits(NamedTuple):
    """Scores before the softmax, of the present ``[N, C]`` and of the K chunks ahead ``[N, K, C]``."""

    present_NC: Tensor
    future_NKC: Tensor


class Memory(NamedTuple):
    """What a trunk hands on: the feature of the present ``[N, D]``, and what the decoder may ask, each window's end to end."""

    present_ND: Tensor
    tokens_MD: Tensor
    cu_seqlens: Tensor


class FutureDecoder(nn.Module):
    """K learned queries, one for each chunk ahead, ask the memory in post-norm layers (OadTR, section 3.3)."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.decoder_hidden or config.width
        self.layout: Layout = Causal() if config.decoder_causal else Bidirectional()
        self.queries = nn.Parameter(torch.empty(config.horizon, width))
        self.read = config.query_positions == "added"
        self.positions = nn.Parameter(torch.empty(config.horizon, width), requires_grad=self.read)
        layers = (DecoderLayer(width, config.decoder_heads, hidden, config.dropout) for _ in range(config.decoder_depth))
        self.layers = nn.ModuleList(layers)
        self.norm, self.dropout = LayerNorm(width, bias=True), nn.Dropout(config.dropout)

    def asking(self, dtype: torch.dtype) -> Tensor:
        """The queries as the first layer meets them, ``[K, D]``."""
        return (self.queries + self.positions if self.read else self.queries).to(dtype)

    def forward(self, memory: Memory) -> Tensor:
        """``[N, K, D]``."""
        count = len(memory.cu_seqlens) - 1
        x_QD = self.asking(memory.tokens_MD.dtype).repeat(count, 1)
        for layer in self.layers:
            x_QD = layer(x_QD, memory.tokens_MD, memory.cu_seqlens, self.layout)
        return self.leave(x_QD).unflatten(0, (count, -1))

    def leave(self, x_QD: Tensor) -> Tensor:
        return self.dropout(self.norm(x_QD))


class Detector(nn.Module):
    """A trunk (``remember``, a subclass's own), the decoder, and one matrix each for the present and for the chunks ahead.

    Args:
        config: all of it, ``features`` and ``classes`` included. Raises ValueError for settings that contradict each other.

    ``compute_dtype`` is the dtype of the activations, the weights' own if None; weights are cast to it where they are used.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        if not config.features or config.classes < 2 or (config.horizon and config.width % config.decoder_heads):
            shape = f"width {config.width}, decoder_heads {config.decoder_heads}"
            raise ValueError(f"features {config.features}, classes {config.classes}, {shape}: no network")
        self.settings = config
        self.compute_dtype: torch.dtype | None = None
        self.enter = Affine(config.features, config.width)
        self.decoder = FutureDecoder(config) if config.horizon else None
        self.joins = config.joined and self.decoder is not None
        self.present = Affine((1 + self.joins) * config.width, config.classes)
        self.future = Affine(config.width, config.classes) if config.horizon else None

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Matrices and their biases uniform by fan-in, as torch's own; norms 1; positions N(0, 1); the task token and the queries 0."""
        for module in self.modules():
            if isinstance(module, Affine):
                module.bias.uniform_(-(module.weight.shape[1] ** -0.5), module.weight.shape[1] ** -0.5)
        for name, p in self.named_parameters():
            if name.endswith(("token", "queries")):
                p.zero_()
            elif name.endswith("positions"):
                p.normal_()
            elif p.dim() == 2:
                p.uniform_(-(p.shape[1] ** -0.5), p.shape[1] ** -0.5)

    def remember(self, features_TD: Tensor, batch: Clips) -> Memory:
        """The trunk, over projected features."""
        raise NotImplementedError

    def forward(self, batch: Clips) -> Logits:
        """Scores of every window, from its chunks alone. Raises ValueError for features of another width or too long a window."""
        if batch.features_TF.shape[1] != self.settings.features:
            raise ValueError(f"features of width {batch.features_TF.shape[1]}, the network has {self.settings.features}")
        memory = self.remember(self.enter(batch.features_TF.to(self.dtype)), batch)
        return self.classify(memory.present_ND, lambda: None if self.decoder is None else self.decoder(memory))

    def classify(self, present_ND: Tensor, decoded: Callable[[], Tensor | None], futures: bool = True) -> Logits:
        """From features to scores. ``decoded()`` gives the decoder's output ``[N, K, D]``; it is not asked where nothing needs it, and
        without ``futures`` K is 0 in what is returned."""
        future_NKD = decoded() if futures or self.joins else None
        if self.joins:
            assert future_NKD is not None
            present_ND = torch.cat((present_ND, future_NKD.mean(1)), dim=1)
        present_NC = self.present(present_ND)
        if future_NKD is None or self.future is None or not futures:
            return Logits(present_NC, present_NC.new_empty(len(present_NC), 0, present_NC.shape[1]))
        return Logits(present_NC, self.future(future_NKD))

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations."""
        return self.compute_dtype or self.enter.weight.dtype

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile the trunk's layers, where it has any; ragged batches do not compile again."""
        for block in getattr(self, "blocks", ()):
            block.compile(backend=backend, dynamic=True)

    def flops_per_token(self, context: float) -> float:
        """Forward and backward of a window of ``context`` chunks, per chunk, by matrix products and the trunk's attention scores."""
        sizes = {name: p.numel() for name, p in self.named_parameters() if p.dim() == 2 and p.requires_grad}
        decoder = {name: size for name, size in sizes.items() if name.startswith("decoder.layers")}
        each = sum(size for name, size in decoder.items() if name.endswith("key_value.weight"))
        queries = self.settings.horizon * (sum(decoder.values()) - each) / context
        trunk = sum(size for name, size in sizes.items() if not name.startswith(("decoder", "present", "future")))
        return 6.0 * (trunk + each + queries) + 12.0 * self.settings.depth * self.settings.width * context


def scored(logits: Tensor, ignored: tuple[int, ...]) -> Tensor:
    """Logits ``[..., C]`` in float32 or wider, those of ignored classes minus infinity: they have no probability and are not trained."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide.index_fill(-1, torch.tensor(ignored, device=wide.device), float("-inf")) if ignored else wide
