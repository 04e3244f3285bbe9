"""A causal detector: what it made of a chunk never changes, so keys and values in rings serve a stream for ever.

Trained with the mask it streams with. L layers that reach back w chunks each, and a decoder that does, see (L + 1) w + 1 chunks. Where
these are at most ``steps``, a window of ``steps`` chunks holds all that a score depends on: the score of a stream, however long, is that of
its last window.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unveil.config import TransformerConfig
from unveil.config_streams import CausalConfig
from unveil.data.clips import Clips
from unveil.nn.layout import Causal
from unveil.nn.norm import RMSNorm
from unveil.nn.rotary import Rotation, rotation
from unveil.nn.transformer import Block
from unveil.streams.detector import Detector, Memory


class CausalDetector(Detector):
    """The text families' transformer blocks over projected features; the decoder asks the newest ``window`` + 1 chunks.

    Args:
        config: all of it. Raises ValueError for settings that contradict each other.
    """

    def __init__(self, config: CausalConfig) -> None:
        super().__init__(config)
        if config.width % (2 * config.heads):
            raise ValueError(f"width {config.width} is no multiple of {config.heads} heads of even width")
        self.config, self.window = config, window(config)
        hidden = config.hidden or -(-2 * config.width // (3 * 64)) * 64
        block = TransformerConfig(
            width=config.width, depth=config.depth, heads=config.heads, hidden=hidden, dropout=config.dropout, window=self.window
        )
        self.layout = Causal(self.window)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(block) for _ in range(config.depth))
        self.norm = RMSNorm(config.width)
        self.reset_parameters()

    def remember(self, features_TD: Tensor, batch: Clips) -> Memory:
        """Windows may be of any length: of a whole video, say."""
        starts, ends = batch.cu_seqlens[:-1].long(), batch.cu_seqlens[1:].long()
        places_T = torch.arange(batch.size, device=ends.device)
        sequence_T = torch.arange(len(ends), device=ends.device).repeat_interleave(ends - starts, output_size=batch.size)
        by, x_TD = self.turned(places_T - starts[sequence_T], features_TD.dtype), self.dropout(features_TD)
        for block in self.blocks:
            x_TD = block(x_TD, by, batch.cu_seqlens, batch.max_seqlen, self.layout)
        x_TD = self.norm(x_TD)
        remembered_T = places_T >= ends[sequence_T] - (self.window + 1)
        lengths = (ends - starts).clamp(max=self.window + 1)
        cu_seqlens = torch.cat((lengths.new_zeros(1), lengths.cumsum(0))).int()
        return Memory(x_TD[ends - 1], x_TD[remembered_T], cu_seqlens)

    def turned(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """Rotations of positions, however large: formed in float64, for in float32 an hour's positions blur the angles by 10^-3."""
        head_width = self.config.width // self.config.heads
        return Rotation(*(part.to(dtype) for part in rotation(positions, head_width, self.config.rope_theta, torch.float64)))


def window(config: CausalConfig) -> int:
    """Chunks before its own that a layer reaches back. Raises ValueError where ``steps`` leave none."""
    readers = config.depth + (config.horizon > 0)
    found = config.window or (config.steps - 1) // readers
    if not 0 < found * readers < config.steps:
        raise ValueError(f"{readers} times {found} chunks back do not fit into steps {config.steps}")
    return found
