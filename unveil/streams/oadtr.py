"""OadTR (Wang et al. 2021): a bidirectional encoder over the last 64 chunks and a task token, a decoder of 8 chunks ahead."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unveil.config_streams import OadTRConfig
from unveil.data.clips import Clips
from unveil.nn.encoder_decoder import EncoderLayer
from unveil.nn.layout import Bidirectional
from unveil.nn.norm import LayerNorm
from unveil.streams.detector import Detector, Memory

PAPER = OadTRConfig()
"""As written: an ordinary decoder, whose queries have positions and see each other, and one number of heads."""

RELEASED = OadTRConfig(decoder_heads=4, decoder_causal=True, query_positions="unread")
"""As the authors' code runs: four decoder heads, a query sees the nearer ones only, and the queries' positions are made but never read."""


class OadTR(Detector):
    """Positions are learned and right-aligned: the newest chunk always has the last one, so a short history is a shorter sequence.

    Args:
        config: all of it. Raises ValueError for settings that contradict each other.
    """

    def __init__(self, config: OadTRConfig) -> None:
        super().__init__(config)
        if config.width % config.heads:
            raise ValueError(f"width {config.width} is no multiple of {config.heads} heads")
        self.config, width = config, config.width
        self.token = nn.Parameter(torch.empty(1, width)) if config.task_token else None
        self.positions = nn.Parameter(torch.empty(config.steps + config.task_token, width))
        self.dropout = nn.Dropout(config.dropout)
        layers = (EncoderLayer(width, config.heads, config.hidden or width, config.dropout) for _ in range(config.depth))
        self.blocks = nn.ModuleList(layers)
        self.norm = LayerNorm(width, bias=True)
        self.reset_parameters()

    def remember(self, features_TD: Tensor, batch: Clips) -> Memory:
        if batch.max_seqlen > self.config.steps:
            raise ValueError(f"a window of {batch.max_seqlen} chunks, the network has positions for {self.config.steps}")
        tokens, ends = int(self.config.task_token), batch.cu_seqlens[1:].long()
        lengths = ends - batch.cu_seqlens[:-1]
        sequence_T = torch.arange(len(ends), device=ends.device).repeat_interleave(lengths, output_size=batch.size)
        place_T = self.config.steps - ends[sequence_T] + torch.arange(batch.size, device=ends.device)
        x_TD = features_TD + self.positions.to(features_TD.dtype)[place_T]
        if self.token is not None:  # one behind each window
            task_ND = (self.token + self.positions[-1:]).to(x_TD.dtype).expand(len(ends), -1)
            windows = torch.arange(len(ends), device=ends.device)
            order = torch.argsort(torch.cat((sequence_T, windows)), stable=True)
            x_TD = torch.cat((x_TD, task_ND)).index_select(0, order)
        cu_seqlens = batch.cu_seqlens + torch.arange(len(ends) + 1, dtype=torch.int32, device=ends.device) * tokens
        memory_TD = self.encode(self.dropout(x_TD), cu_seqlens, batch.max_seqlen + tokens)
        return Memory(memory_TD[cu_seqlens[1:].long() - 1], memory_TD, cu_seqlens)

    def encode(self, x_TD: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """The encoder over projected chunks and task tokens, positions added."""
        for block in self.blocks:
            x_TD = block(x_TD, cu_seqlens, max_seqlen, Bidirectional())
        return self.norm(x_TD)
