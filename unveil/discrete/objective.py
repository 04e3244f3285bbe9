"""What is minimised: cross-entropy at masked positions, weighted over time. LLaDA and MDLM are two settings of one function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from unveil.discrete.denoiser import Subs
from unveil.discrete.process import Absorbing
from unveil.family import Noise, Term
from unveil.nn.packed import Packed

BUCKETS = 10


def bucket_name(index: int) -> str:
    """The measured term of times in [index, index + 1) / 10."""
    return f"ce {index / BUCKETS:.1f}-{(index + 1) / BUCKETS:.1f}"


@dataclass(frozen=True)
class MaskedObjective:
    """Sum over masked positions i of w(t) CE_i, CE_i = -log p(x0_i given x_t) in nats, one time per sequence.

    With weight "bound", w = -alpha'/(1 - alpha), the expectation over t ~ U[0, 1] is the negative likelihood bound (MDLM, eq. 10;
    LLaDA, eq. 3, is the linear schedule); its value does not depend on the schedule. With "flat", w = 1. The normalisation is over
    the tokens that can be masked: "token" divides by all of them, "sequence" each sequence by its own and then by the number of sequences.

    Noise: ``t`` float64 ``[N]`` in [0, 1], ``u`` float64 ``[T]`` uniform on [0, 1).
    """

    process: Absorbing
    denoiser: Subs
    weight: Literal["bound", "flat"]
    normalisation: Literal["token", "sequence"]

    def targets(self, batch: Packed, noise: Noise) -> dict[str, float]:
        """Denominators: of ``loss`` as the normalisation says, of ``bound`` all maskable tokens, of a bucket of t its masked tokens."""
        maskable_T = self.process.maskable(batch.tokens_T)
        tokens = float(maskable_T.sum())
        if self.normalisation == "token":
            terms = {"loss": tokens, "bound": tokens}
        else:
            terms = {"loss": float((_per_sequence(batch, maskable_T) > 0).sum()), "bound": tokens}
        masked_T = self.process.masked(batch, noise["t"], noise["u"])
        counts = torch.bincount(_bucket(noise["t"])[batch.sequence_T[masked_T]], minlength=BUCKETS)
        return terms | {bucket_name(i): float(n) for i, n in enumerate(counts.tolist())}

    def loss(self, model: Any, batch: Packed, noise: Noise) -> dict[str, Term]:
        """The terms, for a model that maps a pack to hidden states and has a ``head`` (``nn.Transformer`` or ``nn.LogitsModel``).

        ``loss`` is trained; ``bound`` (w = -alpha'/(1 - alpha)) and the plain cross-entropy per bucket of t are measured beside it.
        """
        t_N = noise["t"].double()
        masked_T = self.process.masked(batch, t_N, noise["u"])
        index_M = masked_T.nonzero().squeeze(-1)
        sequence_M = batch.sequence_T[index_M]
        bound_M = self.process.schedule.weight(t_N)[sequence_M]
        weights_M = bound_M if self.weight == "bound" else torch.ones_like(bound_M)
        if self.normalisation == "sequence":
            weights_M = weights_M / _per_sequence(batch, self.process.maskable(batch.tokens_T))[sequence_M]

        hidden_TD = model(batch.with_tokens(self.process.hide(batch.tokens_T, masked_T)))
        # unmasked positions contribute exactly nothing, so they never reach the head
        hidden_MD = hidden_TD.index_select(0, index_M)
        wide = torch.promote_types(hidden_MD.dtype, torch.float32)
        total, losses_M = model.head.reduce(hidden_MD, self.denoiser.token_loss, weights_M.to(wide), batch.tokens_T[index_M])

        losses_M = losses_M.double()
        sums = torch.zeros(BUCKETS, dtype=torch.float64, device=losses_M.device).index_add(0, _bucket(t_N)[sequence_M], losses_M)
        measured = {"bound": (bound_M * losses_M).sum()} | {bucket_name(i): sums[i] for i in range(BUCKETS)}
        return {"loss": Term(total)} | {name: Term(value, 0.0) for name, value in measured.items()}


def curve(metrics: Mapping[str, float], prefix: str = "train/") -> list[float]:
    """Cross-entropy per bucket of t in a row of metrics, nan where a bucket was empty."""
    return [metrics.get(prefix + bucket_name(i), float("nan")) for i in range(BUCKETS)]


def _bucket(t_N: Tensor) -> Tensor:
    return (t_N * BUCKETS).long().clamp(0, BUCKETS - 1)


def _per_sequence(batch: Packed, flags_T: Tensor) -> Tensor:
    """How many tokens of each sequence are flagged, ``[N]``."""
    return torch.bincount(batch.sequence_T[flags_T], minlength=len(batch.sample_ids_N))
