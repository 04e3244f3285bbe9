"""What the network's output means: p(x0 given x_t) under SUBS, the substitution parameterisation (MDLM, section 3.2.3), or ratios of
probabilities (SEDD)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unveil.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class Subs:
    """Zero masking probability and carry-over unmasking.

    mask: id of the mask token. never: ids that are no data and get probability 0 (the mask token is one of them).
    """

    mask: int
    never: tuple[int, ...]

    @staticmethod
    def of(vocabulary: Vocabulary) -> Subs:
        """The end token is data; the five other special tokens are not."""
        return Subs(vocabulary.mask, tuple(token for token in vocabulary.specials if token != vocabulary.end))

    def restrict(self, logits_CV: Tensor) -> Tensor:
        """The logits with -inf for the ids that are never data, float32 or wider. The argument is not changed."""
        logits_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
        return logits_CV.index_fill(-1, torch.tensor(self.never, dtype=torch.int64, device=logits_CV.device), float("-inf"))

    def token_loss(self, logits_CV: Tensor, targets_C: Tensor) -> Tensor:
        """-log p(x0 given x_t) in nats at masked positions ``[C]``; infinite for a target that is never data."""
        logits_CV = self.restrict(logits_CV)
        return logits_CV.logsumexp(-1) - logits_CV.gather(-1, targets_C[:, None]).squeeze(-1)

    def log_probs(self, logits_TV: Tensor, tokens_T: Tensor) -> Tensor:
        """log p(x0 given x_t) ``[T, V]`` for a noised canvas: where a token is not masked, all mass is on that token."""
        carried_TV = torch.full_like(logits_TV, float("-inf")).scatter(-1, tokens_T[:, None], 0.0)
        predicted_TV = self.restrict(logits_TV).log_softmax(-1)
        return torch.where((tokens_T == self.mask)[:, None], predicted_TV, carried_TV.to(predicted_TV.dtype))


@dataclass(frozen=True)
class AbsorbRatio(Subs):
    """Scores of the absorbing chain out of the same head: log s_y = logit_y - log expm1(sigma) - log S over S data tokens (SEDD's
    ``scale_by_sigma``), so that s_y expm1(sigma) plays the part of p(x0 = y given x_t) but need not sum to 1.
    """

    size: int = 0
    """Of the vocabulary."""

    @staticmethod
    def over(vocabulary: Vocabulary) -> AbsorbRatio:
        subs = Subs.of(vocabulary)
        return AbsorbRatio(subs.mask, subs.never, vocabulary.size)

    def token_loss(self, logits_CV: Tensor, targets_C: Tensor) -> Tensor:
        """expm1(sigma) times the score entropy at masked positions, nats ``[C]``; sigma drops out (Lou et al. 2024, definition 3.1).

        With z = sum of s expm1(sigma) it is the cross-entropy of s / sum s, plus z - 1 - log z >= 0: the loss of SUBS where z is 1.
        """
        scaled_CV = self._scaled(logits_CV)
        return scaled_CV.exp().sum(-1) - 1.0 - scaled_CV.gather(-1, targets_C[:, None]).squeeze(-1)

    def log_scores(self, logits_TV: Tensor, tokens_T: Tensor, sigma_T: Tensor) -> Tensor:
        """log s ``[T, V]``, 0 at the token itself and minus infinity at what is no data."""
        scores_TV = self._scaled(logits_TV.double()) - torch.log(torch.expm1(sigma_T.double()))[:, None]
        return scores_TV.scatter(-1, tokens_T[:, None], 0.0)

    def _scaled(self, logits_CV: Tensor) -> Tensor:
        return self.restrict(logits_CV) - math.log(self.size - len(self.never))


@dataclass(frozen=True)
class UniformRatio:
    """Scores of the uniform chain over the data tokens: the logits are log s_y, and log s is 0 at the token itself (SEDD)."""

    data: Subs
    """Says which ids are data."""

    def token_loss(self, logits_CV: Tensor, noisy_C: Tensor, clean_C: Tensor, each_C: Tensor, true_C: Tensor, rest_C: Tensor) -> Tensor:
        """The score entropy in nats ``[C]``: the mean over the chain of s - ``each`` log s, less ``true`` log s of the clean token, plus
        ``rest``; see ``discrete.score.coefficients``. ``noisy_C`` and ``clean_C`` are x_t and x_0."""
        logits_CV = self.data.restrict(logits_CV)
        states = logits_CV.shape[-1] - len(self.data.never)
        others_CV = logits_CV.scatter(-1, noisy_C[:, None], float("-inf"))
        linear_C = others_CV.masked_fill(others_CV.isneginf(), 0.0).sum(-1)
        mean_C = (others_CV.exp().sum(-1) - each_C * linear_C) / states
        return mean_C - true_C * logits_CV.gather(-1, clean_C[:, None]).squeeze(-1) + rest_C

    def log_scores(self, logits_TV: Tensor, tokens_T: Tensor, sigma_T: Tensor) -> Tensor:
        """log s ``[T, V]``, 0 at the token itself and minus infinity at what is no data."""
        return self.data.restrict(logits_TV.double()).scatter(-1, tokens_T[:, None], 0.0)
