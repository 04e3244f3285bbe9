"""A recurrent detector after MiniROAD (An et al. 2023): one vector of state, trained on the last step of each window only."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence

from unveil.config_streams import RecurrentConfig
from unveil.data.clips import Clips
from unveil.nn.norm import LayerNorm
from unveil.streams.detector import Detector, Memory


class RecurrentDetector(Detector):
    """``relu(gru(relu(norm(project(x)))))``; the decoder asks the last state, one key.

    Its state holds the whole stream, so a stream longer than a window is not what a fresh start from the last window gives.

    Args:
        config: all of it. Raises ValueError for settings that contradict each other.
    """

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config)
        self.config, width = config, config.width
        self.norm, self.dropout = LayerNorm(width, bias=True), nn.Dropout(config.dropout)
        self.gru = nn.GRU(width, width, config.depth)
        self.reset_parameters()

    def heard(self, features_TD: Tensor) -> Tensor:
        """What the recurrence is given, in the dtype of its weights."""
        return self.dropout(F.relu(self.norm(features_TD))).to(self.enter.weight.dtype)

    def remember(self, features_TD: Tensor, batch: Clips) -> Memory:
        """Windows may be of any length."""
        windows = list(torch.split(self.heard(features_TD), batch.lengths))
        _, state_LND = self.gru(pack_sequence(windows, enforce_sorted=False))
        return self.told(state_LND[-1], features_TD.dtype)

    def told(self, state_ND: Tensor, dtype: torch.dtype) -> Memory:
        present_ND = F.relu(state_ND).to(dtype)
        each = torch.arange(len(present_ND) + 1, dtype=torch.int32, device=present_ND.device)
        return Memory(present_ND, present_ND, each)
