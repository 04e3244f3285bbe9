"""What is minimised: the loss at masked positions, weighted over time. LLaDA, MDLM, block diffusion and SEDD's absorbing chain are settings
of one function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from unveil.discrete.denoiser import Subs
from unveil.discrete.process import Absorbing, per_token, sigma
from unveil.discrete.reader import WHOLE, Reader
from unveil.family import Noise, Term
from unveil.nn.packed import Packed

BUCKETS = 10


def bucket_name(index: int) -> str:
    """The measured term of times in [index, index + 1) / 10."""
    return f"ce {index / BUCKETS:.1f}-{(index + 1) / BUCKETS:.1f}"


@dataclass(frozen=True)
class MaskedObjective:
    """Sum over masked positions i of w(t) CE_i, CE_i = -log p(x0_i given x_t) in nats, with one time per sequence or per block.

    With weight "bound", w = -alpha'/(1 - alpha), the expectation over t ~ U[0, 1] is the negative likelihood bound (MDLM, eq. 10;
    LLaDA, eq. 3, is the linear schedule; BD3-LM, eq. 8, if the network reads blocks; DWDSE, eq. 9 of SEDD, if the denoiser is a ratio);
    its value does not depend on the schedule. With "flat", w = 1. The normalisation is over the tokens that can be masked: "token"
    divides by all of them, "sequence" each sequence by its own and then by the number of sequences (LLaDA's fine-tuning).

    Noise: ``t`` float64 ``[N]`` or ``[T]`` in [0, 1], ``u`` float64 ``[T]`` uniform on [0, 1); ``given``, if there is one, bool ``[T]``:
    tokens that are told (a prompt), neither masked nor counted.
    """

    process: Absorbing
    denoiser: Subs
    weight: Literal["bound", "flat"]
    normalisation: Literal["token", "sequence"]
    read: Reader = WHOLE
    measures: bool = True
    """Measure the bound and the losses by time; not where times are clipped, which the bound does not stand."""

    def targets(self, batch: Packed, noise: Noise) -> dict[str, float]:
        """Denominators: of ``loss`` as the normalisation says, of ``bound`` all maskable tokens, of a bucket of t its masked tokens."""
        maskable_T = self._maskable(batch, noise)
        tokens = float(maskable_T.sum())
        terms = {"loss": tokens if self.normalisation == "token" else float((_per_sequence(batch, maskable_T) > 0).sum())}
        if not self.measures:
            return terms
        masked_T = self.process.masked(batch, noise["t"], noise["u"]) & maskable_T
        counts = torch.bincount(_bucket(per_token(batch, noise["t"]))[masked_T], minlength=BUCKETS)
        return terms | {"bound": tokens} | {bucket_name(i): float(n) for i, n in enumerate(counts.tolist())}

    def loss(self, model: Any, batch: Packed, noise: Noise) -> dict[str, Term]:
        """The terms, for a model that maps a pack to hidden states and has a ``head`` (``nn.Transformer`` or ``nn.LogitsModel``).

        ``loss`` is trained; ``bound`` (w = -alpha'/(1 - alpha)) and the plain cross-entropy per bucket of t are measured beside it.
        """
        t_T, maskable_T = per_token(batch, noise["t"].double()), self._maskable(batch, noise)
        masked_T = self.process.masked(batch, t_T, noise["u"]) & maskable_T
        index_M = masked_T.nonzero().squeeze(-1)
        bound_M = self.process.schedule.weight(t_T[index_M])
        weights_M = bound_M if self.weight == "bound" else torch.ones_like(bound_M)
        if self.normalisation == "sequence":
            weights_M = weights_M / _per_sequence(batch, maskable_T)[batch.sequence_T[index_M]]

        noisy = batch.with_tokens(self.process.hide(batch.tokens_T, masked_T))
        hidden_TD = self.read(model, noisy, batch.tokens_T, sigma(self.process.schedule, t_T))
        # unmasked positions contribute exactly nothing, so they never reach the head
        hidden_MD = hidden_TD.index_select(0, index_M)
        wide = torch.promote_types(hidden_MD.dtype, torch.float32)
        total, losses_M = model.head.reduce(hidden_MD, self.denoiser.token_loss, weights_M.to(wide), batch.tokens_T[index_M])
        if not self.measures:
            return {"loss": Term(total)}

        losses_M = losses_M.double()
        sums = torch.zeros(BUCKETS, dtype=torch.float64, device=losses_M.device).index_add(0, _bucket(t_T[index_M]), losses_M)
        measured = {"bound": (bound_M * losses_M).sum()} | {bucket_name(i): sums[i] for i in range(BUCKETS)}
        return {"loss": Term(total)} | {name: Term(value, 0.0) for name, value in measured.items()}

    def _maskable(self, batch: Packed, noise: Noise) -> Tensor:
        maskable_T = self.process.maskable(batch)
        return maskable_T & ~noise["given"] if "given" in noise else maskable_T


def curve(metrics: Mapping[str, float], prefix: str = "train/") -> list[float]:
    """Cross-entropy per bucket of t in a row of metrics, nan where a bucket was empty."""
    return [metrics.get(prefix + bucket_name(i), float("nan")) for i in range(BUCKETS)]


def _bucket(t: Tensor) -> Tensor:
    return (t * BUCKETS).long().clamp(0, BUCKETS - 1)


def _per_sequence(batch: Packed, flags_T: Tensor) -> Tensor:
    """How many tokens of each sequence are flagged, ``[N]``."""
    return torch.bincount(batch.sequence_T[flags_T], minlength=len(batch.sample_ids_N))
