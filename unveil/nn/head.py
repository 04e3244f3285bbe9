"""From hidden states to a loss, a chunk of tokens at a time: the logits of a whole step never exist.

The gradient of each chunk is formed while its logits are at hand, so a step costs three matrix products and no recomputation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.nn.packed import Packed

TokenLoss = Callable[..., Tensor]
"""``(logits_CV, *columns_C) -> losses_C``: logits in float32 or wider, columns cut to the same tokens."""

CHUNK_ELEMENTS = 1 << 19
"""Logits alive at once: 2 MB in float32, which a second-level cache holds; twice and four times that were slower."""


def cross_entropy(logits_CV: Tensor, targets_C: Tensor) -> Tensor:
    """``-log softmax(logits)[target]`` per token, nats."""
    return F.cross_entropy(logits_CV, targets_C, reduction="none")


def weighted(token_loss: TokenLoss, logits_CV: Tensor, weights_C: Tensor, *columns_C: Tensor) -> tuple[Tensor, Tensor]:
    losses_C = token_loss(logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32)), *columns_C)
    return (losses_C * weights_C).sum(), losses_C.detach()


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        head: Head,
        token_loss: TokenLoss,
        weights_T: Tensor,
        *columns_T: Tensor,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden_TD.dtype, torch.float32)
        weight, bias = weight_VD.to(hidden_TD.dtype), None if bias_V is None else bias_V.to(hidden_TD.dtype)
        needed = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        losses_T, total = hidden_TD.new_empty(len(hidden_TD), dtype=wide), hidden_TD.new_zeros((), dtype=wide)
        grad_hidden = torch.empty_like(hidden_TD) if needed else None
        # a frozen head, as under an adapter, is spared the third product
        grad_weight = (torch.empty_like if len(hidden_TD) else torch.zeros_like)(weight_VD) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias_V) if ctx.needs_input_grad[2] and bias_V is not None else None
        rows = max(1, CHUNK_ELEMENTS // len(weight_VD))
        for at in range(0, len(hidden_TD), rows):
            chunk = slice(at, at + rows)
            logits = F.linear(hidden_TD[chunk], weight, bias).detach().requires_grad_(needed)
            with torch.set_grad_enabled(needed):
                part, losses_T[chunk] = head.weighted(token_loss, logits, weights_T[chunk], *(c[chunk] for c in columns_T))
            total += part.detach()
            if grad_hidden is not None:
                (grad_logits,) = torch.autograd.grad(part, logits)
                torch.mm(grad_logits, weight, out=grad_hidden[chunk])
                if grad_bias is not None:
                    grad_bias += grad_logits.sum(0)
                if grad_weight is None:
                    continue
                if at == 0:
                    grad_weight.copy_(grad_logits.T @ hidden_TD[chunk])
                elif grad_weight.dtype == hidden_TD.dtype:
                    grad_weight.addmm_(grad_logits.T, hidden_TD[chunk])
                else:  # bfloat16 products, summed over chunks in the master's dtype
                    grad_weight += grad_logits.T @ hidden_TD[chunk]
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.columns = len(columns_T)
        ctx.mark_non_differentiable(losses_T)
        return total, losses_T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        weight, bias = (None if grad is None else grad * grads[0] for grad in (grad_weight, grad_bias))
        return (grad_hidden * grads[0].to(grad_hidden.dtype), weight, bias, *[None] * (3 + ctx.columns))


class Head(nn.Module):
    """The matrix (with a bias, if asked for) from hidden states to logits over V tokens, and the chunked loop from logits to a loss."""

    def __init__(self, width: int, vocabulary: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary, width))
        self.bias = nn.Parameter(torch.empty(vocabulary)) if bias else None
        self.weighted: Callable[..., tuple[Tensor, Tensor]] = weighted

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """Logits ``[T, V]`` in the dtype of the hidden states."""
        bias = None if self.bias is None else self.bias.to(hidden_TD.dtype)
        return F.linear(hidden_TD, self.weight.to(hidden_TD.dtype), bias)

    def compile_loss(self, backend: str = "inductor") -> None:
        """Fuse what lies between logits and loss, forward and backward; chunks of any length share the result."""
        compiled = torch.compile(weighted, backend=backend)

        def ragged(token_loss: TokenLoss, *tensors_C: Tensor) -> tuple[Tensor, Tensor]:
            for t in tensors_C:
                torch._dynamo.maybe_mark_dynamic(t, 0)
            return compiled(token_loss, *tensors_C)

        self.weighted = ragged

    def reduce(self, hidden_TD: Tensor, token_loss: TokenLoss, weights_T: Tensor, *columns_T: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted sum of a loss over tokens.

        Args:
            token_loss: ``(logits_CV, *columns_C) -> losses_C``; sees logits in float32 or wider.
            weights_T: weight of each token, float.
            columns_T: what ``token_loss`` needs per token (targets, say), first dimension T.

        Returns:
            ``sum_t weights_t * losses_t``, differentiable in the hidden states and the weight, once; and the losses ``[T]``, detached.
        """
        total, losses_T = _Reduce.apply(hidden_TD, self.weight, self.bias, self, token_loss, weights_T, *columns_T)  # type: ignore[no-untyped-call]
        return total, losses_T


class _GivenLogits(nn.Module):
    """The head of a network that returns logits: the identity, with the same ``reduce``."""

    def forward(self, logits_TV: Tensor) -> Tensor:
        return logits_TV

    def reduce(self, logits_TV: Tensor, token_loss: TokenLoss, weights_T: Tensor, *columns_T: Tensor) -> tuple[Tensor, Tensor]:
        return weighted(token_loss, logits_TV, weights_T, *columns_T)


class LogitsModel(nn.Module):
    """A person's own network, ``Packed -> logits [T, V]``, in the form that objectives and samplers ask for."""

    def __init__(self, network: Callable[[Packed], Tensor]) -> None:
        super().__init__()
        self.network = network
        self.head = _GivenLogits()

    def forward(self, batch: Packed) -> Tensor:
        return self.network(batch)
