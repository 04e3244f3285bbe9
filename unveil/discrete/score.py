"""Score entropy of the uniform chain (SEDD; Lou et al. 2024): what is minimised, and what it bounds.

The absorbing chain needs nothing of its own: its score entropy is a loss at masked positions (``denoiser.AbsorbRatio``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unveil.data.noise import generator
from unveil.discrete.denoiser import UniformRatio
from unveil.discrete.likelihood import FORWARD_TOKENS, grid
from unveil.discrete.process import Uniform, per_token, sigma, sigma_rate
from unveil.discrete.reader import Reader
from unveil.family import Noise, Term
from unveil.nn.packed import Packed


def coefficients(sigma_T: Tensor, same_T: Tensor, states: int) -> tuple[Tensor, Tensor, Tensor]:
    """``(each, true, rest)`` of ``UniformRatio.token_loss``, each ``[T]``: the score entropy

    sum over y != x of (1 / S) (s_y - r_y log s_y + K(r_y)), K(a) = a (log a - 1), r_y = p(y | x0) / p(x | x0),

    where r is e = expm1(sigma) over e + S at all y if x = x0 (``same_T``), and else 1 but for (e + S) / e at x0.
    """
    e_T = torch.expm1(sigma_T)
    ratio_T = e_T / (e_T + states)
    log_T = ratio_T.log()
    rest_same_T = (states - 1) / states * ratio_T * (log_T - 1.0)
    rest_other_T = ((-log_T - 1.0) / ratio_T - (states - 2)) / states
    each_T = torch.where(same_T, ratio_T, 1.0)
    true_T = torch.where(same_T, 0.0, 1.0 / e_T)
    return each_T, true_T, torch.where(same_T, rest_same_T, rest_other_T)


@dataclass(frozen=True)
class UniformObjective:
    """Sum over the tokens of sigma'(t) SE(x_t, x_0): the diffusion-weighted denoising score entropy (DWDSE, eq. 10), one time per sequence.

    Noise: ``t`` float64 ``[N]`` in [0, 1], ``u`` float64 ``[T]`` uniform on [0, 1); ``given`` as of ``MaskedObjective``.
    """

    process: Uniform
    denoiser: UniformRatio
    read: Reader

    def targets(self, batch: Packed, noise: Noise) -> dict[str, float]:
        """The tokens that the chain may change."""
        return {"loss": float(self._counted(batch, noise.get("given")).sum())}

    def loss(self, model: Any, batch: Packed, noise: Noise) -> dict[str, Term]:
        """``loss``, in nats; its expectation over t ~ U[0, 1] is the bound but for the constants of ``bound``."""
        given_T = noise.get("given")
        return {"loss": Term(self.entropies(model, batch, noise["t"], noise["u"], self._counted(batch, given_T), given_T)[0])}

    def _counted(self, batch: Packed, given_T: Tensor | None) -> Tensor:
        maskable_T = self.process.maskable(batch)
        return maskable_T if given_T is None else maskable_T & ~given_T

    def entropies(
        self, model: Any, batch: Packed, t: Tensor, u_T: Tensor, counted_T: Tensor, given_T: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The sum of sigma'(t) SE over the counted tokens, differentiable, and each of them, detached, float64 ``[T]``, 0 elsewhere."""
        t_T = per_token(batch, t.double())
        sigma_T = sigma(self.process.schedule, t_T)
        noisy = batch.with_tokens(self.process.noised(batch, t_T, u_T, given_T))
        hidden_TD = self.read(model, noisy, batch.tokens_T, sigma_T)
        index_C = counted_T.nonzero().squeeze(-1)
        noisy_C, clean_C = noisy.tokens_T[index_C], batch.tokens_T[index_C]
        hidden_CD = hidden_TD.index_select(0, index_C)
        wide = torch.promote_types(hidden_CD.dtype, torch.float32)
        columns = [c.to(wide) for c in coefficients(sigma_T[index_C], noisy_C == clean_C, len(self.process.states))]
        weights_C = sigma_rate(self.process.schedule, t_T[index_C])
        total, losses_C = model.head.reduce(hidden_CD, self.denoiser.token_loss, weights_C.to(wide), noisy_C, clean_C, *columns)
        each_T = torch.zeros(len(t_T), dtype=torch.float64, device=t_T.device)
        return total, each_T.index_copy(0, index_C, weights_C * losses_C.double())


@torch.no_grad()
def bound(
    objective: UniformObjective,
    model: Any,
    batch: Packed,
    draws: int,
    seed: int,
    counted_T: Tensor | None = None,
    given_T: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Lower bound of log p per sequence, in nats, without bias for the bound.

    What is bounded is the text's probability under the model that draws x_1 from the uniform law, runs the chain back to t = 0, and then
    lets the noise that is left there, sigma(0), act once more. Its negative log is at most the integral of the score entropy over [0, 1],
    plus for every token the divergence log S - H(sigma(1)) of its noised law from the uniform one, plus the entropy H(sigma(0)) of what is
    left (data processing; Lou et al. 2024, theorem 3.6, names the first two). With a schedule of no noise at 0 the last is 0.

    Args:
        draws: times per sequence, on a systematic grid. Deterministic for ``seed`` and the batch's sample ids.
        counted_T: bool ``[T]``; the contributions of other tokens are left out.
        given_T: bool ``[T]``; tokens that are told: the bound is of the others' log p given these.

    Returns:
        Value and standard error, float64 ``[N]``. The error takes the draws as independent; with one it is nan.

    Raises:
        ValueError: ``draws`` is not positive.
    """
    if draws < 1:
        raise ValueError(f"a Monte-Carlo bound needs at least one draw, got {draws}")
    process, ids_N, device = objective.process, batch.sample_ids_N.cpu().numpy(), batch.tokens_T.device
    given_T = None if given_T is None else given_T.to(device)
    maskable_T = process.maskable(batch) if given_T is None else process.maskable(batch) & ~given_T
    counted_T = maskable_T if counted_T is None else maskable_T & counted_T.to(device)
    t_KN = torch.from_numpy(grid(ids_N, 0, draws, seed)).to(device)
    uniforms = [
        generator(seed, 0, int(sample_id), "likelihood noise").random((draws, length))
        for sample_id, length in zip(ids_N, batch.lengths, strict=True)
    ]
    u_KT = torch.from_numpy(np.concatenate(uniforms, axis=1)).to(device)

    values_KN = torch.zeros(draws, len(ids_N), dtype=torch.float64, device=device)
    together = max(1, FORWARD_TOKENS // len(batch.tokens_T))
    for at in range(0, draws, together):
        t, u = t_KN[at : at + together], u_KT[at : at + together]
        many = Packed.of(batch.split() * len(t))
        told_T = None if given_T is None else given_T.repeat(len(t))
        _, each_T = objective.entropies(model, many, t.flatten(), u.flatten(), counted_T.repeat(len(t)), told_T)
        values_KN[at : at + together].index_add_(1, batch.sequence_T, each_T.view(len(t), -1))
    ends = sigma(process.schedule, torch.tensor([0.0, 1.0], dtype=torch.float64))
    start, end = process.entropy(ends).tolist()
    tokens_N = torch.bincount(batch.sequence_T[counted_T], minlength=len(ids_N)).double()
    value_N = -values_KN.mean(0) - tokens_N * (np.log(len(process.states)) - end + start)
    error_N = values_KN.std(0) / draws**0.5 if draws > 1 else torch.full_like(value_N, float("nan"))
    return value_N.cpu(), torch.where(tokens_N > 0, error_N, 0.0).cpu()
