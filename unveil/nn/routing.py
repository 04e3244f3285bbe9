"""Which experts a token goes to, with what weights, and how the load is kept even (DeepSeek-V3, eqs. 13 to 20).

E experts, K of them chosen by each of T tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.config import ExpertsConfig

EXCLUDED = float("-inf")
"""Choice score outside the kept groups. Not 0: a bias may take every score of a kept group below that."""


class Routing(NamedTuple):
    chosen_TK: Tensor
    """int64, best first."""
    weights_TK: Tensor
    """float32 or wider."""
    scores_TE: Tensor


class Router(nn.Module):
    """``s = sigmoid(W x)`` or softmax; the K experts with the highest ``s + bias`` in the best groups; their ``s`` as weights.

    Scores are float32 or wider whatever the activations are, and of equal choices the one with the lowest index comes first, so that a
    token goes the same way in any pack. The bias has no gradient: ``after_step`` moves it by what was counted.

    In training, ``seen`` holds the last forward's routing until ``take`` reads it: whoever forms the loss counts, once, outside of
    anything that a checkpointed backward pass repeats.
    """

    muon_slices: tuple[int, ...] = ()
    """A row is one expert's own vector, not a part of a map: it stays with AdamW."""

    def __init__(self, width: int, config: ExpertsConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.routed, width))
        self.bias: Tensor | None
        self.counts: Tensor
        self.register_buffer("bias", torch.zeros(config.routed, dtype=torch.float32) if config.bias else None)
        self.register_buffer("counts", torch.zeros(config.routed, dtype=torch.int64), persistent=False)
        """Choices of each expert on this rank since the last ``after_step``."""
        self.seen: Routing | None = None

    def forward(self, x_TD: Tensor) -> Routing:
        config, wide = self.config, torch.promote_types(x_TD.dtype, torch.float32)
        logits_TE = F.linear(x_TD.to(wide), self.weight.to(wide))
        scores_TE = logits_TE.sigmoid() if config.gate == "sigmoid" else logits_TE.softmax(-1)
        chosen_TK = choose(scores_TE.detach(), self.bias, config)
        weights_TK = scores_TE.gather(1, chosen_TK)
        if config.normalise:
            weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
        routing = Routing(chosen_TK, weights_TK * config.scale, scores_TE)
        if self.training:
            self.seen = routing
        return routing

    def take(self, segment_T: Tensor, segments: int) -> Tensor | None:
        """Count what the last forward in training chose; its ``balance``, summed over segments. None where there was none.

        Args:
            segment_T: the segment of each token of the pack. Where the network read several streams of it, they follow one another.
        """
        seen, self.seen = self.seen, None
        if seen is None:
            return None
        self.counts += torch.bincount(seen.chosen_TK.flatten(), minlength=len(self.counts))
        segment_T = segment_T.repeat(len(seen.scores_TE) // len(segment_T))
        return balance(seen.scores_TE, seen.chosen_TK, segment_T, segments)

    @torch.no_grad()
    def after_step(self, counts_E: Tensor, ok: Tensor) -> None:
        """``bias += rate sign(mean - count)`` for the counts of a whole step over all ranks, where ``ok``; then count anew.

        The mean of the change is taken off, which moves all scores alike and so no choice, and keeps the bias around 0.
        """
        if self.bias is not None and self.config.bias_rate:
            load_E = counts_E.to(self.bias.dtype)
            change_E = self.config.bias_rate * (load_E.mean() - load_E).sign()
            self.bias += torch.where(ok, change_E - change_E.mean(), 0.0)
        self.counts.zero_()
        self.seen = None  # of a backward pass that ran the forward again


def choose(scores_TE: Tensor, bias_E: Tensor | None, config: ExpertsConfig) -> Tensor:
    """The experts of each token, int64 ``[T, K]``, best first."""
    choice_TE = scores_TE if bias_E is None else scores_TE + bias_E
    if config.kept_groups < config.groups:
        grouped_TGE = choice_TE.unflatten(1, (config.groups, -1))
        best = 2 if config.gate == "sigmoid" else 1
        group_TG = grouped_TGE.topk(min(best, grouped_TGE.shape[2]), dim=-1).values.sum(-1)
        kept_TG = torch.zeros_like(group_TG, dtype=torch.bool).scatter(1, highest(group_TG, config.kept_groups), True)
        choice_TE = grouped_TGE.masked_fill(~kept_TG[..., None], EXCLUDED).flatten(1)
    return highest(choice_TE, config.top_k)


def highest(values_TE: Tensor, count: int) -> Tensor:
    """Indices of the highest ``count`` values of each row, descending, of equal ones the lowest first: ``topk`` promises no order."""
    found = []
    for _ in range(count):
        index_T1 = values_TE.max(dim=1, keepdim=True).indices  # the first of equal ones
        found.append(index_T1)
        values_TE = values_TE.scatter(1, index_T1, EXCLUDED)
    return torch.cat(found, dim=1)


def balance(scores_TE: Tensor, chosen_TK: Tensor, segment_T: Tensor, segments: int) -> Tensor:
    """``sum over segments of E sum_i f_i P_i``: f_i the share of the segment's choices that expert i got, P_i its mean share of the
    scores (DeepSeek-V3, eqs. 17 to 20, without alpha). A segment in perfect balance adds 1.

    f counts where tokens went, the bias included; the paper's equation 18 leaves it out, implementations do not.
    """
    experts, top_k = scores_TE.shape[1], chosen_TK.shape[1]
    length_N1 = torch.bincount(segment_T, minlength=segments).clamp(min=1).to(scores_TE.dtype)[:, None]
    flat = (segment_T[:, None] * experts + chosen_TK).flatten()
    share_NE = torch.bincount(flat, minlength=segments * experts).view(segments, experts) / (length_N1 * top_k)
    normed_TE = scores_TE / (scores_TE.sum(-1, keepdim=True) + 1e-20)
    mean_NE = scores_TE.new_zeros(segments, experts).index_add(0, segment_T, normed_TE) / length_N1
    return experts * (share_NE * mean_NE).sum()
