"""What the network's output means: p(x0 given x_t) under SUBS, the substitution parameterisation (MDLM, section 3.2.3)."""

from __future__ import annotations

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
